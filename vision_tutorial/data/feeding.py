"""Recipe -> what feeds a training or an evaluation: which path images take, and where they end.

`copies` is how many extra versions of an image the loss wants to see (jsd); the batched path has
none of these, nor entries without a batched form. A dense source's masks go along on the batched
path, and on the joint path where that one is not taken.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.registry import augments
from ..core.sources import Source
from ..recipe.fields import Colours, Recipe
from ..recipe.grammar import Choice
from . import pipeline, preprocess
from .augmentation.pairs import joint
from .augmentation.sampling import Program
from .augmentation.sampling import program as drawn
from .augmentation.transforms import FRAMING, RANDOM
from .loader import AugmentedImages, EvalOrder, Raw, Singly, TrainOrder, make_loader

Feed = Callable[[], Iterator[Raw]]


@dataclass(frozen=True)
class Place:
    """The process that takes the images, and what it has. workers: of torch's loader."""

    device: torch.device
    rank: int = 0
    world: int = 1
    threads: int = 1
    workers: int = 0


def chain(choices: Sequence[Choice]) -> tuple[list[Callable], list[Callable]]:
    """Transforms of images, and of normalised tensors, in order."""
    made = [augments.build(c.name, **c.options)() for c in choices]
    late = [t for t in made if getattr(t, "stage", "image") == "tensor"]
    if late and made[-len(late) :] != late:
        raise UserError(
            "augment: random_erasing and cutout act after normalising; put them last in the list."
        )
    return made[: len(made) - len(late)], late


def is_random(choice: Choice) -> bool:
    """Whether an entry of the package may treat an image in more ways than one."""
    if choice.name in ("clahe", "equalize_luma"):
        return choice.options["p"] < 1 or len({*choice.options.get("clip", (1,))}) > 1
    return choice.name in RANDOM or choice.name == "brightness_contrast"


def program(recipe: Recipe, copies: int = 0) -> Program | None:
    """The batched form of the training images' augmentation; None where they go singly.

    UserError where `data.path` insists on it and an entry has none.
    """
    made = attempt(recipe, recipe.augment, copies)
    if isinstance(made, UserError) and recipe.data.path == "batched":
        raise made
    return made if isinstance(made, Program) else None


def attempt(
    recipe: Recipe, choices: Sequence[Choice], copies: int = 0
) -> Program | UserError | None:
    """The batched form of a chain, or why there is none; None where it is not wanted."""
    if recipe.data.path == "timm":
        return None
    if copies:
        return UserError("loss: jsd needs copies of images; data.path=batched has none.")
    try:
        return in_batches(choices, recipe.seed)
    except UserError as error:
        return error


def path(recipe: Recipe, copies: int = 0, dense: bool = False) -> str:
    """In words: which path training images take, and why not the faster one."""
    made = attempt(recipe, recipe.augment, copies)
    if isinstance(made, Program):
        return "batched: whole batches at once, the pixels that Pillow would give"
    reason = "as data.path says" if made is None else str(made).partition(". ")[0].rstrip(".")
    singly = "joint: one image and its mask" if dense else "timm: one image"
    return f"{singly} at a time ({reason})"


def in_batches(choices: Sequence[Choice], seed: int) -> Program:
    """A chain in batched form. UserError names an entry that has none."""
    return drawn([(choice.name, dict(choice.options)) for choice in choices], seed)


def training(
    recipe: Recipe, source: Source, copies: int, place: Place
) -> Callable[[int, int], Iterator[Raw]]:
    """A function (start, stop) -> the process's batches of the steps from start to stop."""
    made = program(recipe, copies)
    if made is not None and pipeline.is_array(source):
        feed = pipeline.Batched(store(recipe, source, place), made).batches
    else:
        feed = partial(loaded, images(recipe, source, copies), place=place)

    def batches(start: int, stop: int) -> Iterator[Raw]:
        n, size = len(source), recipe.batch_size
        return feed(TrainOrder(n, size, recipe.seed, start, stop, place.rank, place.world))

    return batches


def images(recipe: Recipe, source: Source, copies: int = 0) -> AugmentedImages:
    """Augmented training images by (epoch, index), one at a time."""
    if source.dense:
        if copies:
            raise UserError("loss: jsd compares copies of images; there are none with masks.")
        return AugmentedImages(source, joint(recipe.augment, recipe.seed))
    made = program(recipe, copies)
    if made is not None:
        return AugmentedImages(source, pipeline.Together(made))
    if not copies:
        return AugmentedImages(source, Singly(chain(recipe.augment)[0], recipe.seed))
    framing = [choice for choice in recipe.augment if choice.name in FRAMING]
    others = [choice for choice in recipe.augment if choice.name not in FRAMING]
    several = Singly(chain(framing)[0], recipe.seed, copies, chain(others)[0])
    return AugmentedImages(source, several)


def eval_order(recipe: Recipe, source: Source, place: Place) -> EvalOrder:
    """Which images of a split the process sees in an evaluation, batch by batch."""
    return EvalOrder(len(source), recipe.eval_batch_size, place.rank, place.world)


def evaluating(recipe: Recipe, source: Source, place: Place) -> Feed:
    """The process's share of a split, from the beginning at each call; it may remember images."""
    order = eval_order(recipe, source, place)
    made = attempt(recipe, recipe.eval_augment)
    batched = isinstance(made, Program)  # not so with an entry of the student's own, say
    if batched and pipeline.is_array(source):
        feed = pipeline.Batched(store(recipe, source, place), made).batches
        # Where nothing is done to the images they are in memory already.
        return partial(pipeline.Evaluated(feed).batches if made.drawers else feed, order)
    if source.dense:
        shown = AugmentedImages(source, joint(recipe.eval_augment, recipe.seed))
        return partial(pipeline.Evaluated(partial(loaded, shown, place=place)).batches, order)
    singly = Singly(chain(recipe.eval_augment)[0], recipe.seed)
    augment = pipeline.Together(made) if batched else singly
    return partial(loaded, AugmentedImages(source, augment), order, place)


def store(recipe: Recipe, source: Source, place: Place) -> pipeline.Store:
    """The pixels of a source that lies in arrays, where they are augmented."""
    return pipeline.Store(source, place.device, recipe.data.memory, place.threads)


def loaded(made: AugmentedImages, order: TrainOrder | EvalOrder, place: Place) -> Iterator[Raw]:
    """Batches through torch's loader and its workers."""
    return make_loader(made, order, place.workers, pin=place.device.type == "cuda")


def colours(recipe: Recipe) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of pixels in 0 … 1."""
    given = recipe.normalize
    return (given.mean, given.std) if isinstance(given, Colours) else preprocess.COLOURS[given]


def finishing(recipe: Recipe, place: Place, **more: Any) -> preprocess.Finisher:
    """(raw batch, step) -> Batch: colours, layout, and what `batch.Finisher` takes beside."""
    compiled = place.device.type == "cpu" and pipeline.has_numba() and recipe.data.path != "timm"
    return preprocess.Finisher(
        device=place.device,
        colours=colours(recipe),
        channels_last=recipe.channels_last,
        threads=place.threads if compiled else 0,
        seed=recipe.seed,
        **more,
    )


def erasing(recipe: Recipe, copies: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """(normalised images, items) -> images with boxes overwritten, by either path."""
    made = program(recipe, copies)
    if made is not None:
        return made.erase
    return partial(preprocess.erase_singly, chain(recipe.augment)[1], recipe.seed)

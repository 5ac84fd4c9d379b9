"""Recipe and source -> batches ready for the network: the whole data path as one object."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.sources import Source
from ..core.task import Batch
from ..recipe.fields import Colours, Recipe
from ..recipe.grammar import Choice
from . import mix
from .augmentation.operation import AugmentationPlan, batched_form, operation
from .augmentation.pairs import joint
from .loader import AugmentedImages, EvalOrder, PerImage, RawBatch, TrainOrder, make_loader
from .preprocess import COLOURS, Preprocessor, erase_per_image
from .store import OneImage, Store, ahead, has_numba, is_array

IMAGES_AT_ONCE = {False: 2048, True: 4096}  # augmented in one call, by whether on a GPU,
BYTES_AT_ONCE = 2**26  # if they have no more bytes than this
KEPT_BYTES = 2**30  # of augmented images that an evaluation keeps for the next one


@dataclass(frozen=True)
class WorkerContext:
    """The process that takes the images, and what it has. workers: of torch's loader."""

    device: torch.device
    rank: int = 0
    world: int = 1
    threads: int = 1
    workers: int = 0


class DataPipeline:
    """The batches of one source: augmented, mixed, normalised, on the worker's device.

    For training images get `augment`, `mix` and erasing; for evaluation `eval_augment`. Whole
    batches are augmented at once where each entry has a batched form, else image by image. copies:
    how many extra versions of an image the loss compares (jsd); these are made image by image.
    UserError where `data.path` asks for batches and a training cannot have them.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        worker: WorkerContext,
        *,
        training: bool,
        copies: int = 0,
    ):
        self.recipe, self.source, self.worker = recipe, source, worker
        self.kept: list[RawBatch] | None = None
        if training:
            self.plan = batched_plan(recipe, copies)
        else:
            self.plan = attempt(recipe, recipe.eval_augment)
            self.plan = self.plan if isinstance(self.plan, AugmentationPlan) else None
        self.store = None
        if self.plan is not None and is_array(source):
            self.store = Store(source, worker.device, recipe.data.memory, worker.threads)
            # where nothing is done to the images they are in memory already
            self.keeps = not training and bool(self.plan.samplers)
        else:
            self.images = augmented_images(recipe, source, training, copies)
            self.keeps = not training and source.dense
        compiled = worker.device.type == "cpu" and has_numba() and recipe.data.path != "timm"
        self.preprocessor = Preprocessor(
            device=worker.device,
            colours=colours(recipe),
            channels_last=recipe.channels_last,
            mixing=mix.mix(recipe.mix) if training else mix.leave,
            erase=erasing(recipe, copies) if training else None,
            threads=worker.threads if compiled else 0,
            classes=len(source.classes),
            seed=recipe.seed,
        )

    def train(self, start: int, stop: int, parts: int = 1) -> Iterator[list[Batch]]:
        """The micro-batches, `parts` of them, of each step from start to stop."""
        for step, raw in enumerate(self.raw_training(start, stop), start):
            yield list(self.preprocessor.parts(raw, step, parts))

    def raw_training(self, start: int, stop: int) -> Iterator[RawBatch]:
        """The process's batches of the steps from start to stop, before they are mixed."""
        recipe, worker = self.recipe, self.worker
        size, of_process = (len(self.source), recipe.batch_size), (worker.rank, worker.world)
        return self.raw_batches(TrainOrder(*size, recipe.seed, start, stop, *of_process))

    def evaluation(self, pixels: bool = False) -> Iterator[Batch]:
        """The process's share of the source, from the beginning at each call. pixels: see Batch."""
        for raw in self.raw_evaluation():
            yield self.preprocessor(raw, pixels=pixels)

    def eval_order(self) -> EvalOrder:
        """Which images the process sees in an evaluation, batch by batch."""
        return eval_order(self.recipe, self.source, self.worker)

    def raw_evaluation(self) -> Iterator[RawBatch]:
        """The batches of an evaluation before they are normalised; kept in memory if they fit."""
        if self.kept is not None:
            yield from self.kept
            return
        found, size = [], 0
        for raw in self.raw_batches(self.eval_order()):
            size += raw.images.nbytes + raw.target.nbytes
            if self.keeps and size <= KEPT_BYTES:
                found.append(raw)
            yield raw
        if self.keeps and size <= KEPT_BYTES:
            self.kept = found

    def raw_batches(self, order: TrainOrder | EvalOrder) -> Iterator[RawBatch]:
        """The batches of an order, augmented. On a GPU they are made ahead, beside the step."""
        device = self.worker.device
        if self.store is None:
            return make_loader(self.images, order, self.worker.workers, device.type == "cuda")
        made = self.augmented_at_once(order)
        return ahead(made, device) if device.type == "cuda" else made

    def augmented_at_once(self, order: TrainOrder | EvalOrder) -> Iterator[RawBatch]:
        """Many batches in one call: it costs little more than one batch, and keeps a GPU busy."""
        most = BYTES_AT_ONCE // max(self.store.images[0].nbytes, 1)
        count = min(IMAGES_AT_ONCE[self.worker.device.type == "cuda"], most)
        remaining = order.items()
        while first := list(islice(remaining, 1)):
            group = first + list(islice(remaining, max(count // len(first[0]) - 1, 0)))
            made = self.store(self.plan, np.concatenate(group))
            yield from made.split([len(items) for items in group])


def chain(choices: Sequence[Choice]) -> tuple[list[Callable], list[Callable]]:
    """References of the operations on images, and on normalised tensors, in order."""
    made = [operation(choice) for choice in choices]
    late = [one for one in made if one.stage == "tensor"]
    if late and made[-len(late) :] != late:
        raise UserError(
            "augment: random_erasing and cutout act after normalising; put them last in the list."
        )
    references = [one.reference for one in made]
    first = len(made) - len(late)
    return references[:first], references[first:]


def batched_plan(recipe: Recipe, copies: int = 0) -> AugmentationPlan | None:
    """The batched form of the training images' augmentation; None where it goes image by image.

    UserError where `data.path` insists on it and an entry has none.
    """
    made = attempt(recipe, recipe.augment, copies)
    if isinstance(made, UserError) and recipe.data.path == "batched":
        raise made
    return made if isinstance(made, AugmentationPlan) else None


def attempt(
    recipe: Recipe, choices: Sequence[Choice], copies: int = 0
) -> AugmentationPlan | UserError | None:
    """The batched form of a chain, or why there is none; None where it is not wanted."""
    if recipe.data.path == "timm":
        return None
    if copies:
        return UserError("loss: jsd needs copies of images; data.path=batched has none.")
    try:
        return batched_form(choices, recipe.seed)
    except UserError as error:
        return error


def describe_path(recipe: Recipe, copies: int = 0, dense: bool = False) -> str:
    """In words: which path training images take, and why not the faster one."""
    made = attempt(recipe, recipe.augment, copies)
    if isinstance(made, AugmentationPlan):
        return "batched: whole batches at once, the pixels that Pillow would give"
    reason = "as data.path says" if made is None else str(made).partition(". ")[0].rstrip(".")
    per_image = "joint: one image and its mask" if dense else "timm: one image"
    return f"{per_image} at a time ({reason})"


def augmented_images(
    recipe: Recipe, source: Source, training: bool = True, copies: int = 0
) -> AugmentedImages:
    """Augmented images by (epoch, index), one at a time."""
    choices = recipe.augment if training else recipe.eval_augment
    if source.dense:
        if copies:
            raise UserError("loss: jsd compares copies of images; there are none with masks.")
        return AugmentedImages(source, joint(choices, recipe.seed))
    made = batched_plan(recipe, copies) if training else attempt(recipe, choices)
    if isinstance(made, AugmentationPlan):
        return AugmentedImages(source, OneImage(made))
    if not copies:
        return AugmentedImages(source, PerImage(chain(choices)[0], recipe.seed))
    made = [one for one in map(operation, choices) if one.stage != "tensor"]
    framing = [one.reference for one in made if one.framing]
    others = [one.reference for one in made if not one.framing]
    several = PerImage(framing, recipe.seed, copies, others)
    return AugmentedImages(source, several)


def eval_order(recipe: Recipe, source: Source, worker: WorkerContext) -> EvalOrder:
    """Which images of a split the process sees in an evaluation, batch by batch."""
    return EvalOrder(len(source), recipe.eval_batch_size, worker.rank, worker.world)


def colours(recipe: Recipe) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of pixels in 0 … 1."""
    given = recipe.normalize
    return (given.mean, given.std) if isinstance(given, Colours) else COLOURS[given]


def erasing(recipe: Recipe, copies: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """(normalised images, items) -> images with boxes overwritten, by either path."""
    made = batched_plan(recipe, copies)
    if made is not None:
        return made.erase
    return partial(erase_per_image, chain(recipe.augment)[1], recipe.seed)

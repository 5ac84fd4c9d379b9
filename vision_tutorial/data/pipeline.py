"""Recipe and source -> batches ready for the network: the whole data path as one object."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..core import task as targets
from ..core.errors import UserError
from ..core.randomness import address
from ..core.sources import Source
from ..core.task import Batch
from ..recipe.fields import Colours, Recipe
from ..recipe.grammar import Choice
from . import mix
from .augmentation.operation import AugmentationPlan, batched_form, operation
from .augmentation.pairs import joint
from .loader import (
    AugmentedImages,
    EvalOrder,
    PerImage,
    RawBatch,
    TrainOrder,
    chosen,
    make_loader,
    part,
    seed_generators,
)
from .mix import Mix, leave
from .store import OneImage, Store, ahead, has_numba, is_array

IMAGES_AT_ONCE = {False: 2048, True: 4096}  # augmented in one call, by whether on a GPU,
BYTES_AT_ONCE = 2**26  # if they have no more bytes than this
KEPT_BYTES = 2**30  # of augmented images that an evaluation keeps for the next one


# Per-channel mean and standard deviation of pixels in 0 … 1.
COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalize(images: Tensor, colours: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, (x/255 - mean) / std per channel, as timm's loader does it."""
    mean, std = (
        torch.tensor([255 * x for x in values], device=images.device).view(3, 1, 1)
        for values in colours
    )
    return images.float().sub_(mean).div_(std)


def compiled_normalize(
    colours: tuple[Sequence[float], Sequence[float]], channels_last: bool, threads: int
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`normalize` of some rows by a table of its 256 results a channel: the same bits, in one
    pass."""
    from .executors import compiled

    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    table = normalize(levels, colours).reshape(3, 256).numpy()

    def scale(images: Tensor, rows: Tensor | None) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        some = np.arange(len(pixels)) if rows is None else rows.numpy()
        made = torch.from_numpy(compiled.normalize(pixels, some, table, channels_last, threads))
        return made.permute(0, 3, 1, 2) if channels_last else made

    return scale


def erase_per_image(
    transforms: Sequence[Callable], seed: int, images: Tensor, items: Tensor
) -> Tensor:
    """Apply the per-image tensor transforms (random erasing) to normalised images, by address."""
    for row, (epoch, index) in enumerate(items.tolist() if transforms else ()):
        seed_generators(address(seed, epoch, index, "erase"))
        for transform in transforms:
            images[row] = transform(images[row])
    return images


class Preprocessor:
    """Raw batch -> Batch on `device`: mixed, normalised, erased.

    A batch (B, V, 3, H, W) of V versions becomes (V·B, 3, H, W), all first versions first. Masks
    become class ids. threads: for compiled code on the CPU; 0 does without it.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        colours: tuple[Sequence[float], Sequence[float]],
        channels_last: bool,
        mixing: Mix = leave,
        erase: Callable[[Tensor, Tensor], Tensor] | None = None,
        threads: int = 0,
        classes: int = 0,
        seed: int = 0,
    ):
        self.device, self.colours, self.mixing, self.erase = device, colours, mixing, erase
        self.classes, self.seed = classes, seed
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.compiled = compiled_normalize(colours, channels_last, threads) if threads else None

    def __call__(self, raw: RawBatch, step: int = 0, pixels: bool = False) -> Batch:
        """The complete batch. pixels: whether it keeps its images as they were, too."""
        (batch,) = self.parts(raw, step, 1, pixels)
        return batch

    def parts(self, raw: RawBatch, step: int, count: int, pixels: bool = False) -> Iterator[Batch]:
        """`count` micro-batches that keep mirror pairs together, of a batch that is mixed whole."""
        images = raw.images.to(self.device, non_blocking=True)
        target = raw.target.to(self.device, non_blocking=True)
        if target.dtype == torch.uint8:
            target = targets.from_masks(target)
        items = raw.items
        images, target = self.mixing(images, target, self.classes, self.seed, step, items)
        for index in range(count):
            rows = torch.from_numpy(part(len(raw), index, count)) if count > 1 else None
            mine = (chosen(tensor, rows) for tensor in (target, items))
            yield self.normalized(images, *mine, rows, pixels)

    def normalized(
        self, images: Tensor, target: Tensor, items: Tensor, rows: Tensor | None, pixels: bool
    ) -> Batch:
        """The images `rows` (None: all) of a mixed batch, and what belongs to these."""
        versions = images.shape[1] if images.dim() == 5 else 1
        if images.dim() == 5:
            images, rows = chosen(images, rows).transpose(0, 1).flatten(0, 1), None
            target = target.repeat(versions)
            items = torch.cat([items + items.new_tensor([0, v << 40]) for v in range(versions)])
        if self.compiled:
            made = self.compiled(images, rows)
        else:
            made = normalize(chosen(images, rows), self.colours)
        made = self.erase(made, items) if self.erase else made
        kept = chosen(images, rows) if pixels else None
        return Batch(made.contiguous(memory_format=self.layout), target, kept, versions)


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
        choices = recipe.augment if training else recipe.eval_augment
        plan = batched_plan(recipe, copies) if training else attempt(recipe, choices)
        self.plan = plan if isinstance(plan, AugmentationPlan) else None
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
            mixing=mix.mix(recipe.mix) if training else leave,
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
    framing, others = (
        [one.reference for one in made if one.framing == which] for which in (True, False)
    )
    return AugmentedImages(source, PerImage(framing, recipe.seed, copies, others))


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

"""Recipe and source -> batches ready for the network: the whole data path as one object."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..core import task as targets
from ..core.errors import UserError
from ..core.randomness import address
from ..core.sources import ArraySource, Source, base
from ..core.task import Batch
from ..recipe.fields import Colours, Recipe
from ..recipe.grammar import Choice
from . import loader
from .augmentation.operation import AugmentationPlan, batched_form, operation
from .augmentation.pairs import joint
from .executors.dispatch import has_numba
from .loader import AugmentedImages, RawBatch, Store, by_plan, by_references, chosen, part
from .mix import Mix

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
        self.plan = batched_plan(recipe, copies, training)
        self.store = None
        if self.plan and isinstance(base(source), ArraySource):
            self.store = Store(source, worker.device, recipe.data.memory, worker.threads)
            # where nothing is done to the images they are in memory already
            self.keeps = not training and bool(self.plan.samplers)
        else:
            self.images = augmented_images(recipe, source, training, copies)
            self.keeps = not training and source.dense
        self.mixing = Mix(recipe.mix if training else None)
        self.erase: Callable[[Tensor, Tensor], Tensor] = lambda images, items: images
        if training and self.plan:
            self.erase = self.plan.erase
        elif training:
            self.erase = partial(erase_per_image, chain(recipe.augment)[1], recipe.seed)
        self.colours = colours(recipe)
        self.table = None  # what normalising makes of each value of each channel, float32 (3, 256)
        if worker.device.type == "cpu" and has_numba() and recipe.data.path != "timm":
            values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
            self.table = normalize(values, self.colours).reshape(3, 256).numpy()

    def train(self, start: int, stop: int, parts: int = 1) -> Iterator[list[Batch]]:
        """The micro-batches, `parts` of them, of each step from start to stop."""
        for step, raw in enumerate(self.raw_training(start, stop), start):
            yield self.preprocess(raw, step, parts)

    def raw_training(self, start: int, stop: int) -> Iterator[RawBatch]:
        """The process's batches of the steps from start to stop, before they are mixed."""
        recipe, worker = self.recipe, self.worker
        size, of_process = (len(self.source), recipe.batch_size), (worker.rank, worker.world)
        return self.raw_batches(loader.train_order(*size, recipe.seed, start, stop, *of_process))

    def evaluation(self, pixels: bool = False) -> Iterator[Batch]:
        """The process's share of the source, from the beginning at each call. pixels: see Batch."""
        for raw in self.raw_evaluation():
            yield from self.preprocess(raw, pixels=pixels)

    def raw_evaluation(self) -> Iterator[RawBatch]:
        """The batches of an evaluation before they are normalised; kept in memory if they fit."""
        if self.kept is not None:
            yield from self.kept
            return
        found, size = [], 0
        for raw in self.raw_batches(eval_order(self.recipe, self.source, self.worker)):
            size += raw.images.nbytes + raw.target.nbytes
            if self.keeps and size <= KEPT_BYTES:
                found.append(raw)
            yield raw
        if self.keeps and size <= KEPT_BYTES:
            self.kept = found

    def raw_batches(self, order: Iterable[np.ndarray]) -> Iterator[RawBatch]:
        """The batches of an order, augmented. On a GPU they are made ahead, beside the step."""
        device = self.worker.device
        on_gpu = device.type == "cuda"
        if self.store is None:
            return loader.make_loader(self.images, order, self.worker.workers, on_gpu)
        made = self.augmented_at_once(iter(order), on_gpu)
        return loader.ahead(made, device) if on_gpu else made

    def augmented_at_once(self, order: Iterator[np.ndarray], on_gpu: bool) -> Iterator[RawBatch]:
        """Many batches in one call: it costs little more than one batch, and keeps a GPU busy."""
        most = BYTES_AT_ONCE // max(self.store.images[0].nbytes, 1)
        count = min(IMAGES_AT_ONCE[on_gpu], most)
        for first in order:
            group = [first, *islice(order, max(count // len(first) - 1, 0))]
            made = self.store(self.plan, np.concatenate(group))
            lengths = [len(items) for items in group]
            for piece in zip(*(tensor.split(lengths) for tensor in made), strict=True):
                yield RawBatch(*piece)

    def preprocess(
        self, raw: RawBatch, step: int = 0, parts: int = 1, pixels: bool = False
    ) -> list[Batch]:
        """A batch on the device: mixed as a whole, then in micro-batches normalised and erased.

        The micro-batches, `parts` of them, keep mirror pairs together. Masks become class ids.
        pixels: whether a batch keeps its images as they were, too.
        """
        device = self.worker.device
        images = raw.images.to(device, non_blocking=True)
        target = raw.target.to(device, non_blocking=True)
        if target.dtype == torch.uint8:
            target = targets.from_masks(target)
        classes, seed = len(self.source.classes), self.recipe.seed
        images, target = self.mixing(images, target, classes, seed, step, raw.items)
        rows: list[Tensor | None] = [None]
        if parts > 1:
            rows = [torch.from_numpy(part(len(images), i, parts)) for i in range(parts)]
        return [self.normalized(images, target, raw.items, some, pixels) for some in rows]

    def normalized(
        self, images: Tensor, target: Tensor, items: Tensor, rows: Tensor | None, pixels: bool
    ) -> Batch:
        """The images `rows` (None: all) of a mixed batch, and what belongs to these. V versions
        of them, (B, V, 3, H, W), become (V·B, 3, H, W), all first versions first."""
        target, items = chosen(target, rows), chosen(items, rows)
        versions = images.shape[1] if images.dim() == 5 else 1
        if images.dim() == 5:
            images, rows = chosen(images, rows).transpose(0, 1).flatten(0, 1), None
            target = target.repeat(versions)
            items = torch.cat([items + items.new_tensor([0, v << 40]) for v in range(versions)])
        if self.table is None:
            made = normalize(chosen(images, rows), self.colours)
        else:
            made = self.looked_up(images, rows)
        channels_last = self.recipe.channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        made = self.erase(made, items).contiguous(memory_format=layout)
        return Batch(made, target, chosen(images, rows) if pixels else None, versions)

    def looked_up(self, images: Tensor, rows: Tensor | None) -> Tensor:
        """`normalize` of some rows by the table of its results: the same bits, in one pass."""
        from .executors import compiled

        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        some = np.arange(len(pixels)) if rows is None else rows.numpy()
        last = self.recipe.channels_last
        made = compiled.normalize(pixels, some, self.table, last, self.worker.threads)
        return torch.from_numpy(made).permute(0, 3, 1, 2) if last else torch.from_numpy(made)


def normalize(images: Tensor, colours: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, (x/255 - mean) / std per channel, as timm's loader does it."""
    mean, std = (
        torch.tensor([255 * x for x in values], device=images.device).view(3, 1, 1)
        for values in colours
    )
    return images.float().sub_(mean).div_(std)


def erase_per_image(
    transforms: Sequence[Callable], seed: int, images: Tensor, items: Tensor
) -> Tensor:
    """Apply the per-image tensor transforms (random erasing) to normalised images, by address."""
    for row, (epoch, index) in enumerate(items.tolist() if transforms else ()):
        loader.seed_generators(address(seed, epoch, index, "erase"))
        for transform in transforms:
            images[row] = transform(images[row])
    return images


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


def plan_or_reason(
    recipe: Recipe, copies: int = 0, training: bool = True
) -> AugmentationPlan | str:
    """The batched form of the images' augmentation, or why they go one by one.

    UserError where `data.path` insists on it for training, and an entry has none.
    """
    if recipe.data.path == "timm":
        return "as data.path says"
    try:
        if copies:
            raise UserError("loss: jsd needs copies of images; data.path=batched has none.")
        return batched_form(recipe.augment if training else recipe.eval_augment, recipe.seed)
    except UserError as error:
        if training and recipe.data.path == "batched":
            raise
        return str(error).partition(". ")[0].rstrip(".")


def batched_plan(recipe: Recipe, copies: int = 0, training: bool = True) -> AugmentationPlan | None:
    """`plan_or_reason`, or None."""
    made = plan_or_reason(recipe, copies, training)
    return made if isinstance(made, AugmentationPlan) else None


def describe_path(recipe: Recipe, copies: int = 0, dense: bool = False) -> str:
    """In words: which path training images take, and why not the faster one."""
    made = plan_or_reason(recipe, copies)
    if isinstance(made, AugmentationPlan):
        return "batched: whole batches at once, the pixels that Pillow would give"
    per_image = "joint: one image and its mask" if dense else "timm: one image"
    return f"{per_image} at a time ({made})"


def augmented_images(
    recipe: Recipe, source: Source, training: bool = True, copies: int = 0
) -> AugmentedImages:
    """Augmented images by (epoch, index), one at a time."""
    choices = recipe.augment if training else recipe.eval_augment
    if source.dense:
        if copies:
            raise UserError("loss: jsd compares copies of images; there are none with masks.")
        return AugmentedImages(source, joint(choices, recipe.seed))
    if plan := batched_plan(recipe, copies, training):
        return AugmentedImages(source, partial(by_plan, plan))
    if not copies:
        return AugmentedImages(source, partial(by_references, chain(choices)[0], recipe.seed))
    made = [one for one in map(operation, choices) if one.stage != "tensor"]
    framing, others = (
        [one.reference for one in made if one.framing == which] for which in (True, False)
    )
    more = {"copies": copies, "of_copies": others}
    return AugmentedImages(source, partial(by_references, framing, recipe.seed, **more))


def eval_order(recipe: Recipe, source: Source, worker: WorkerContext) -> Iterator[np.ndarray]:
    """(0, index) of the images that the process sees in an evaluation, batch by batch."""
    size = len(source), recipe.eval_batch_size
    return loader.eval_order(*size, worker.rank, worker.world)


def colours(recipe: Recipe) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of pixels in 0 … 1."""
    given = recipe.normalize
    return (given.mean, given.std) if isinstance(given, Colours) else COLOURS[given]

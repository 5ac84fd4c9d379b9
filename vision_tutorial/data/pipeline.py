"""Recipe and source -> batches ready for the network: the whole data path as one object.

The order is a function of (seed, epoch); a training that starts in the middle is as good as one
that ran through. A global batch is split in mirror pairs: whoever takes position i also takes
B-1-i. CutMix and Mixup pair i with B-1-i, so a mixed batch is the same set of images for every
number of processes, micro-batches and shards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import task as targets
from ..core.errors import UserError
from ..core.randomness import order
from ..core.sources import ArraySource, Source, Subset, base
from ..core.task import Batch, to_device
from ..recipe.fields import Colours, Recipe
from .augmentation.operation import AugmentationPlan
from .executors import cpu, tensors
from .loader import (
    RawBatch,
    augmented_images,
    batched_plan,
    chain,
    erase_per_image,
    make_loader,
)
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
        self.kept: list[list[RawBatch]] | None = None
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
        self.mean_std = [to_device(values, worker.device) for values in mean_std(recipe)]
        self.table = None  # what normalising makes of each value of each channel, float32 (3, 256)
        if worker.device.type == "cpu" and cpu.has_numba() and recipe.data.path != "timm":
            values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
            self.table = normalize(values, *self.mean_std).reshape(3, 256).numpy()

    def train(self, start: int, stop: int, parts: int = 1) -> Iterator[list[Batch]]:
        """The micro-batches, `parts` of them, of each step from start to stop."""
        for step, raw in enumerate(self.raw_training(start, stop), start):
            yield self.preprocess(raw, step, parts)

    def raw_training(self, start: int, stop: int) -> Iterator[RawBatch]:
        """The process's batches of the steps from start to stop, before they are mixed."""
        recipe, worker = self.recipe, self.worker
        size, of_process = (len(self.source), recipe.batch_size), (worker.rank, worker.world)
        order = train_order(*size, recipe.seed, start, stop, *of_process)
        return map(one_size, self.raw_batches(order))

    def evaluation(self, pixels: bool = False) -> Iterator[list[Batch]]:
        """The process's share of the source, from the beginning at each call: for each
        `eval_batch_size` of images a batch of each size there is. pixels: see Batch."""
        return (self.ready(raws, pixels) for raws in self.raw_evaluation())

    def first_evaluation(self) -> list[Batch]:
        """What `evaluation` begins with, made in this process."""
        first = self.raw_batches(islice(self.eval_order(), 1), workers=0)
        return self.ready(next(first, []))

    def ready(self, raws: Iterable[RawBatch], pixels: bool = False) -> list[Batch]:
        """Batches of an evaluation, ready for the model."""
        return [batch for raw in raws for batch in self.preprocess(raw, pixels=pixels)]

    def eval_order(self) -> Iterator[np.ndarray]:
        """(0, index) of the images that the process sees in an evaluation, batch by batch."""
        size = len(self.source), self.recipe.eval_batch_size
        return eval_order(*size, self.worker.rank, self.worker.world)

    def raw_evaluation(self) -> Iterator[list[RawBatch]]:
        """The batches of an evaluation before they are normalised; kept in memory if they fit."""
        if self.kept is not None:
            yield from self.kept
            return
        found, size = [], 0
        for raws in self.raw_batches(self.eval_order()):
            size += sum(raw.images.nbytes + raw.target.nbytes for raw in raws)
            if self.keeps and size <= KEPT_BYTES:
                found.append(raws)
            yield raws
        if self.keeps and size <= KEPT_BYTES:
            self.kept = found

    def raw_batches(
        self, order: Iterable[np.ndarray], workers: int | None = None
    ) -> Iterator[list[RawBatch]]:
        """The batches of an order, augmented, each a list of one for each size of images. On a GPU
        they are made ahead, beside the step. workers: of this order, where not as planned."""
        device = self.worker.device
        on_gpu = device.type == "cuda"
        if self.store is None:
            workers = self.worker.workers if workers is None else workers
            return make_loader(self.images, order, workers, on_gpu)
        made = self.augmented_at_once(iter(order), on_gpu)
        return ahead(made, device) if on_gpu else made

    def augmented_at_once(
        self, order: Iterator[np.ndarray], on_gpu: bool
    ) -> Iterator[list[RawBatch]]:
        """Many batches in one call: it costs little more than one batch, and keeps a GPU busy."""
        most = BYTES_AT_ONCE // max(self.store.images[0].nbytes, 1)
        count = min(IMAGES_AT_ONCE[on_gpu], most)
        for first in order:
            group = [first, *islice(order, max(count // len(first) - 1, 0))]
            made = self.store(self.plan, np.concatenate(group))
            lengths = [len(items) for items in group]
            for piece in zip(*(tensor.split(lengths) for tensor in made), strict=True):
                yield [RawBatch(*piece)]

    def preprocess(
        self, raw: RawBatch, step: int = 0, parts: int = 1, pixels: bool = False
    ) -> list[Batch]:
        """A batch on the device: mixed as a whole, then in micro-batches normalised and erased.

        The micro-batches, `parts` of them, keep mirror pairs together. Masks become class ids.
        pixels: whether a batch keeps its images as they were, too.
        """
        device = self.worker.device
        images, target = to_device(raw.images, device), to_device(raw.target, device)
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
        addresses = items
        versions = images.shape[1] if images.dim() == 5 else 1
        if images.dim() == 5:
            images, rows = chosen(images, rows).transpose(0, 1).flatten(0, 1), None
            target = target.repeat(versions)
            items = torch.cat([items + items.new_tensor([0, v << 40]) for v in range(versions)])
        channels_last = self.recipe.channels_last
        if self.table is None:
            made = normalize(chosen(images, rows), *self.mean_std)
        else:  # the same bits, in one pass
            some = np.arange(len(images)) if rows is None else rows.numpy()
            pixels_last = images.permute(0, 2, 3, 1).contiguous().numpy()
            threads = self.worker.threads
            looked_up = cpu.normalize(pixels_last, some, self.table, channels_last, threads)
            made = torch.from_numpy(looked_up)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        made = self.erase(made, items).contiguous(memory_format=layout)
        kept = chosen(images, rows) if pixels else None
        return Batch(made, target, kept, addresses, versions)


def one_size(batches: Sequence[RawBatch]) -> RawBatch:
    """The only one of `collate`'s batches; UserError if there are several."""
    if len(batches) > 1:
        raise sizes_differ([batch.images.shape[-2:] for batch in batches])
    return batches[0]


def sizes_differ(sizes: Sequence[Sequence[int]]) -> UserError:
    """The error for training images of several (height, width)."""
    shown = ", ".join(f"{width}x{height}" for height, width in sizes[:3])
    return UserError(
        f"training images of different sizes in one batch ({shown}); end `augment` with a crop or "
        "resize to one size."
    )


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, (x/255 - mean) / std per channel, as timm's loader does it.

    mean, std: of `mean_std`, on the images' device.
    """
    return images.float().sub_(mean).div_(std)


def mean_std(recipe: Recipe) -> list[Tensor]:
    """Mean and standard deviation of each channel, of pixels in 0 … 255: float32 (3, 1, 1)."""
    return [torch.tensor([255 * x for x in values]).view(3, 1, 1) for values in colours(recipe)]


def colours(recipe: Recipe) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of pixels in 0 … 1."""
    given = recipe.normalize
    return (given.mean, given.std) if isinstance(given, Colours) else COLOURS[given]


# -- which images, in which order ------------------------------------------------------------------


def part(n: int, index: int, parts: int) -> np.ndarray:
    """Positions of part `index` of `parts` of a batch of n: mirror pairs, in mirror order.

    n must divide by `parts`; with an even n/parts every pair stays whole.
    """
    size = n // parts
    half = size // 2
    if size % 2 and parts > 1:  # pairs are torn: contiguous slices, fine where nothing is mixed
        return np.arange(index * size, (index + 1) * size)
    front = np.arange(index * half, (index + 1) * half)
    middle = np.arange(half, half + size % 2)
    return np.concatenate([front, middle, n - 1 - front[::-1]])


def train_order(
    n: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
) -> Iterator[np.ndarray]:
    """(epoch, index) of each image of a process's batches from step `start` to `stop`: int64
    (B, 2). Each epoch drops what is left of the n images after its last whole batch."""
    mine = part(batch_size, rank, world)
    current, permutation = -1, np.empty(0)
    for step in range(start, stop):
        epoch, position = divmod(step, n // batch_size)
        if epoch != current:
            current, permutation = epoch, order(seed, epoch, n)
        batch = permutation[position * batch_size :][:batch_size]
        yield np.stack([np.full(len(mine), epoch), batch[mine]], 1)


def eval_order(n: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[np.ndarray]:
    """(0, index) of each image of a process's batches of an evaluation: int64 (B, 2).

    Whole batches, to each process in turn: each keeps its shape, so no count or bit depends on how
    many processes there are, and nothing is padded.
    """
    for first in range(rank * batch_size, n, world * batch_size):
        indices = np.arange(first, min(first + batch_size, n))
        yield np.stack([np.zeros_like(indices), indices], 1)


# -- images in arrays ------------------------------------------------------------------------------


class Store:
    """The images and targets (masks, if it is dense) of a source in arrays, augmented where they
    lie: in the machine's memory, a mapped file, or the GPU's memory.

    memory: `device`, `host`, or `auto` for the first if they take a quarter of what is free there.
    """

    def __init__(self, source: Source, device: torch.device, memory: str, threads: int):
        self.device, self.threads = device, threads
        under: Any = source
        self.rows = np.arange(len(source))
        while isinstance(under, Subset):
            under, self.rows = under.source, np.asarray(under.indices)[self.rows]
        # plain arrays over the same memory, whatever kind of mapping it was
        arrays = [np.asarray(under.images), np.asarray(under.masks) if under.dense else None]
        if device.type == "cuda" and memory != "host":
            size = sum(array.nbytes for array in arrays if array is not None)
            if memory == "device" or size < torch.cuda.mem_get_info(device)[0] / 4:
                arrays = [a if a is None else torch.tensor(a, device=device) for a in arrays]
        self.images, self.masks = arrays
        self.targets = torch.tensor(under.targets, device=device)

    def __call__(self, plan: AugmentationPlan, items: np.ndarray) -> RawBatch:
        """The images `items` int64 (B, 2), augmented, and their targets."""
        rows = self.rows[items[:, 1]]
        ops = plan.ops(items, tuple(self.images.shape[1:3]))
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            images = tensors.apply(self.taken(self.images, rows).permute(0, 3, 1, 2), ops)
        else:
            images = torch.from_numpy(cpu.apply(self.images, rows, ops, self.threads))
            images = images.permute(0, 3, 1, 2)
        if self.masks is None:
            target = self.taken(self.targets, rows)
        elif on_gpu:
            moving = cpu.of_masks(ops)
            target = tensors.apply(self.taken(self.masks, rows)[:, None], moving)[:, 0]
        else:
            target = torch.from_numpy(cpu.apply_to_masks(self.masks, rows, ops))
        return RawBatch(images, target, torch.from_numpy(items))

    def taken(self, values: np.ndarray | Tensor, rows: np.ndarray) -> Tensor:
        """Some rows of the images, masks or targets, on the device."""
        if isinstance(values, Tensor):
            return values[to_device(rows, values.device)]
        return to_device(values[rows], self.device)


def ahead(batches: Iterator[list[RawBatch]], device: torch.device) -> Iterator[list[RawBatch]]:
    """Queue each batch on a stream of its own, one before it is needed, beside the step."""
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(main)  # the pixels may still be on their way

    def queued() -> list[RawBatch] | None:
        with torch.cuda.stream(side):
            return next(batches, None)

    upcoming = queued()
    while upcoming is not None:
        main.wait_stream(side)
        for raw in upcoming:
            raw.images.record_stream(main)
            raw.target.record_stream(main)
        current, upcoming = upcoming, queued()
        yield current


def chosen(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows of a tensor (B, …), or all of them. Images that lie as (B, H, W, 3) are copied as
    whole blocks, twenty times faster than by index."""
    if rows is None:
        return tensor
    rows = to_device(rows, tensor.device)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)

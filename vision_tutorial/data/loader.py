"""Which process sees which image when, and how it gets there.

The order is a function of (seed, epoch), the images of (seed, epoch, index); a loader that starts
in the middle is as good as one that ran through. A global batch is split in mirror pairs: whoever
takes position i also takes B-1-i. CutMix and Mixup pair i with B-1-i, so a mixed batch is the same
set of images for every number of processes, micro-batches and shards.
"""

import ctypes
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

from ..core import arrays as folder
from ..core.errors import UserError
from ..core.randomness import address, order
from ..core.registry import datasets
from ..core.sources import ArraySource, Source, Subset, check_split
from .augmentation.operation import AugmentationPlan
from .executors import tensors
from .executors.dispatch import carry_out, carry_out_masks, of_masks

Item = Sequence[int]  # epoch, index


class RawBatch(NamedTuple):
    """A batch as it leaves the loader: images uint8 (B, 3, H, W), or (B, V, 3, H, W) in V versions;
    target ids (B,) or masks uint8 (B, H, W); items (B, 2), (epoch, index) of each, on the CPU."""

    images: Tensor
    target: Tensor
    items: Tensor


def chosen(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows of a tensor (B, …), or all of them. Images that lie as (B, H, W, 3) are copied as
    whole blocks, twenty times faster than by index."""
    if rows is None:
        return tensor
    rows = rows.to(tensor.device)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)


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


# -- one image at a time ---------------------------------------------------------------------------


def by_references(
    transforms: Sequence[Callable],
    seed: int,
    image: Image.Image,
    item: Item,
    copies: int = 0,
    of_copies: Sequence[Callable] = (),
) -> Tensor:
    """An image through transforms that draw from the global generators, timm's way; they are seeded
    by its address. -> uint8 (3, H, W); or (1 + copies, 3, H, W), copies with `of_copies` as well.
    """
    seed_generators(address(seed, *item, "augment"))
    image = tv.Compose(transforms)(image)
    versions = [image, *(tv.Compose(of_copies)(image) for _ in range(copies))]
    made = [torch.from_numpy(np.array(one, np.uint8)).permute(2, 0, 1) for one in versions]
    return torch.stack(made) if copies else made[0]


def by_plan(plan: AugmentationPlan, image: Image.Image, item: Item) -> Tensor:
    """The batched form on one image of any size, as a worker decodes it -> uint8 (3, h, w)."""
    pixels = np.asarray(image)[None]
    ops = plan.ops(np.array([item]), pixels.shape[1:3])
    return carry_out(pixels, np.zeros(1, np.int64), ops, threads=1)[0]


class AugmentedImages(Dataset):
    """(epoch, index) -> image tensor, target; every draw is addressed, nothing is remembered.

    `augment` takes (image, item); for a dense source (image, mask, item), and returns both.
    """

    def __init__(self, source: Source, augment: Callable):
        self.source, self.augment = source, augment

    def __getitem__(self, item: Item) -> tuple[Tensor, Any, Item] | UserError:
        _, index = item
        try:
            image, target = self.source[index]
        except UserError as error:
            # raised here, a worker would wrap it in a page of traceback
            return UserError(f"{self.source.name}, image {index}: {error}")
        if not self.source.dense:
            return self.augment(image, item), target, item
        if target.shape != (image.height, image.width):
            height, width = target.shape
            return UserError(
                f"{self.source.name}, {self.source.key(index)}: {image.width}x{image.height} "
                f"pixels, but its mask has {width}x{height}; they must be alike."
            )
        return *self.augment(image, target, item), item


def seed_generators(number: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU): timm's transforms use them."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


def collate(samples: list[Any]) -> RawBatch | UserError:
    """Samples -> one batch; the first unreadable image speaks for all."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    images, targets, items = zip(*samples, strict=True)
    sizes = {tuple(image.shape[-3:]) for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h}" for _, h, w in sorted(sizes)[:3])
        return UserError(
            f"images of different sizes in one batch ({shown}, …); end `augment` and "
            "`eval_augment` with a crop or resize to one size."
        )
    # They lie as (H, W, 3), and stay so: whole blocks are copied then.
    batch = torch.stack([image.movedim(-3, -1) for image in images]).movedim(-1, -3)
    return RawBatch(batch, torch.as_tensor(np.array(targets)), torch.tensor(items))


def make_loader(
    images: AugmentedImages, batches: Iterable[np.ndarray], workers: int, pin: bool
) -> Iterator[RawBatch]:
    """Batches in the given order. UserError names an image that cannot be read."""
    loader = DataLoader(
        images,
        batch_sampler=(items.tolist() for items in batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_worker_started,
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _worker_started(_: int) -> None:
    """A worker leaves signals to its parent, dies with it, and computes on one thread."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


# -- whole batches ---------------------------------------------------------------------------------


@datasets.register
def arrays(split: str, *, root: str, verify: bool | Literal["auto"] = "auto") -> ArraySource:
    """A folder that `vision-tutorial pack` made: mapped, so it may be larger than the memory."""
    check_split(split)
    return folder.load(Path(root).expanduser(), split, verify)


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
            images = carry_out(self.images, rows, ops, self.threads)
        if self.masks is None:
            target = self.taken(self.targets, rows)
        elif on_gpu:
            target = tensors.apply(self.taken(self.masks, rows)[:, None], of_masks(ops))[:, 0]
        else:
            target = torch.from_numpy(carry_out_masks(self.masks, rows, ops))
        return RawBatch(images, target, torch.from_numpy(items))

    def taken(self, values: np.ndarray | Tensor, rows: np.ndarray) -> Tensor:
        """Some rows of the images, masks or targets, on the device."""
        if isinstance(values, Tensor):
            return values[torch.from_numpy(rows).to(values.device)]
        return torch.from_numpy(values[rows]).pin_memory().to(self.device, non_blocking=True)


def ahead(batches: Iterator[RawBatch], device: torch.device) -> Iterator[RawBatch]:
    """Queue each batch on a stream of its own, one before it is needed, beside the step."""
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(main)  # the pixels may still be on their way

    def queued() -> RawBatch | None:
        with torch.cuda.stream(side):
            return next(batches, None)

    upcoming = queued()
    while upcoming is not None:
        main.wait_stream(side)
        for tensor in (upcoming.images, upcoming.target):
            tensor.record_stream(main)
        current, upcoming = upcoming, queued()
        yield current

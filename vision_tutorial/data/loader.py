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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

from ..core.errors import UserError
from ..core.randomness import address, order
from ..core.sources import Source

Transform = Callable[[Image.Image], Image.Image]
Item = tuple[int, int]  # (epoch, index)


@dataclass
class RawBatch:
    """A batch as it leaves the loader: images uint8 (B, 3, H, W), or (B, V, 3, H, W) in V versions;
    target ids (B,) or masks uint8 (B, H, W); items (B, 2), (epoch, index) of each, on the CPU."""

    images: Tensor
    target: Tensor
    items: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def map(self, change: Callable[[Tensor], Tensor]) -> "RawBatch":
        """The same batch with `change` applied to each tensor."""
        return RawBatch(change(self.images), change(self.target), change(self.items))

    def pin_memory(self) -> "RawBatch":
        """DataLoader calls this to speed up the way to a GPU."""
        return self.map(Tensor.pin_memory)

    def parts(self, count: int) -> "list[RawBatch]":
        """`count` micro-batches that keep mirror pairs together."""
        if count == 1:
            return [self]
        rows = (torch.from_numpy(part(len(self), i, count)) for i in range(count))
        return [self.map(partial(chosen, rows=row)) for row in rows]

    def split(self, lengths: Sequence[int]) -> "list[RawBatch]":
        """Consecutive batches of these lengths."""
        pieces = (tensor.split(lengths) for tensor in (self.images, self.target, self.items))
        return [RawBatch(*piece) for piece in zip(*pieces, strict=True)]


def chosen(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows of a tensor (B, …), or all of them. Images that lie as (B, H, W, 3) are copied as
    whole blocks, twenty times faster than by index."""
    if rows is None:
        return tensor
    rows = rows.to(tensor.device)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)


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


@dataclass(frozen=True)
class TrainOrder:
    """The batches of one process from step `start` to `stop`, across epochs; drops the rest."""

    n: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Item]]:
        return (list(map(tuple, batch.tolist())) for batch in self.items())

    def items(self) -> Iterator[np.ndarray]:
        """(epoch, index) of each image of a batch, int64 (B, 2)."""
        mine = part(self.batch_size, self.rank, self.world)
        steps = self.n // self.batch_size
        current, permutation = -1, np.empty(0)
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, steps)
            if epoch != current:
                current, permutation = epoch, order(self.seed, epoch, self.n)
            batch = permutation[position * self.batch_size :][: self.batch_size]
            yield np.stack([np.full(len(mine), epoch), batch[mine]], 1)


@dataclass(frozen=True)
class EvalOrder:
    """Whole batches, to each process in turn: each keeps its shape, so no count or bit depends on
    how many processes there are, and nothing is padded."""

    n: int
    batch_size: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return len(range(self.rank * self.batch_size, self.n, self.world * self.batch_size))

    def __iter__(self) -> Iterator[list[Item]]:
        return (list(map(tuple, batch.tolist())) for batch in self.items())

    def items(self) -> Iterator[np.ndarray]:
        """(0, index) of each image of a batch, int64 (B, 2)."""
        for first in range(self.rank * self.batch_size, self.n, self.world * self.batch_size):
            indices = np.arange(first, min(first + self.batch_size, self.n))
            yield np.stack([np.zeros_like(indices), indices], 1)


@dataclass(frozen=True)
class PerImage:
    """One image at a time through transforms that draw from the global generators: timm's way.

    They are seeded by the image's address. Each image gets `transforms`; then come `copies` of
    it that get `of_copies` as well.
    """

    transforms: Sequence[Transform]
    seed: int
    copies: int = 0
    of_copies: Sequence[Transform] = ()

    def __call__(self, image: Image.Image, item: Item) -> Tensor:
        """uint8 (3, H, W), or (V, 3, H, W) in V versions."""
        seed_generators(address(self.seed, *item, "augment"))
        image = tv.Compose(self.transforms)(image)
        copies = [tv.Compose(self.of_copies)(image) for _ in range(self.copies)]
        made = [np.array(one, np.uint8) for one in (image, *copies)]
        tensors = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in made]
        return torch.stack(tensors) if self.copies else tensors[0]


class AugmentedImages(Dataset):
    """(epoch, index) -> image tensor, target; every draw is addressed, nothing is remembered.

    `augment` takes (image, item); for a dense source (image, mask, item), and returns both.
    """

    def __init__(self, source: Source, augment: Callable):
        self.source, self.augment = source, augment

    def __len__(self) -> int:
        return len(self.source)

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
    images: AugmentedImages, batches: TrainOrder | EvalOrder, workers: int, pin: bool
) -> Iterator[RawBatch]:
    """Batches in the given order. UserError names an image that cannot be read."""
    loader = DataLoader(
        images,
        batch_sampler=batches,
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

"""Where the pixels of a source lie, and batches of them augmented there.

Pixels lie on the GPU if they fit, else in the machine's memory or in a mapped file. Only indices
cross from the order of an epoch to here. Which code carries out the slots makes no difference to
the bits: `compiled.py` on the CPU, `tensors.py` on a GPU or where numba is missing.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.sources import ArraySource, Source, Subset, base
from .augmentation import mask_ops
from .augmentation.batched_ops import BatchedOp
from .augmentation.operation import AugmentationPlan
from .executors import tensors
from .loader import Item, RawBatch

logger = logging.getLogger(__name__)


@cache
def has_numba() -> bool:
    """Whether the compiled path is there; numba refuses a NumPy that is too new for it."""
    try:
        import numba  # noqa: F401
    except ImportError:
        logger.warning("no numba here: images are augmented by torch, several times slower")
        return False
    return True


def carry_out(
    images: np.ndarray, rows: np.ndarray, slots: Sequence[BatchedOp], threads: int
) -> Tensor:
    """Images `rows` of images uint8 (N, H, W, 3) after `slots`, on the CPU: (B, 3, h, w)."""
    if has_numba():
        from .executors import compiled

        made = torch.from_numpy(compiled.apply(images, rows, slots, threads))
        return made.permute(0, 3, 1, 2)
    chosen = torch.from_numpy(images[rows]).permute(0, 3, 1, 2)
    return tensors.apply(chosen, slots)


@dataclass(frozen=True)
class OneImage:
    """The batched form for one image of any size, as the loader's workers decode them."""

    plan: AugmentationPlan

    def __call__(self, image: Image.Image, item: Item) -> Tensor:
        """uint8 (3, h, w)."""
        pixels = np.asarray(image)[None]
        slots = self.plan.ops(np.array([item]), pixels.shape[1:3])
        return carry_out(pixels, np.zeros(1, np.int64), slots, threads=1)[0]


class Store:
    """The pixels and targets (masks, if it is dense) of a source in memory, or in a mapped file."""

    def __init__(self, source: Source, device: torch.device, memory: str, threads: int):
        """memory: `device`, `host`, or `auto` for the first where the images fit."""
        arrays, self.rows = unfolded(source)
        self.device, self.threads = device, threads
        self.targets = torch.from_numpy(np.ascontiguousarray(source.targets)).to(device)
        # a plain array over the same memory, whatever kind of mapping it was
        self.images: np.ndarray | Tensor = np.asarray(arrays.images)
        self.masks = np.asarray(arrays.masks) if source.dense else None
        if device.type == "cuda" and (memory == "device" or memory == "auto" and self.fits()):
            self.images = torch.tensor(self.images, device=device)  # may be mapped read-only
            self.masks = None if self.masks is None else torch.tensor(self.masks, device=device)

    def fits(self) -> bool:
        """Whether images and masks take less than a quarter of the GPU's free memory."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.images.nbytes + (0 if self.masks is None else self.masks.nbytes) < free / 4

    def __call__(self, plan: AugmentationPlan, items: np.ndarray) -> RawBatch:
        """The images `items` int64 (B, 2), augmented, and their targets."""
        chosen = items[:, 1]
        slots = plan.ops(items, tuple(self.images.shape[1:3]))
        rows = chosen if self.rows is None else self.rows[chosen]
        if self.masks is None:
            target = self.targets[torch.from_numpy(chosen).to(self.targets.device)]
        else:
            target = self.moved(rows, slots)
        return RawBatch(self.pixels(rows, slots), target, torch.from_numpy(items))

    def pixels(self, rows: np.ndarray, slots: Sequence[BatchedOp]) -> Tensor:
        """uint8 (B, 3, h, w), on the device that will augment or read them."""
        if self.device.type != "cuda":
            return carry_out(self.images, rows, slots, self.threads)
        return tensors.apply(self.on_gpu(self.images, rows).permute(0, 3, 1, 2), slots)

    def moved(self, rows: np.ndarray, slots: Sequence[BatchedOp]) -> Tensor:
        """Masks uint8 (B, h, w), likewise."""
        if self.device.type != "cuda":
            return torch.from_numpy(mask_ops.carried_out(self.masks, rows, slots))
        chosen = self.on_gpu(self.masks, rows)[:, None]
        return tensors.apply(chosen, mask_ops.of_masks(slots))[:, 0]

    def on_gpu(self, values: np.ndarray | Tensor, rows: np.ndarray) -> Tensor:
        """Some rows of the images or masks."""
        if isinstance(values, Tensor):
            return values[torch.from_numpy(rows).to(self.device)]
        pinned = torch.from_numpy(values[rows]).pin_memory()
        return pinned.to(self.device, non_blocking=True)


def unfolded(source: Source) -> tuple[ArraySource, np.ndarray | None]:
    """The arrays under any subsets, and which of their rows the source has (None: all)."""
    if not isinstance(source, Subset):
        return source, None
    arrays, rows = unfolded(source.source)
    return arrays, source.indices if rows is None else rows[source.indices]


def is_array(source: Source) -> bool:
    """Whether the images lie in arrays, under any subsets."""
    return isinstance(base(source), ArraySource)


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

"""Where the pixels of a source lie, and batches of them augmented there.

Pixels lie on the GPU if they fit, else in the machine's memory or in a mapped file. Only indices
cross from the order of an epoch to here. Which code carries out the slots makes no difference to
the bits: `compiled.py` on the CPU, `tensors.py` on a GPU or where numba is missing.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.sources import ArraySource, Source, Subset, base
from ..core.task import VOID
from .augmentation.operation import AugmentationPlan, BatchedOp, Filter, Op
from .executors import tensors
from .loader import Item, RawBatch

FILTER_PLACES = {Op.RESAMPLE: 4, Op.AFFINE: 6}  # the operations with a filter, and its place
MOVING = (*FILTER_PLACES, Op.WINDOW, Op.HFLIP, Op.VFLIP)
AS_MASK = np.array([op if op in MOVING else Op.NONE for op in Op])  # code -> what a mask takes

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
            return torch.from_numpy(carry_out_masks(self.masks, rows, slots))
        chosen = self.on_gpu(self.masks, rows)[:, None]
        return tensors.apply(chosen, of_masks(slots))[:, 0]

    def on_gpu(self, values: np.ndarray | Tensor, rows: np.ndarray) -> Tensor:
        """Some rows of the images or masks."""
        if isinstance(values, Tensor):
            return values[torch.from_numpy(rows).to(self.device)]
        pinned = torch.from_numpy(values[rows]).pin_memory()
        return pinned.to(self.device, non_blocking=True)


# -- masks: what their images' operations do to them, as far as these move pixels ------------------
# A mask takes the nearest pixel, and VOID where nothing of the image is: no label is new to it.


def of_masks(slots: Sequence[BatchedOp]) -> list[BatchedOp]:
    """Slots for whoever carries out images, that do to masks (B, 1, H, W) what is done here."""
    return [of_mask(slot) for slot in slots if AS_MASK[slot.codes].any()]


def of_mask(slot: BatchedOp) -> BatchedOp:
    """Nothing but movement, by the nearest pixel, with VOID from outside."""
    args = slot.args.copy()
    for op, place in FILTER_PLACES.items():
        args[slot.codes == op, place] = Filter.NEAREST
    return replace(slot, codes=AS_MASK[slot.codes], args=args, fill=(VOID,) * 3)


def carry_out_masks(masks: np.ndarray, rows: np.ndarray, slots: Sequence[BatchedOp]) -> np.ndarray:
    """Masks `rows` of masks uint8 (N, H, W) after the slots of their images: (B, h, w)."""
    out = np.empty((len(rows), *(slots[-1].size if slots else masks.shape[1:])), np.uint8)
    for i, row in enumerate(rows):
        mask = masks[row]
        for slot in slots:
            mask = move_mask(mask, slot.codes[i], slot.args[i], slot)
        out[i] = mask
    return out


def move_mask(mask: np.ndarray, code: int, args: np.ndarray, slot: BatchedOp) -> np.ndarray:
    """One mask uint8 (H, W) after one operation of `slot` with its arguments (ARGUMENTS,)."""
    if code == Op.HFLIP:
        return mask[:, ::-1]
    if code == Op.VFLIP:
        return mask[::-1]
    if code == Op.RESAMPLE:
        top, left, height, width = args[:4].astype(int)
        part = Image.fromarray(mask[top : top + height, left : left + width])
        return np.asarray(part.resize(slot.size[::-1], Image.Resampling.NEAREST))
    if code == Op.WINDOW:
        return window(mask, *args[:2].astype(int), slot)
    if code == Op.AFFINE:
        turned = Image.fromarray(mask).transform(
            slot.size[::-1], Image.Transform.AFFINE, tuple(args[:6].tolist()), fillcolor=VOID
        )
        return np.asarray(turned)
    return mask


def window(mask: np.ndarray, top: int, left: int, slot: BatchedOp) -> np.ndarray:
    """A window of slot.size into the mask whose padding slot.rows and .columns describe."""
    rows = slot.rows[top : top + slot.size[0]]
    columns = slot.columns[left : left + slot.size[1]]
    found = mask[rows][:, columns]
    found[rows < 0] = VOID
    found[:, columns < 0] = VOID
    return found


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

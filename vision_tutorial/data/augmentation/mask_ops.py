"""What happens to masks: the slots of their images, as far as these move pixels.

A mask takes the nearest pixel, never a blend of two, and is VOID where nothing of the image is:
so it has no label that it did not have before, and lies on its image as it lay on the original.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ...core.targets import VOID
from .batched_ops import BatchedOp, Filter, Op

FILTERS = {Op.RESAMPLE: 4, Op.AFFINE: 6}  # the operations with a filter, and its place
MOVING = (*FILTERS, Op.WINDOW, Op.HFLIP, Op.VFLIP)
AS_MASK = np.array([op if op in MOVING else Op.NONE for op in Op])  # code -> what a mask takes


def of_masks(slots: Sequence[BatchedOp]) -> list[BatchedOp]:
    """Slots for whoever carries out images, that do to masks (B, 1, H, W) what is done here."""
    return [of_mask(slot) for slot in slots if AS_MASK[slot.codes].any()]


def of_mask(slot: BatchedOp) -> BatchedOp:
    """Nothing but movement, by the nearest pixel, with VOID from outside."""
    args = slot.args.copy()
    for op, place in FILTERS.items():
        args[slot.codes == op, place] = Filter.NEAREST
    return replace(slot, codes=AS_MASK[slot.codes], args=args, fill=(VOID,) * 3)


def carried_out(masks: np.ndarray, rows: np.ndarray, slots: Sequence[BatchedOp]) -> np.ndarray:
    """Masks `rows` of masks uint8 (N, H, W) after the slots of their images: (B, h, w)."""
    out = np.empty((len(rows), *(slots[-1].size if slots else masks.shape[1:])), np.uint8)
    for i, row in enumerate(rows):
        mask = masks[row]
        for slot in slots:
            mask = moved(mask, slot.codes[i], slot.args[i], slot)
        out[i] = mask
    return out


def moved(mask: np.ndarray, code: int, args: np.ndarray, slot: BatchedOp) -> np.ndarray:
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

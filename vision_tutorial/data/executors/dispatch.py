"""Which code carries out the operations of a batch; none of it makes a difference to the bits.

Images: `compiled.py` on the CPU; `tensors.py` on a GPU, or where numba is missing. Masks: Pillow on
the CPU, `tensors.py` on a GPU. A mask takes the operations of its image that move pixels, by the
nearest pixel, and VOID where nothing of the image is: no label is new to it.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.images import VOID
from ..augmentation.operation import BatchedOp, Filter, Op
from . import tensors

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
    images: np.ndarray, rows: np.ndarray, ops: Sequence[BatchedOp], threads: int
) -> Tensor:
    """Images `rows` of images uint8 (N, H, W, 3) after `ops`, on the CPU: (B, 3, h, w)."""
    if has_numba():
        from . import compiled

        made = torch.from_numpy(compiled.apply(images, rows, ops, threads))
        return made.permute(0, 3, 1, 2)
    return tensors.apply(torch.from_numpy(images[rows]).permute(0, 3, 1, 2), ops)


def carry_out_masks(masks: np.ndarray, rows: np.ndarray, ops: Sequence[BatchedOp]) -> np.ndarray:
    """Masks `rows` of masks uint8 (N, H, W) after the ops of their images, on the CPU."""
    out = np.empty((len(rows), *(ops[-1].size if ops else masks.shape[1:])), np.uint8)
    for i, row in enumerate(rows):
        mask = masks[row]
        for op in ops:
            mask = _moved(mask, op.codes[i], op.args[i], op)
        out[i] = mask
    return out


def _moved(mask: np.ndarray, code: int, args: np.ndarray, op: BatchedOp) -> np.ndarray:
    """One mask (H, W) after one operation of `op`, with its arguments (ARGUMENTS,)."""
    if code == Op.HFLIP:
        return mask[:, ::-1]
    if code == Op.VFLIP:
        return mask[::-1]
    if code == Op.RESAMPLE:
        top, left, height, width = args[:4].astype(int)
        part = Image.fromarray(mask[top : top + height, left : left + width])
        return np.asarray(part.resize(op.size[::-1], Image.Resampling.NEAREST))
    if code == Op.WINDOW:
        top, left = args[:2].astype(int)
        rows = op.rows[top : top + op.size[0]]
        columns = op.columns[left : left + op.size[1]]
        outside = (rows < 0)[:, None] | (columns < 0)
        return np.where(outside, np.uint8(VOID), mask[rows][:, columns])
    if code == Op.AFFINE:
        turned = Image.fromarray(mask).transform(
            op.size[::-1], Image.Transform.AFFINE, tuple(args[:6].tolist()), fillcolor=VOID
        )
        return np.asarray(turned)
    return mask


def of_masks(ops: Sequence[BatchedOp]) -> list[BatchedOp]:
    """Ops for `tensors.apply` that do to masks (B, 1, H, W) what `carry_out_masks` does."""
    moving = []
    for op in ops:
        args = op.args.copy()
        for code, place in FILTER_PLACES.items():
            args[op.codes == code, place] = Filter.NEAREST
        if AS_MASK[op.codes].any():
            moving.append(replace(op, codes=AS_MASK[op.codes], args=args, fill=(VOID,) * 3))
    return moving

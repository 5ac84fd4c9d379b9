"""Batched operations on the CPU: by numba, or by torch where it is missing, to the same bits; masks
by Pillow. A mask takes the operations of its image that move pixels, by the nearest pixel, and VOID
where nothing of the image is: no label is new to it.

`compiled.py` has the loops. Here the operations of a batch are packed, and its images handed out
to threads: numba lets go of Python's lock. The first call on a machine compiles for some seconds;
the result is kept beside the source, or in the user's cache.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...core.images import VOID
from ..augmentation.operation import BatchedOp, Filter, Op
from . import tensors

SHARE = 128 * 32 * 32  # pixels that are worth a thread
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


def apply(
    images: np.ndarray, rows: np.ndarray, ops: Sequence[BatchedOp], threads: int = 1
) -> np.ndarray:
    """Images `rows` (B,) of images uint8 (N, H, W, 3), after `ops`: (B, h, w, 3)."""
    if not ops:
        return np.take(images, rows, axis=0)
    if not has_numba():
        made = tensors.apply(torch.from_numpy(images[rows]).permute(0, 3, 1, 2), ops)
        return made.permute(0, 2, 3, 1).numpy()
    from .compiled import run

    _announce()
    codes, args = np.stack([op.codes for op in ops]), np.stack([op.args for op in ops])
    sizes = np.array([images.shape[1:3], *(op.size for op in ops)])
    fills = np.array([op.fill for op in ops], np.uint8)
    lines = np.full((len(ops), 2, max(max(len(op.rows), len(op.columns)) for op in ops)), -1)
    for line, op in zip(lines, ops, strict=True):
        line[0, : len(op.rows)], line[1, : len(op.columns)] = op.rows, op.columns
    out = np.empty((len(rows), *ops[-1].size, 3), np.uint8)
    images = images.view()
    images.flags.writeable = False  # one type for numba, wherever the pixels lie
    pixels = max(sizes[0].prod(), sizes[-1].prod())
    packed = codes, args, sizes, fills, lines
    _in_parts(len(rows), pixels, threads, lambda a, b: run(images, rows, a, b, out, *packed))
    return out


def apply_to_masks(masks: np.ndarray, rows: np.ndarray, ops: Sequence[BatchedOp]) -> np.ndarray:
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
    """Ops for `tensors.apply` that do to masks (B, 1, H, W) what `apply_to_masks` does."""
    moving = []
    for op in ops:
        args = op.args.copy()
        for code, place in FILTER_PLACES.items():
            args[op.codes == code, place] = Filter.NEAREST
        if AS_MASK[op.codes].any():
            moving.append(replace(op, codes=AS_MASK[op.codes], args=args, fill=(VOID,) * 3))
    return moving


def normalize(
    images: np.ndarray, rows: np.ndarray, table: np.ndarray, channels_last: bool, threads: int = 1
) -> np.ndarray:
    """Images `rows` (B,) of uint8 (N, H, W, 3) -> float32 (B, 3, H, W) by table (3, 256)."""
    from .compiled import look_up

    size = images.shape[1:3]
    out = np.empty((len(rows), *size, 3) if channels_last else (len(rows), 3, *size), np.float32)
    work = lambda a, b: look_up(images, rows[a:b], table, channels_last, out[a:b])  # noqa: E731
    _in_parts(len(rows), size[0] * size[1], threads, work)
    return out.transpose(0, 3, 1, 2) if channels_last else out


@cache
def _announce() -> None:
    """Say why the first batch takes long, where nothing is kept on disk yet."""
    from .compiled import run

    if not any(Path(run._cache.cache_path).glob("compiled.runner*.nbc")):
        logger.warning("compiling the augmentations for this machine, once: about half a minute")


def _in_parts(count: int, pixels: int, threads: int, work: Callable[[int, int], None]) -> None:
    """work(first, last) over 0 … count, images of so many pixels, on up to `threads` threads."""
    parts = max(1, min(threads, count, count * pixels // SHARE))
    edges = np.linspace(0, count, parts + 1).astype(int).tolist()
    if parts == 1:
        work(0, count)
    else:
        list(_pool(threads, os.getpid()).map(work, edges[:-1], edges[1:]))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; new ones in a forked process, where the parent's do not live."""
    return ThreadPoolExecutor(threads, "augment")

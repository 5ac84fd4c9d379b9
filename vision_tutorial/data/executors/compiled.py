"""Slots carried out by numba on the CPU: one image at a time, in the processor's cache.

The kernels hold the arithmetic; this file lines up the operations of an image and hands the
images out to threads (numba lets go of Python's lock, so plain threads serve, and nothing is left
behind that a fork would break). The first call on a machine compiles for some seconds; the result
is kept beside the source, or in the user's cache.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from numba import njit

from ...core.randomness import address
from ..augmentation import operation
from ..augmentation.operation import BatchedOp, Op
from . import kernels, kernels_affine, kernels_colour
from .kernels import compiled, copy, mirror, remembering, resample, window
from .kernels_affine import affine
from .kernels_colour import color, look_up, sharpness

logger = logging.getLogger(__name__)

SHARE = 128 * 32 * 32  # pixels that are worth a thread

kept = njit(nogil=True, cache=True, error_model="numpy")
# numba looks at a function's own file only to tell whether what it kept is stale.
PARTS = (kernels, kernels_affine, kernels_colour, operation)
VERSION = address(*(Path(module.__file__).read_text("utf-8") for module in PARTS))
RESAMPLE, WINDOW, AFFINE = int(Op.RESAMPLE), int(Op.WINDOW), int(Op.AFFINE)
HFLIP, VFLIP, COLOR = int(Op.HFLIP), int(Op.VFLIP), int(Op.COLOR)
SHARPNESS, GRAYSCALE = int(Op.SHARPNESS), int(Op.GRAYSCALE)


def apply(
    images: np.ndarray, indices: np.ndarray, slots: Sequence[BatchedOp], threads: int = 1
) -> np.ndarray:
    """The images `indices` (B,) of images uint8 (N, H, W, 3), after `slots`: (B, h, w, 3)."""
    height, width = slots[-1].size if slots else images.shape[1:3]
    out = np.empty((len(indices), height, width, 3), np.uint8)
    if slots:
        announce()
        packed = pack(slots, images.shape[1:3])
        images = images.view()
        images.flags.writeable = False  # one type for numba, wherever the pixels lie
        pixels = max(height * width, images.shape[1] * images.shape[2])
        count = len(indices)
        in_parts(count, pixels, threads, lambda a, b: run(images, indices, a, b, out, *packed))
    else:
        np.take(images, indices, axis=0, out=out)
    return out


def normalize(
    images: np.ndarray, rows: np.ndarray, table: np.ndarray, channels_last: bool, threads: int = 1
) -> np.ndarray:
    """Images `rows` (B,) of uint8 (N, H, W, 3) -> float32 by table (3, 256): (B, H, W, 3), or
    (B, 3, H, W)."""
    count, (height, width) = len(rows), images.shape[1:3]
    shape = (count, height, width, 3) if channels_last else (count, 3, height, width)
    out = np.empty(shape, np.float32)
    fill = look_up_last if channels_last else look_up_first
    pixels = height * width
    in_parts(count, pixels, threads, lambda a, b: fill(images, rows[a:b], table, out[a:b]))
    return out


@cache
def announce() -> None:
    """Say why the first batch takes long, where nothing is kept on disk yet."""
    if not any(Path(run._cache.cache_path).glob(f"{Path(__file__).stem}.runner*.nbc")):
        logger.warning("compiling the augmentations for this machine, once: some fifteen seconds")


def in_parts(count: int, pixels: int, threads: int, work: Callable[[int, int], None]) -> None:
    """work(first, last) over 0 … count, images of so many pixels, on up to `threads` threads."""
    parts = max(1, min(threads, count, count * pixels // SHARE))
    edges = np.linspace(0, count, parts + 1).astype(int).tolist()
    if parts == 1:
        work(0, count)
    else:
        list(pool(threads, os.getpid()).map(work, edges[:-1], edges[1:]))


@cache
def pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; new ones in a forked process, where the parent's do not live."""
    return ThreadPoolExecutor(threads, "augment")


def pack(slots: Sequence[BatchedOp], source: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """codes (S, B), args (S, B, A), sizes (S + 1, 2), fills (S, 3), lines (S, 2, L), how long."""
    codes = np.stack([slot.codes for slot in slots])
    args = np.stack([slot.args for slot in slots])
    sizes = np.array([source, *(slot.size for slot in slots)])
    fills = np.array([slot.fill for slot in slots], np.uint8)
    longest = max(max(len(slot.rows), len(slot.columns)) for slot in slots)
    lines = np.full((len(slots), 2, longest), -1)
    for place, slot in enumerate(slots):
        lines[place, 0, : len(slot.rows)] = slot.rows
        lines[place, 1, : len(slot.columns)] = slot.columns
    return codes, args, sizes, fills, lines


@compiled
def operate(
    code: int,
    args: np.ndarray,
    fill: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    old: np.ndarray,
    mirrored: bool,
    memory: tuple,
    new: np.ndarray,
) -> None:
    """One operation on `old` (H, W, 3), written to `new` (h, w, 3); RESAMPLE also `mirrored`."""
    if code == RESAMPLE:
        resample(old, args, mirrored, memory, new)
    elif code == WINDOW:
        window(old, int(args[0]), int(args[1]), fill, rows, columns, new)
    elif code == HFLIP:
        mirror(old, new)
    elif code == VFLIP:
        for i in range(len(old)):
            copy(old[i].reshape(-1), new[len(old) - 1 - i].reshape(-1))
    elif code == AFFINE:
        affine(old, args, fill, new)
    elif code == COLOR:
        color(old, np.float32(args[0]), new)
    elif code == SHARPNESS:
        sharpness(old, np.float32(args[0]), new)
    elif code == GRAYSCALE:
        color(old, np.float32(0), new)
    else:
        look_up(old, code, args, new)


def runner(version: int) -> Callable:
    """The compiled loop over images; `version`, in its closure, tells numba what is stale."""

    @kept
    def run(images, indices, first, last, out, codes, args, sizes, fills, lines):
        """Images first … last - 1, each through all of its operations, between two buffers."""
        if version == 0:
            return
        height, width = sizes[:, 0].max(), sizes[:, 1].max()
        buffers = np.empty((2, height * width * 3), np.uint8)
        flat, results = images.reshape(len(images), -1), out.reshape(len(out), -1)
        ready, starts, counts, weights = remembering(sizes)
        h0, w0 = sizes[0]
        h1, w1 = sizes[-1]
        for i in range(first, last):
            start = buffers[0, : h0 * w0 * 3]
            old = start.reshape((h0, w0, 3))
            other, skipped = 1, 0
            if codes[0, i] == RESAMPLE:  # from where the image lies: only the crop is read
                h, w = sizes[1]
                old = buffers[0, : h * w * 3].reshape((h, w, 3))
                mirrored = len(codes) > 1 and codes[1, i] == HFLIP
                memory = ready[0], starts[0], counts[0], weights[0]
                resample(images[indices[i]], args[0, i], mirrored, memory, old)
                skipped = 1
            else:
                copy(flat[indices[i]], start)
            for s in range(skipped, len(codes)):
                code = codes[s, i]
                if code == 0 or (code == HFLIP and s > 0 and codes[s - 1, i] == RESAMPLE):
                    continue  # nothing to do, or done with the one before
                mirrored = s + 1 < len(codes) and codes[s + 1, i] == HFLIP
                h, w = sizes[s + 1]
                new = buffers[other, : h * w * 3].reshape((h, w, 3))
                memory = ready[s], starts[s], counts[s], weights[s]
                operate(
                    code, args[s, i], fills[s], lines[s, 0], lines[s, 1], old, mirrored, memory, new
                )
                old, other = new, 1 - other
            copy(old.reshape(h1 * w1 * 3), results[i])

    return run


run = runner(VERSION)


@kept
def look_up_last(images: np.ndarray, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out (B, H, W, 3) = table (3, 256) at images `rows` (B,) of images (N, H, W, 3)."""
    for i in range(len(rows)):
        values, found = images[rows[i]].reshape(-1, 3), out[i].reshape(-1, 3)
        for p in range(len(values)):
            for c in range(3):
                found[p, c] = table[c, values[p, c]]


@kept
def look_up_first(images: np.ndarray, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out (B, 3, H, W) = table (3, 256) at images `rows` (B,) of images (N, H, W, 3)."""
    for i in range(len(rows)):
        image = images[rows[i]]
        for c in range(3):
            for y in range(images.shape[1]):
                for x in range(images.shape[2]):
                    out[i, c, y, x] = table[c, image[y, x, c]]

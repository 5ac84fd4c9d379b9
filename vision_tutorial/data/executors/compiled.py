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
from . import kernels, kernels_colour
from .kernels import NEAREST, affine, copy, mirror, remembering, resample, window
from .kernels_colour import color, look_up, sharpness

logger = logging.getLogger(__name__)

SHARE = 128 * 32 * 32  # pixels that are worth a thread

kept = njit(nogil=True, cache=True, error_model="numpy")
# numba looks at a function's own file only to tell whether what it kept is stale.
PARTS = (kernels, kernels_colour, operation)
VERSION = address(*(Path(module.__file__).read_text("utf-8") for module in PARTS))
NONE, RESAMPLE, WINDOW, AFFINE = map(int, (Op.NONE, Op.RESAMPLE, Op.WINDOW, Op.AFFINE))
HFLIP, VFLIP, COLOR, SHARPNESS = map(int, (Op.HFLIP, Op.VFLIP, Op.COLOR, Op.SHARPNESS))


def apply(
    images: np.ndarray, indices: np.ndarray, slots: Sequence[BatchedOp], threads: int = 1
) -> np.ndarray:
    """The images `indices` (B,) of images uint8 (N, H, W, 3), after `slots`: (B, h, w, 3)."""
    height, width = slots[-1].size if slots else images.shape[1:3]
    out = np.empty((len(indices), height, width, 3), np.uint8)
    if not slots:
        return np.take(images, indices, axis=0, out=out)
    _announce()
    packed = _pack(slots, images.shape[1:3])
    images = images.view()
    images.flags.writeable = False  # one type for numba, wherever the pixels lie
    pixels = max(height * width, images.shape[1] * images.shape[2])
    count = len(indices)
    _in_parts(count, pixels, threads, lambda a, b: run(images, indices, a, b, out, *packed))
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
    _in_parts(count, pixels, threads, lambda a, b: fill(images, rows[a:b], table, out[a:b]))
    return out


@cache
def _announce() -> None:
    """Say why the first batch takes long, where nothing is kept on disk yet."""
    if not any(Path(run._cache.cache_path).glob(f"{Path(__file__).stem}.runner*.nbc")):
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


def _pack(slots: Sequence[BatchedOp], source: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """codes (S, B), args (S, B, A), sizes (S + 1, 2), fills (S, 3), lines (S, 2, L)."""
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


def runner(version: int) -> Callable:
    """The compiled loop over images; `version`, in its closure, tells numba what is stale."""

    @kept
    def run(images, indices, first, last, out, codes, args, sizes, fills, lines):
        """Images first … last - 1, each through all of its operations, between two buffers."""
        if version == 0:
            return
        buffers = np.empty((2, sizes[:, 0].max() * sizes[:, 1].max() * 3), np.uint8)
        flat, results = images.reshape(len(images), -1), out.reshape(len(out), -1)
        ready, spans, weights = remembering(sizes)
        for i in range(first, last):
            h, w = sizes[0]
            old, other, done = buffers[0, : h * w * 3].reshape((h, w, 3)), 1, -1
            copy(flat[indices[i]], old.reshape(-1))
            for s in range(len(codes)):
                code, numbers = codes[s, i], args[s, i]
                if code == NONE or s == done:
                    continue
                h, w = sizes[s + 1]
                new = buffers[other, : h * w * 3].reshape((h, w, 3))
                if code == RESAMPLE:
                    mirrored = s + 1 < len(codes) and codes[s + 1, i] == HFLIP
                    mirrored = mirrored and numbers[4] != NEAREST
                    done = s + 1 if mirrored else done
                    resample(old, numbers, mirrored, (ready[s], spans[s], weights[s]), new)
                elif code == WINDOW:
                    window(old, numbers, fills[s], lines[s], new)
                elif code == HFLIP:
                    mirror(old, new)
                elif code == VFLIP:
                    for y in range(h):
                        copy(old[y].reshape(-1), new[h - 1 - y].reshape(-1))
                elif code == AFFINE:
                    affine(old, numbers, fills[s], new)
                elif code == COLOR:
                    color(old, np.float32(numbers[0]), new)
                elif code == SHARPNESS:
                    sharpness(old, np.float32(numbers[0]), new)
                else:
                    look_up(old, code, numbers, new)
                old, other = new, 1 - other
            copy(old.reshape(-1), results[i])

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

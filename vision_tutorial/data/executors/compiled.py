"""The loops over images, compiled by numba: one image at a time, in the processor's cache.

The kernels have the arithmetic; this file lines up the operations of an image.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import config, njit

from ...core.folders import cache_folder, may_write
from ...core.randomness import address
from ..augmentation import operation
from ..augmentation.operation import Filter, Op
from . import kernels, kernels_colour
from .kernels import affine, copy, mirror, remembering, resample, window
from .kernels_colour import color, look_up_values, sharpness

# Where numba would keep what it compiled: beside the source, unless it is told another place.
PLACES = filter(None, (config.CACHE_DIR, Path(__file__).parent / "__pycache__"))
if not any(may_write(Path(place).absolute()) for place in PLACES):
    config.CACHE_DIR = str(cache_folder() / "numba")

kept = njit(nogil=True, cache=True, error_model="numpy")
# numba looks at a function's own file only to tell whether what it kept is stale.
PARTS = (kernels, kernels_colour, operation)
VERSION = address(*(Path(module.__file__).read_text("utf-8") for module in PARTS))


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
                if code == Op.NONE or s == done:
                    continue
                h, w = sizes[s + 1]
                new = buffers[other, : h * w * 3].reshape((h, w, 3))
                if code == Op.RESAMPLE:
                    mirrored = s + 1 < len(codes) and codes[s + 1, i] == Op.HFLIP
                    mirrored = mirrored and int(numbers[4]) != Filter.NEAREST
                    done = s + 1 if mirrored else done
                    resample(old, numbers, mirrored, (ready[s], spans[s], weights[s]), new)
                elif code == Op.WINDOW:
                    window(old, numbers, fills[s], lines[s], new)
                elif code == Op.HFLIP:
                    mirror(old, new)
                elif code == Op.VFLIP:
                    for y in range(h):
                        copy(old[y].reshape(-1), new[h - 1 - y].reshape(-1))
                elif code == Op.AFFINE:
                    affine(old, numbers, fills[s], new)
                elif code == Op.COLOR:
                    color(old, np.float32(numbers[0]), new)
                elif code == Op.SHARPNESS:
                    sharpness(old, np.float32(numbers[0]), new)
                else:
                    look_up_values(old, code, numbers, new)
                old, other = new, 1 - other
            copy(old.reshape(-1), results[i])

    return run


run = runner(VERSION)


@kept
def look_up(
    images: np.ndarray, rows: np.ndarray, table: np.ndarray, last: bool, out: np.ndarray
) -> None:
    """out (B, H, W, 3), if `last`, else (B, 3, H, W) = table (3, 256) at images `rows` (B,)."""
    for i in range(len(rows)):
        image = images[rows[i]].reshape(-1, 3)
        if last:
            found = out[i].reshape(-1, 3)
            for p in range(len(image)):
                for c in range(3):
                    found[p, c] = table[c, image[p, c]]
        else:
            planes = out[i].reshape(3, -1)
            for c in range(3):
                for p in range(len(image)):
                    planes[c, p] = table[c, image[p, c]]

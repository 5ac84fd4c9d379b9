"""What Pillow computes of grey levels, for one image uint8 (H, W, 3), in numba.

As in `kernels.py`, Pillow's order and types. Sources: libImaging's Blend.c, Filter.c, Convert.c
(grey), and ImageOps' look-up tables.
"""

from math import floor

import numpy as np

from ..augmentation.operation import Op
from .kernels import Array, compiled, copy

# 32 bits wide on purpose: beside a plain whole number, numba would go on in 64.
GREY = tuple(np.int32(weight) for weight in (19595, 38470, 7471, 32768, 16))
TWO, EIGHT, THIRTEEN, WHOLE = np.int32(2), np.int32(8), np.int32(13), np.int32(26)


@compiled
def _grey(red: int, green: int, blue: int) -> int:
    """Pillow's L, rounded."""
    weighted = np.int32(red) * GREY[0] + np.int32(green) * GREY[1] + np.int32(blue) * GREY[2]
    return (weighted + GREY[3]) >> GREY[4]


@compiled
def _blend(base: int, value: float, f: np.float32) -> np.uint8:
    """From `base` to `value` by f, beyond it if f > 1; float32, cut off and not rounded."""
    mixed = np.float32(base) + f * (np.float32(value) - np.float32(base))
    return np.uint8(min(max(mixed, np.float32(0)), np.float32(255)))


@compiled
def _blend_line(base: Array, values: Array, f: np.float32, new: Array) -> None:
    """`_blend` along a line."""
    for q in range(len(new)):
        new[q] = _blend(base[q], values[q], f)


@compiled
def color(old: Array, f: np.float32, new: Array) -> None:
    """Away from grey by f."""
    width = old.shape[1]
    base = np.empty(3 * width, np.int32)
    for i in range(old.shape[0]):
        for j in range(width):
            level = _grey(old[i, j, 0], old[i, j, 1], old[i, j, 2])
            base[3 * j], base[3 * j + 1], base[3 * j + 2] = level, level, level
        _blend_line(base, old[i].reshape(-1), f, new[i].reshape(-1))


@compiled
def sharpness(old: Array, f: np.float32, new: Array) -> None:
    """Away from the smoothed image by f; the border is not smoothed."""
    height, width = old.shape[:2]
    n = max(3 * width - 6, 0)
    base, sums = np.empty(n, np.int32), np.empty(n, np.int32)
    lines, made = old.reshape((height, -1)), new.reshape((height, -1))
    for i in range(height):
        copy(lines[i], made[i])
    for i in range(1, height - 1):
        for q in range(n):
            sums[q] = THIRTEEN
        for k in range(i - 1, i + 2):
            before, here, behind = lines[k, :n], lines[k, 3 : 3 + n], lines[k, 6 : 6 + n]
            for q in range(n):
                sums[q] += TWO * (np.int32(before[q]) + np.int32(here[q]) + np.int32(behind[q]))
        here = lines[i, 3 : 3 + n]
        for q in range(n):
            # Pillow adds thirteenths in float32; they stay far enough from halves to round alike.
            base[q] = (sums[q] + EIGHT * np.int32(here[q])) // WHOLE
        _blend_line(base, here, f, made[i, 3 : 3 + n])


@compiled
def look_up_values(old: Array, code: int, args: Array, new: Array) -> None:
    """Replace each value by its entry in the table of its channel."""
    table = np.empty((3, 256), np.uint8)
    if code == Op.EQUALIZE or code == Op.AUTOCONTRAST:
        histogram = _histograms(old)
        for c in range(3):
            if code == Op.EQUALIZE:
                _equalized(histogram[c], table[c])
            else:
                _stretched(histogram[c], table[c])
    else:
        base = _mean_grey(old) if code == Op.CONTRAST else 0
        for v in range(256):
            made = _entry(code, args[0], args[1], base, v)
            table[0, v], table[1, v], table[2, v] = made, made, made
    for i in range(old.shape[0]):
        for j in range(old.shape[1]):
            for c in range(3):
                new[i, j, c] = table[c, old[i, j, c]]


@compiled
def _histograms(old: Array) -> Array:
    """How often each value occurs in each channel: (3, 256).

    Neighbours are mostly alike: counted in turn in four places, none waits for the one before.
    """
    pixels = old.reshape(-1, 3)
    counts = np.zeros((4, 3, 256), np.int32)
    n = len(pixels) // 4 * 4
    for p in range(0, n, 4):
        for k in range(4):
            for c in range(3):
                counts[k, c, pixels[p + k, c]] += 1
    for p in range(n, len(pixels)):
        for c in range(3):
            counts[0, c, pixels[p, c]] += 1
    for c in range(3):
        for v in range(256):
            counts[0, c, v] += counts[1, c, v] + counts[2, c, v] + counts[3, c, v]
    return counts[0]


@compiled
def _entry(code: int, value: float, shift: float, base: int, v: int) -> int:
    """What value v becomes, whatever else is in the image."""
    if code == Op.BRIGHTNESS or code == Op.CONTRAST:
        return int(_blend(base, v, np.float32(value)))
    if code == Op.POSTERIZE:
        bits = int(value)
        return 0 if bits <= 0 else v & ~((1 << max(8 - bits, 0)) - 1)
    if code == Op.SOLARIZE:
        return v if v < value else 255 - v
    if code == Op.SOLARIZE_ADD:
        return min(255, v + int(value)) if v < 128 else v
    if code == Op.LINEAR:
        return int(min(max(floor(value * v + shift + 0.5), 0), 255))
    return v


@compiled
def _mean_grey(old: Array) -> int:
    """The image's mean grey, rounded."""
    total = 0
    for i in range(old.shape[0]):
        for j in range(old.shape[1]):
            total += _grey(old[i, j, 0], old[i, j, 1], old[i, j, 2])
    return int(total / (old.shape[0] * old.shape[1]) + 0.5)


@compiled
def _equalized(histogram: Array, table: Array) -> None:
    """A table that makes all values about equally frequent."""
    last, total = 0, 0
    for v in range(256):
        last = histogram[v] if histogram[v] else last
        total += histogram[v]
    step = (total - last) // 255
    seen, size, sums = step // 2, float(step), np.empty(256, np.int32)
    for v in range(256):
        sums[v] = seen
        seen += histogram[v]
    for v in range(256):
        # Whole numbers far below 2**53: the quotient's whole part is exact, and faster than //.
        table[v] = min(np.int32(sums[v] / size), 255) if step else v


@compiled
def _stretched(histogram: Array, table: Array) -> None:
    """A table that takes the darkest value to 0 and the lightest to 255; one value stays."""
    low, high = 0, 255
    while low < 255 and histogram[low] == 0:
        low += 1
    while high > 0 and histogram[high] == 0:
        high -= 1
    scale = 255.0 / (high - low)
    for v in range(256):
        table[v] = min(max(int(v * scale - low * scale), 0), 255) if high > low else v

"""What Pillow computes where pixels move, for one picture uint8 (H, W, 3), in numba.

Every formula keeps Pillow's order of operations and types (float64 where it has double, float32
where it has float), and numba contracts nothing unless asked to, so the bits are Pillow's. Sources:
libImaging's Resample.c (two passes, weights of 22 bits) and Geometry.c (affine).
"""

from math import ceil, floor

import numpy as np
from numba import njit

from .operations import Filter

Array = np.ndarray
BITS = 22  # of a resampling weight
HALF = 1 << (BITS - 1)
NEAREST, BILINEAR = int(Filter.NEAREST), int(Filter.BILINEAR)

compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `compiled.run`


# -- resampling (Resample.c) -----------------------------------------------------------------------


@compiled
def cubic(x: float) -> float:
    """Bicubic kernel with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@compiled
def weigh(
    length: int, size: int, smooth: bool, starts: Array, counts: Array, weights: Array
) -> None:
    """22-bit weights of `size` outputs over `length` inputs; starts, counts: which inputs."""
    scale = length / size
    stretch = max(scale, 1.0)
    support = (2.0 if smooth else 1.0) * stretch
    inverse = 1.0 / stretch
    values = np.empty(weights.shape[1])
    for i in range(size):
        centre = (i + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), length) - first
        total = 0.0
        for k in range(count):
            x = (k + first - centre + 0.5) * inverse
            value = cubic(x) if smooth else max(1.0 - abs(x), 0.0)
            values[k] = value
            total += value
        starts[i], counts[i] = first, count
        for k in range(count):
            value = values[k]
            if total != 0.0:
                value = value / total
            bias = -0.5 if value < 0 else 0.5
            weights[i, k] = int(bias + value * (1 << BITS))


@compiled
def clipped(total: int) -> np.uint8:
    """The grey level that a sum of weighted ones stands for."""
    return np.uint8(min(max(total >> BITS, 0), 255))


@compiled
def resample(old: Array, args: Array, new: Array, work: Array) -> None:
    """Cut out top, left, height, width; resize to new's size in two passes, rounded in between."""
    top, left, height, width = int(args[0]), int(args[1]), int(args[2]), int(args[3])
    if int(args[4]) == NEAREST:
        pick(old, top, left, height, width, new)
        return
    smooth = int(args[4]) != BILINEAR
    # As Pillow 13 has it: height first where it loses over twice as many pixels as width does.
    fewer_rows, fewer_columns = height - new.shape[0], width - new.shape[1]
    if fewer_rows > 0 and fewer_rows > 2 * fewer_columns:
        between = np.empty((new.shape[0], width, 3), np.uint8)
        down(old, top, left, height, smooth, work, between)
        across(between, 0, 0, width, smooth, work, new)
    else:
        between = np.empty((height, new.shape[1], 3), np.uint8)
        across(old, top, left, width, smooth, work, between)
        down(between, 0, 0, height, smooth, work, new)


@compiled
def weights_for(length: int, size: int, smooth: bool) -> tuple[Array, Array, Array]:
    """Room for `weigh`, filled."""
    most = 2 * int(ceil((2 if smooth else 1) * max(length / size, 1.0))) + 1
    starts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.empty((size, most), np.int32)
    weigh(length, size, smooth, starts, counts, weights)
    return starts, counts, weights


@compiled
def across(
    old: Array, top: int, left: int, width: int, smooth: bool, work: Array, new: Array
) -> None:
    """The crop of old from top, left, `width` wide and as high as new -> new (H, w, 3)."""
    height = new.shape[0]
    starts, counts, weights = weights_for(width, new.shape[1], smooth)
    # Each column becomes a row, so that sums over inputs run along contiguous memory.
    n = height * 3
    turned, sums = work[: width * n].reshape((width, n)), work[width * n : (width + 1) * n]
    for y in range(height):
        for x in range(width):
            for c in range(3):
                turned[x, 3 * y + c] = old[top + y, left + x, c]
    for i in range(new.shape[1]):
        weighted(turned, starts[i], counts[i], weights[i], sums)
        for y in range(height):
            for c in range(3):
                new[y, i, c] = clipped(sums[3 * y + c])


@compiled
def down(
    old: Array, top: int, left: int, height: int, smooth: bool, work: Array, new: Array
) -> None:
    """The crop of old from top, left, `height` high and as wide as new -> new (h, W, 3)."""
    width = new.shape[1]
    starts, counts, weights = weights_for(height, new.shape[0], smooth)
    n = width * 3
    lines, sums = work[: height * n].reshape((height, n)), work[height * n : (height + 1) * n]
    for y in range(height):
        for x in range(width):
            for c in range(3):
                lines[y, 3 * x + c] = old[top + y, left + x, c]
    for i in range(new.shape[0]):
        weighted(lines, starts[i], counts[i], weights[i], sums)
        for x in range(width):
            for c in range(3):
                new[i, x, c] = clipped(sums[3 * x + c])


@compiled
def weighted(rows: Array, first: int, count: int, weights: Array, sums: Array) -> None:
    """sums = half a unit + the weighted rows first … first + count - 1."""
    n = sums.shape[0]
    for r in range(n):
        sums[r] = HALF
    for k in range(count):
        weight = weights[k]
        row = rows[first + k]
        for r in range(n):
            sums[r] += weight * row[r]


@compiled
def pick(old: Array, top: int, left: int, height: int, width: int, new: Array) -> None:
    """Nearest: positions grow by repeated addition, as Pillow's do."""
    y = (height / new.shape[0]) * 0.5
    for i in range(new.shape[0]):
        x = (width / new.shape[1]) * 0.5
        for j in range(new.shape[1]):
            new[i, j] = old[top + int(y), left + int(x)]
            x += width / new.shape[1]
        y += height / new.shape[0]


@compiled
def window(
    old: Array, top: int, left: int, fill: Array, rows: Array, columns: Array, new: Array
) -> None:
    """A window into the picture whose padding `rows` and `columns` describe."""
    for i in range(new.shape[0]):
        y = rows[top + i]
        for j in range(new.shape[1]):
            x = columns[left + j]
            if y < 0 or x < 0:
                new[i, j] = fill
            else:
                new[i, j] = old[y, x]


# -- affine maps (Geometry.c) ----------------------------------------------------------------------


@compiled
def affine(old: Array, args: Array, fill: Array, new: Array) -> None:
    """Output pixel centre (x, y) shows the input at (ax + by + c, dx + ey + f)."""
    a, b, c, d, e, f = args[0], args[1], args[2], args[3], args[4], args[5]
    if int(args[6]) == NEAREST:
        nearest(old, args, fill, new)
        return
    smooth = int(args[6]) != BILINEAR
    height, width = old.shape[:2]
    for i in range(height):
        for j in range(width):
            across, down = j + 0.5, i + 0.5
            x = a * across + b * down + c
            y = d * across + e * down + f
            if not (0.0 <= x < width and 0.0 <= y < height):
                new[i, j, 0], new[i, j, 1], new[i, j, 2] = fill[0], fill[1], fill[2]
            elif smooth:
                bicubic(old, x - 0.5, y - 0.5, new[i, j])
            else:
                bilinear(old, x - 0.5, y - 0.5, new[i, j])


@compiled
def bilinear(old: Array, x: float, y: float, pixel: Array) -> None:
    """Between four pixels; beyond an edge is the edge."""
    height, width = old.shape[:2]
    left, top = int(floor(x)), int(floor(y))
    dx, dy = x - left, y - top
    x0, x1 = max(left, 0), min(left + 1, width - 1)
    y0, y1 = max(top, 0), min(top + 1, height - 1)
    for c in range(3):
        p, q = float(old[y0, x0, c]), float(old[y0, x1, c])
        upper = p + (q - p) * dx
        p, q = float(old[y1, x0, c]), float(old[y1, x1, c])
        lower = p + (q - p) * dx
        pixel[c] = np.uint8(upper + (lower - upper) * dy)


@compiled
def spline(v1: float, v2: float, v3: float, v4: float, d: float) -> float:
    """Pillow's cubic through four values, a = -1."""
    p1 = v2
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return p1 + d * (p2 + d * (p3 + d * p4))


@compiled
def bicubic(old: Array, x: float, y: float, pixel: Array) -> None:
    """Between sixteen pixels, across and then down; beyond an edge is the edge."""
    height, width = old.shape[:2]
    left, top = int(floor(x)), int(floor(y))
    dx, dy = x - left, y - top
    x0, x1 = max(left - 1, 0), max(left, 0)
    x2, x3 = min(left + 1, width - 1), min(left + 2, width - 1)
    for c in range(3):
        v1 = v2 = v3 = v4 = 0.0
        for k in range(4):
            row = min(max(top - 1 + k, 0), height - 1)
            value = spline(
                float(old[row, x0, c]),
                float(old[row, x1, c]),
                float(old[row, x2, c]),
                float(old[row, x3, c]),
                dx,
            )
            v1, v2, v3, v4 = v2, v3, v4, value
        pixel[c] = np.uint8(min(max(spline(v1, v2, v3, v4, dy), 0.0), 255.0))


@compiled
def nearest(old: Array, args: Array, fill: Array, new: Array) -> None:
    """Without rotation, positions grow by addition; with it, in fixed point of 16 bits."""
    a, b, c, d, e, f = args[0], args[1], args[2], args[3], args[4], args[5]
    height, width = old.shape[:2]
    straight = b == 0 and d == 0
    unit = 65536.0
    y, row_x, row_y = f + e * 0.5, 0, 0
    if not straight:
        row_x = int(floor((c + a * 0.5 + b * 0.5) * unit + 0.5))
        row_y = int(floor((f + d * 0.5 + e * 0.5) * unit + 0.5))
    step_a, step_b = int(floor(a * unit + 0.5)), int(floor(b * unit + 0.5))
    step_d, step_e = int(floor(d * unit + 0.5)), int(floor(e * unit + 0.5))
    for i in range(height):
        x, fixed_x, fixed_y = c + a * 0.5, row_x, row_y
        for j in range(width):
            if straight:
                u, v = int(floor(x)), int(floor(y))
            else:
                u, v = fixed_x >> 16, fixed_y >> 16
            if 0 <= u < width and 0 <= v < height:
                for k in range(3):
                    new[i, j, k] = old[v, u, k]
            else:
                for k in range(3):
                    new[i, j, k] = fill[k]
            x += a
            fixed_x += step_a
            fixed_y += step_d
        y += e
        row_x += step_b
        row_y += step_e

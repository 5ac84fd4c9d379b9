"""What Pillow computes, for one picture uint8 (H, W, 3), in numba: the arithmetic of `compiled.py`.

Every formula keeps Pillow's order of operations and types (float64 where it has double, float32
where it has float), and numba contracts nothing unless asked to, so the bits are Pillow's. Sources:
libImaging's Resample.c (two passes, weights of 22 bits), Geometry.c (affine), Blend.c, Filter.c,
Convert.c (grey), and ImageOps' look-up tables.
"""

from math import ceil, floor

import numpy as np
from numba import njit

from .operations import Filter, Op

BITS = 22  # of a resampling weight
HALF = 1 << (BITS - 1)
# Plain integers, so that numba compiles them in.
NEAREST, BILINEAR = int(Filter.NEAREST), int(Filter.BILINEAR)
RESAMPLE, WINDOW, HFLIP, VFLIP = int(Op.RESAMPLE), int(Op.WINDOW), int(Op.HFLIP), int(Op.VFLIP)
AFFINE, COLOR, SHARPNESS = int(Op.AFFINE), int(Op.COLOR), int(Op.SHARPNESS)
GRAYSCALE, POSTERIZE, SOLARIZE = int(Op.GRAYSCALE), int(Op.POSTERIZE), int(Op.SOLARIZE)
SOLARIZE_ADD, INVERT, BRIGHTNESS = int(Op.SOLARIZE_ADD), int(Op.INVERT), int(Op.BRIGHTNESS)
CONTRAST, AUTOCONTRAST, EQUALIZE = int(Op.CONTRAST), int(Op.AUTOCONTRAST), int(Op.EQUALIZE)

compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `compiled.run`


@compiled
def operate(code, args, fill, rows, columns, old, new, work):
    """One operation on `old` (H, W, 3), written to `new` (h, w, 3). work: int32 scratch, flat."""
    if code == RESAMPLE:
        resample(old, args, new, work)
    elif code == WINDOW:
        window(old, int(args[0]), int(args[1]), fill, rows, columns, new)
    elif code == HFLIP:
        new[:] = old[:, ::-1]
    elif code == VFLIP:
        new[:] = old[::-1]
    elif code == AFFINE:
        affine(old, args, fill, new)
    elif code == COLOR:
        color(old, np.float32(args[0]), new)
    elif code == SHARPNESS:
        sharpness(old, np.float32(args[0]), new)
    elif code == GRAYSCALE:
        color(old, np.float32(0), new)
    else:
        look_up(old, code, args[0], new)


# -- resampling (Resample.c) -----------------------------------------------------------------------


@compiled
def cubic(x):
    """Bicubic kernel with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@compiled
def weigh(length, size, smooth, starts, counts, weights):
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
def clipped(total):
    """The grey level that a sum of weighted ones stands for."""
    return np.uint8(min(max(total >> BITS, 0), 255))


@compiled
def resample(old, args, new, work):
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
def weights_for(length, size, smooth):
    """Room for `weigh`, filled."""
    most = 2 * int(ceil((2 if smooth else 1) * max(length / size, 1.0))) + 1
    starts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.empty((size, most), np.int32)
    weigh(length, size, smooth, starts, counts, weights)
    return starts, counts, weights


@compiled
def across(old, top, left, width, smooth, work, new):
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
def down(old, top, left, height, smooth, work, new):
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
def weighted(rows, first, count, weights, sums):
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
def pick(old, top, left, height, width, new):
    """Nearest: positions grow by repeated addition, as Pillow's do."""
    y = (height / new.shape[0]) * 0.5
    for i in range(new.shape[0]):
        x = (width / new.shape[1]) * 0.5
        for j in range(new.shape[1]):
            new[i, j] = old[top + int(y), left + int(x)]
            x += width / new.shape[1]
        y += height / new.shape[0]


@compiled
def window(old, top, left, fill, rows, columns, new):
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
def affine(old, args, fill, new):
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
def bilinear(old, x, y, pixel):
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
def spline(v1, v2, v3, v4, d):
    """Pillow's cubic through four values, a = -1."""
    p1 = v2
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return p1 + d * (p2 + d * (p3 + d * p4))


@compiled
def bicubic(old, x, y, pixel):
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
def nearest(old, args, fill, new):
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


# -- values (Blend.c, Filter.c, Convert.c, ImageOps) -----------------------------------------------


@compiled
def grey(red, green, blue):
    """Pillow's L, rounded."""
    return (np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 32768) >> 16


@compiled
def blend(base, value, f):
    """From `base` to `value` by f, beyond it if f > 1; float32, cut off and not rounded."""
    mixed = np.float32(base) + f * (np.float32(value) - np.float32(base))
    return np.uint8(min(max(mixed, np.float32(0)), np.float32(255)))


@compiled
def color(old, f, new):
    """Away from grey by f."""
    for i in range(old.shape[0]):
        for j in range(old.shape[1]):
            base = grey(old[i, j, 0], old[i, j, 1], old[i, j, 2])
            for c in range(3):
                new[i, j, c] = blend(base, old[i, j, c], f)


@compiled
def sharpness(old, f, new):
    """Away from the smoothed picture by f; the border is not smoothed."""
    height, width = old.shape[:2]
    one, five = np.float32(1) / np.float32(13), np.float32(5) / np.float32(13)
    new[:] = old
    for i in range(1, height - 1):
        for j in range(1, width - 1):
            for c in range(3):
                total = np.float32(0.5)
                for k in range(3):
                    y = i + 1 - k
                    middle = five if k == 1 else one
                    total += (
                        np.float32(old[y, j - 1, c]) * one
                        + np.float32(old[y, j, c]) * middle
                        + np.float32(old[y, j + 1, c]) * one
                    )
                base = min(max(int(total), 0), 255)
                new[i, j, c] = blend(base, old[i, j, c], f)


@compiled
def look_up(old, code, value, new):
    """Replace each value by its entry in the table of its channel."""
    table = np.empty((3, 256), np.uint8)
    if code == EQUALIZE or code == AUTOCONTRAST:
        histogram = np.zeros((3, 256), np.int64)
        for i in range(old.shape[0]):
            for j in range(old.shape[1]):
                for c in range(3):
                    histogram[c, old[i, j, c]] += 1
        for c in range(3):
            if code == EQUALIZE:
                equalized(histogram[c], table[c])
            else:
                stretched(histogram[c], table[c])
    else:
        base = mean_grey(old) if code == CONTRAST else 0
        for v in range(256):
            table[:, v] = entry(code, value, base, v)
    for i in range(old.shape[0]):
        for j in range(old.shape[1]):
            for c in range(3):
                new[i, j, c] = table[c, old[i, j, c]]


@compiled
def entry(code, value, base, v):
    """What value v becomes, whatever else is in the picture."""
    if code == BRIGHTNESS or code == CONTRAST:
        return int(blend(base, v, np.float32(value)))
    if code == POSTERIZE:
        bits = int(value)
        return 0 if bits <= 0 else v & ~((1 << max(8 - bits, 0)) - 1)
    if code == SOLARIZE:
        return v if v < value else 255 - v
    if code == SOLARIZE_ADD:
        return min(255, v + int(value)) if v < 128 else v
    if code == INVERT:
        return 255 - v
    return v


@compiled
def mean_grey(old):
    """The picture's mean grey, rounded."""
    total = 0
    for i in range(old.shape[0]):
        for j in range(old.shape[1]):
            total += grey(old[i, j, 0], old[i, j, 1], old[i, j, 2])
    return int(total / (old.shape[0] * old.shape[1]) + 0.5)


@compiled
def equalized(histogram, table):
    """A table that makes all values about equally frequent."""
    last, total, kinds = 0, 0, 0
    for v in range(256):
        if histogram[v]:
            last = histogram[v]
            kinds += 1
        total += histogram[v]
    step = (total - last) // 255
    seen = step // 2
    for v in range(256):
        table[v] = v if kinds <= 1 or step == 0 else min(seen // step, 255)
        seen += histogram[v]


@compiled
def stretched(histogram, table):
    """A table that takes the darkest value to 0 and the lightest to 255."""
    low, high = 0, 255
    while low < 255 and histogram[low] == 0:
        low += 1
    while high > 0 and histogram[high] == 0:
        high -= 1
    scale = 255.0 / (high - low) if high > low else 1.0
    offset = -low * scale
    for v in range(256):
        table[v] = min(max(int(v * scale + offset), 0), 255) if high > low else v

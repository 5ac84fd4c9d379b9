"""What Pillow computes where an image is framed, for one uint8 (H, W, 3), in numba.

Every formula keeps Pillow's order of operations and types (float64 where it has double, float32
where it has float), and numba contracts nothing unless asked to, so the bits are Pillow's. Sources:
libImaging's Resample.c (two passes, weights of 22 bits).
"""

from math import ceil

import numpy as np
from numba import njit

from ..augmentation.operation import Filter

Array = np.ndarray
BITS = 22  # of a resampling weight
HALF = 1 << (BITS - 1)
SHORT = 64  # pixels of a line whose weights are remembered
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
def resample(old: Array, args: Array, mirrored: bool, memory: tuple, new: Array) -> None:
    """Cut out top, left, height, width; resize to new's size in two passes, rounded in between.

    mirrored: the result left and right exchanged, as a flip behind it would do. memory: what
    `remembering` made for this size of new.
    """
    top, left, height, width = int(args[0]), int(args[1]), int(args[2]), int(args[3])
    if int(args[4]) == NEAREST:
        pick(old, top, left, height, width, mirrored, new)
        return
    smooth = int(args[4]) != BILINEAR
    # As Pillow 13 has it: height first where it loses over twice as many pixels as width does.
    fewer_rows, fewer_columns = height - new.shape[0], width - new.shape[1]
    if fewer_rows > 0 and fewer_rows > 2 * fewer_columns:
        between = np.empty((new.shape[0], width, 3), np.uint8)
        down(old, top, left, height, smooth, memory, between)
        across(between, 0, 0, width, smooth, mirrored, memory, new)
    else:
        between = np.empty((height, new.shape[1], 3), np.uint8)
        across(old, top, left, width, smooth, mirrored, memory, between)
        down(between, 0, 0, height, smooth, memory, new)


@compiled
def remembering(sizes: Array) -> tuple[Array, Array, Array, Array]:
    """Room for the weights of short lines, by slot, axis, filter and length: made once, used by
    many images. Which are there; then starts, counts and weights, as `weigh` fills them.

    sizes (S + 1, 2): of the source, and of each slot's results.
    """
    size, most = sizes.max(), taps(SHORT, sizes.min())
    shape = (len(sizes) - 1, 2, 2, SHORT + 1)
    return (
        np.zeros(shape, np.bool_),
        np.empty((*shape, size), np.int64),
        np.empty((*shape, size), np.int64),
        np.empty((*shape, size, most), np.int32),
    )


@compiled
def taps(length: int, size: int) -> int:
    """The most inputs that one output can have."""
    return 2 * int(ceil(2 * max(length / size, 1.0))) + 1


@compiled
def weights_for(
    memory: tuple, axis: int, length: int, size: int, smooth: bool
) -> tuple[Array, Array, Array]:
    """starts, counts, weights of `size` outputs over `length` inputs, remembered if short."""
    ready, starts, counts, weights = memory
    kind = 1 if smooth else 0
    if length > SHORT:
        first, count = np.empty(size, np.int64), np.empty(size, np.int64)
        values = np.empty((size, taps(length, size)), np.int32)
        weigh(length, size, smooth, first, count, values)
        return first, count, values
    place = (axis, kind, length)
    if not ready[place]:
        weigh(length, size, smooth, starts[place], counts[place], weights[place])
        ready[place] = True
    return starts[place], counts[place], weights[place]


@compiled
def across(
    old: Array,
    top: int,
    left: int,
    width: int,
    smooth: bool,
    mirrored: bool,
    memory: tuple,
    new: Array,
) -> None:
    """The crop of old from top, left, `width` wide and as high as new -> new (H, w, 3)."""
    height, size = new.shape[:2]
    starts, counts, weights = weights_for(memory, 1, width, size, smooth)
    # Each column becomes a row, so that the sums over inputs run along contiguous memory.
    turned = np.empty((width, height * 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                turned[x, 3 * y + c] = old[top + y, left + x, c]
    columns = np.empty((size, height * 3), np.uint8)
    sums = np.empty(height * 3, np.int32)
    for i in range(size):
        weighted(turned, starts[i], counts[i], weights[i], sums, columns[i])
    for y in range(height):
        for i in range(size):
            place = size - 1 - i if mirrored else i
            for c in range(3):
                new[y, place, c] = columns[i, 3 * y + c]


@compiled
def down(
    old: Array, top: int, left: int, height: int, smooth: bool, memory: tuple, new: Array
) -> None:
    """The crop of old from top, left, `height` high and as wide as new -> new (h, W, 3)."""
    size, width = new.shape[:2]
    starts, counts, weights = weights_for(memory, 0, height, size, smooth)
    rows = old.reshape((old.shape[0], -1))[top : top + height, 3 * left : 3 * (left + width)]
    lines, sums = new.reshape((size, width * 3)), np.empty(width * 3, np.int32)
    for i in range(size):
        weighted(rows, starts[i], counts[i], weights[i], sums, lines[i])


@compiled
def weighted(rows: Array, first: int, count: int, weights: Array, sums: Array, line: Array) -> None:
    """line = the weighted sum of rows first … first + count - 1, rounded to grey levels."""
    n = len(line)
    row, weight = rows[first], weights[0]
    for r in range(n):
        sums[r] = HALF + weight * np.int32(row[r])
    for k in range(1, count):
        row, weight = rows[first + k], weights[k]
        for r in range(n):
            sums[r] += weight * np.int32(row[r])
    for r in range(n):
        line[r] = min(max(sums[r] >> BITS, 0), 255)


@compiled
def copy(values: Array, line: Array) -> None:
    """line = values; numba takes far longer to compile an assignment of whole arrays."""
    for q in range(len(line)):
        line[q] = values[q]


@compiled
def mirror(old: Array, new: Array) -> None:
    """Left and right exchanged."""
    width = old.shape[1]
    for i in range(old.shape[0]):
        for j in range(width):
            for c in range(3):
                new[i, width - 1 - j, c] = old[i, j, c]


@compiled
def pick(
    old: Array, top: int, left: int, height: int, width: int, mirrored: bool, new: Array
) -> None:
    """Nearest: positions grow by repeated addition, as Pillow's do."""
    y = (height / new.shape[0]) * 0.5
    for i in range(new.shape[0]):
        x = (width / new.shape[1]) * 0.5
        for j in range(new.shape[1]):
            place = new.shape[1] - 1 - j if mirrored else j
            for c in range(3):
                new[i, place, c] = old[top + int(y), left + int(x), c]
            x += width / new.shape[1]
        y += height / new.shape[0]


@compiled
def window(
    old: Array, top: int, left: int, fill: Array, rows: Array, columns: Array, new: Array
) -> None:
    """A window into the image whose padding `rows` and `columns` describe."""
    for i in range(new.shape[0]):
        y = rows[top + i]
        for j in range(new.shape[1]):
            x = columns[left + j]
            for c in range(3):
                new[i, j, c] = old[y, x, c] if y >= 0 and x >= 0 else fill[c]

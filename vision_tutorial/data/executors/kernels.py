"""What Pillow computes where pixels move, for one image uint8 (H, W, 3), in numba.

Every formula keeps Pillow's order of operations and types (float64 where it has double, float32
where it has float), and numba contracts nothing unless asked to, so the bits are Pillow's. Sources:
libImaging's Resample.c (two passes, weights of 22 bits) and Geometry.c (affine maps).
"""

from math import ceil, floor

import numpy as np
from numba import njit

from ..augmentation.operation import Filter

Array = np.ndarray
BITS = 22  # of a resampling weight
HALF = 1 << (BITS - 1)
SHORT = 64  # pixels of a line whose weights are remembered
BAND = 256  # pixels of an affine map that are worked on at once
EDGE = 2  # pixels beyond the border that a cubic looks at

compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `compiled.run`


@compiled
def copy(values: Array, line: Array) -> None:
    """line = values; numba takes far longer to compile an assignment of whole arrays."""
    for q in range(len(line)):
        line[q] = values[q]


@compiled
def mirror(old: Array, new: Array) -> None:
    """Left and right exchanged."""
    height, width = old.shape[:2]
    for i in range(height):
        for j in range(width):
            for c in range(3):
                new[i, width - 1 - j, c] = old[i, j, c]


@compiled
def window(old: Array, args: Array, fill: Array, lines: Array, new: Array) -> None:
    """From top, left on, new's size of the image whose padding `lines` (2, …) describe."""
    top, left = int(args[0]), int(args[1])
    for i in range(new.shape[0]):
        y = lines[0, top + i]
        for j in range(new.shape[1]):
            x = lines[1, left + j]
            for c in range(3):
                new[i, j, c] = old[y, x, c] if y >= 0 and x >= 0 else fill[c]


# -- affine maps -----------------------------------------------------------------------------------


@compiled
def _nearest(old: Array, args: Array, fill: Array, new: Array) -> None:
    """Without rotation, positions grow by addition; with it, in fixed point of 16 bits."""
    a, b, c, d, e, f = args[0], args[1], args[2], args[3], args[4], args[5]
    straight = b == 0 and d == 0
    unit = 65536.0
    y, row_x, row_y = f + e * 0.5, 0, 0
    if not straight:
        row_x = int(floor((c + a * 0.5 + b * 0.5) * unit + 0.5))
        row_y = int(floor((f + d * 0.5 + e * 0.5) * unit + 0.5))
    step_a, step_b = int(floor(a * unit + 0.5)), int(floor(b * unit + 0.5))
    step_d, step_e = int(floor(d * unit + 0.5)), int(floor(e * unit + 0.5))
    for i in range(new.shape[0]):
        x, fixed_x, fixed_y = c + a * 0.5, row_x, row_y
        for j in range(new.shape[1]):
            if straight:
                u, v = int(floor(x)), int(floor(y))
            else:
                u, v = fixed_x >> 16, fixed_y >> 16
            within = 0 <= u < old.shape[1] and 0 <= v < old.shape[0]
            for k in range(3):
                new[i, j, k] = old[v, u, k] if within else fill[k]
            x += a
            fixed_x += step_a
            fixed_y += step_d
        y += e
        row_x += step_b
        row_y += step_e


@compiled
def _locate(
    args: Array,
    top: int,
    height: int,
    width: int,
    inside: Array,
    place: Array,
    dx: Array,
    dy: Array,
) -> None:
    """Where the result's pixels from row `top` on lie: inside or not, the index of the pixel above
    and left of it in `_with_edges`, and how far behind that pixel; each (n,)."""
    a, b, c, d, e, f = args[0], args[1], args[2], args[3], args[4], args[5]
    for i in range(len(inside) // width):
        first = i * width
        down = top + i + 0.5
        for j in range(width):
            across = j + 0.5
            x = a * across + b * down + c
            y = d * across + e * down + f
            within = 0.0 <= x < width and 0.0 <= y < height
            x, y = (x - 0.5 if within else 0.0), (y - 0.5 if within else 0.0)
            column, row = floor(x), floor(y)
            inside[first + j] = within
            dx[first + j], dy[first + j] = x - column, y - row
            place[first + j] = (int(row) + EDGE) * (width + 2 * EDGE) + int(column) + EDGE


@compiled
def _with_edges(old: Array) -> Array:
    """The pixels of old as one number each, flat, every edge repeated EDGE times beyond it."""
    height, width = old.shape[:2]
    made = np.empty((height + 2 * EDGE, width + 2 * EDGE), np.uint32)
    for i in range(height):
        line = made[i + EDGE]
        for j in range(width):
            red, green, blue = old[i, j, 0], old[i, j, 1], old[i, j, 2]
            line[j + EDGE] = np.uint32(red) | np.uint32(green) << 8 | np.uint32(blue) << 16
        for j in range(EDGE):
            line[j], line[width + EDGE + j] = line[EDGE], line[width + EDGE - 1]
    for i in range(EDGE):
        copy(made[EDGE], made[i])
        copy(made[height + EDGE - 1], made[height + EDGE + i])
    return made.reshape(-1)


@compiled
def _fetch_four(edged: Array, place: Array, stride: int, near: Array) -> None:
    """near (4, …) = the square of pixels behind and below each place."""
    for j in range(len(place)):
        for r in range(2):
            # Unsigned, or numba would ask of each index whether it counts from the end.
            first = np.uint64(place[j] + r * stride)
            for q in range(2):
                near[2 * r + q, j] = edged[first + np.uint64(q)]


@compiled
def _fetch_sixteen(edged: Array, place: Array, stride: int, near: Array) -> None:
    """near (16, …) = the square of four by four pixels around each place."""
    for j in range(len(place)):
        for r in range(4):
            first = np.uint64(place[j] - 1 + (r - 1) * stride)
            for q in range(4):
                near[4 * r + q, j] = edged[first + np.uint64(q)]


@compiled
def _channel(pixel: np.uint32, k: int) -> float:
    """Channel k of a pixel that is one number."""
    return float(np.int32((pixel >> np.uint32(8 * k)) & np.uint32(255)))


@compiled
def _bilinear(near: Array, k: int, dx: Array, dy: Array, found: Array) -> None:
    """Channel k between the four pixels near (4, …) of each place -> found (n,)."""
    for j in range(len(found)):
        one, two = _channel(near[0, j], k), _channel(near[1, j], k)
        upper = one + (two - one) * dx[j]
        one, two = _channel(near[2, j], k), _channel(near[3, j], k)
        lower = one + (two - one) * dx[j]
        found[j] = np.int32(upper + (lower - upper) * dy[j])


@compiled
def _spline(v1: float, v2: float, v3: float, v4: float, d: float) -> float:
    """Pillow's cubic through four values, a = -1."""
    p1 = v2
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return p1 + d * (p2 + d * (p3 + d * p4))


@compiled
def _line_through(near: Array, first: int, k: int, j: int, d: float) -> float:
    """The cubic through four pixels of one line."""
    return _spline(
        _channel(near[first, j], k),
        _channel(near[first + 1, j], k),
        _channel(near[first + 2, j], k),
        _channel(near[first + 3, j], k),
        d,
    )


@compiled
def _bicubic(near: Array, k: int, dx: Array, dy: Array, found: Array) -> None:
    """Channel k between the sixteen pixels near (16, …) of each place -> found (n,)."""
    for j in range(len(found)):
        value = _spline(
            _line_through(near, 0, k, j, dx[j]),
            _line_through(near, 4, k, j, dx[j]),
            _line_through(near, 8, k, j, dx[j]),
            _line_through(near, 12, k, j, dx[j]),
            dy[j],
        )
        value = 0.0 if value < 0.0 else value
        found[j] = np.int32(255.0 if value > 255.0 else value)


@compiled
def affine(old: Array, args: Array, fill: Array, new: Array) -> None:
    """Output pixel centre (x, y) shows the input at (ax + by + c, dx + ey + f).

    Some rows at a time, and for them step by step, so that every step runs in vector registers.
    """
    if int(args[6]) == Filter.NEAREST:
        _nearest(old, args, fill, new)
        return
    smooth = int(args[6]) != Filter.BILINEAR
    height, width = old.shape[:2]
    edged, stride = _with_edges(old), width + 2 * EDGE
    band = max(BAND // width, 1)
    near = np.empty((16 if smooth else 4, band * width), np.uint32)
    inside, place = np.empty(band * width, np.bool_), np.empty(band * width, np.int64)
    dx, dy = np.empty(band * width), np.empty(band * width)
    found = np.empty((3, band * width), np.int32)
    made = new.reshape((height * width, 3))
    for top in range(0, height, band):
        n = min(band, height - top) * width
        _locate(args, top, height, width, inside[:n], place[:n], dx[:n], dy[:n])
        if smooth:
            _fetch_sixteen(edged, place[:n], stride, near)
        else:
            _fetch_four(edged, place[:n], stride, near)
        for k in range(3):
            if smooth:
                _bicubic(near, k, dx, dy, found[k, :n])
            else:
                _bilinear(near, k, dx, dy, found[k, :n])
        some = made[top * width : top * width + n]
        for j in range(n):
            if inside[j]:
                some[j, 0], some[j, 1], some[j, 2] = found[0, j], found[1, j], found[2, j]
            else:
                some[j, 0], some[j, 1], some[j, 2] = fill[0], fill[1], fill[2]


# -- crop and resize -------------------------------------------------------------------------------


@compiled
def _cubic(x: float) -> float:
    """Bicubic kernel with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@compiled
def _taps(length: int, size: int) -> int:
    """The most inputs that one of `size` outputs over `length` inputs can have."""
    return 2 * int(ceil(2 * max(length / size, 1.0))) + 1


@compiled
def _weigh(length: int, size: int, smooth: bool, spans: Array, weights: Array) -> None:
    """22-bit weights (size, taps) of outputs over `length` inputs; spans (size, 2): from, count."""
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
            value = _cubic(x) if smooth else max(1.0 - abs(x), 0.0)
            values[k] = value
            total += value
        spans[i, 0], spans[i, 1] = first, count
        for k in range(count):
            value = values[k]
            if total != 0.0:
                value = value / total
            bias = -0.5 if value < 0 else 0.5
            weights[i, k] = int(bias + value * (1 << BITS))


@compiled
def remembering(sizes: Array) -> tuple[Array, Array, Array]:
    """Room for the weights of short lines, by slot, axis, filter and length: made once, used by
    many images. Which are there; then spans and weights, as `_weigh` fills them.

    sizes (S + 1, 2): of the source, and of each slot's results.
    """
    size, shape = sizes.max(), (len(sizes) - 1, 2, 2, SHORT + 1)
    spans = np.empty((*shape, size, 2), np.int64)
    weights = np.empty((*shape, size, _taps(SHORT, sizes.min())), np.int32)
    return np.zeros(shape, np.bool_), spans, weights


@compiled
def _weights_for(memory: tuple, place: tuple, size: int) -> tuple[Array, Array]:
    """Spans and weights of `size` outputs. place: axis, filter (1: cubic), how many inputs."""
    ready, spans, weights = memory
    _, smooth, length = place
    if length > SHORT:
        long_spans = np.empty((size, 2), np.int64)
        long_weights = np.empty((size, _taps(length, size)), np.int32)
        _weigh(length, size, smooth == 1, long_spans, long_weights)
        return long_spans, long_weights
    if not ready[place]:
        _weigh(length, size, smooth == 1, spans[place], weights[place])
        ready[place] = True
    return spans[place], weights[place]


@compiled
def _weighted(rows: Array, span: Array, weights: Array, sums: Array, line: Array) -> None:
    """line = the weighted sum of the rows of a span, rounded to grey levels."""
    n, first = len(line), span[0]
    row, weight = rows[first], weights[0]
    for r in range(n):
        sums[r] = HALF + weight * np.int32(row[r])
    for k in range(1, span[1]):
        row, weight = rows[first + k], weights[k]
        for r in range(n):
            sums[r] += weight * np.int32(row[r])
    for r in range(n):
        line[r] = min(max(sums[r] >> BITS, 0), 255)


@compiled
def _across(
    old: Array, top: int, left: int, width: int, kind: tuple, memory: tuple, new: Array
) -> None:
    """The crop of old from top, left, `width` wide and as high as new -> new (H, w, 3)."""
    smooth, mirrored = kind
    height, size = new.shape[:2]
    spans, weights = _weights_for(memory, (1, smooth, width), size)
    # Each column becomes a row, so that the sums over inputs run along contiguous memory.
    turned = np.empty((width, height * 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                turned[x, 3 * y + c] = old[top + y, left + x, c]
    columns, sums = np.empty((size, height * 3), np.uint8), np.empty(height * 3, np.int32)
    for i in range(size):
        _weighted(turned, spans[i], weights[i], sums, columns[i])
    for y in range(height):
        for i in range(size):
            place = size - 1 - i if mirrored else i
            for c in range(3):
                new[y, place, c] = columns[i, 3 * y + c]


@compiled
def _down(old: Array, top: int, left: int, height: int, smooth: int, memory: tuple, new: Array):
    """The crop of old from top, left, `height` high and as wide as new -> new (h, W, 3)."""
    size, width = new.shape[:2]
    spans, weights = _weights_for(memory, (0, smooth, height), size)
    rows = old.reshape((old.shape[0], -1))[top : top + height, 3 * left : 3 * (left + width)]
    lines, sums = new.reshape((size, width * 3)), np.empty(width * 3, np.int32)
    for i in range(size):
        _weighted(rows, spans[i], weights[i], sums, lines[i])


@compiled
def resample(old: Array, args: Array, mirrored: bool, memory: tuple, new: Array) -> None:
    """Cut out top, left, height, width; resize to new's size in two passes, rounded in between.

    mirrored: left and right exchanged, as a flip behind it would do; not by the nearest pixels.
    memory: what `remembering` made for this size of new.
    """
    top, left, height, width = int(args[0]), int(args[1]), int(args[2]), int(args[3])
    if int(args[4]) == Filter.NEAREST:
        x, y = width / new.shape[1], height / new.shape[0]
        matrix = np.array([x, 0.0, 0.0, 0.0, y, 0.0])
        crop = old[top : top + height, left : left + width]
        _nearest(crop, matrix, np.zeros(3, np.uint8), new)
        return
    smooth = 0 if int(args[4]) == Filter.BILINEAR else 1
    # As Pillow 13 has it: height first where it loses over twice as many pixels as width does.
    fewer_rows, fewer_columns = height - new.shape[0], width - new.shape[1]
    if fewer_rows > 0 and fewer_rows > 2 * fewer_columns:
        between = np.empty((new.shape[0], width, 3), np.uint8)
        _down(old, top, left, height, smooth, memory, between)
        _across(between, 0, 0, width, (smooth, mirrored), memory, new)
    else:
        between = np.empty((height, new.shape[1], 3), np.uint8)
        _across(old, top, left, width, (smooth, mirrored), memory, between)
        _down(between, 0, 0, height, smooth, memory, new)

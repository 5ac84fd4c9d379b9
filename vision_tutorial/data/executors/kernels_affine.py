"""What Pillow computes where an image is turned, sheared or shifted, in numba.

As in `kernels.py`, Pillow's order and types. Source: libImaging's Geometry.c. Images are uint8
(H, W, 3).
"""

from math import floor

import numpy as np

from .kernels import BILINEAR, NEAREST, Array, compiled, copy

BAND = 256  # pixels of an affine map that are worked on at once
EDGE = 2  # pixels beyond the border that a cubic looks at


@compiled
def affine(old: Array, args: Array, fill: Array, new: Array) -> None:
    """Output pixel centre (x, y) shows the input at (ax + by + c, dx + ey + f).

    Some rows at a time, and for them step by step, so that every step runs in vector registers.
    """
    if int(args[6]) == NEAREST:
        nearest(old, args, fill, new)
        return
    smooth = int(args[6]) != BILINEAR
    height, width = old.shape[:2]
    edged, stride = with_edges(old), width + 2 * EDGE
    band = max(BAND // width, 1)
    near = np.empty((16 if smooth else 4, band * width), np.uint32)
    inside, place = np.empty(band * width, np.bool_), np.empty(band * width, np.int64)
    dx, dy = np.empty(band * width), np.empty(band * width)
    found = np.empty((3, band * width), np.int32)
    made = new.reshape((height * width, 3))
    for top in range(0, height, band):
        n = min(band, height - top) * width
        locate(args, top, height, width, inside[:n], place[:n], dx[:n], dy[:n])
        if smooth:
            fetch_sixteen(edged, place[:n], stride, near)
        else:
            fetch_four(edged, place[:n], stride, near)
        for k in range(3):
            if smooth:
                bicubic(near, k, dx, dy, found[k, :n])
            else:
                bilinear(near, k, dx, dy, found[k, :n])
        some = made[top * width : top * width + n]
        for j in range(n):
            if inside[j]:
                some[j, 0], some[j, 1], some[j, 2] = found[0, j], found[1, j], found[2, j]
            else:
                some[j, 0], some[j, 1], some[j, 2] = fill[0], fill[1], fill[2]


@compiled
def locate(
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
    and left of it in `with_edges`, and how far behind that pixel; each (n,)."""
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
def with_edges(old: Array) -> Array:
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
def fetch_four(edged: Array, place: Array, stride: int, near: Array) -> None:
    """near (4, …) = the square of pixels behind and below each place."""
    for j in range(len(place)):
        for r in range(2):
            # Unsigned, or numba would ask of each index whether it counts from the end.
            first = np.uint64(place[j] + r * stride)
            for q in range(2):
                near[2 * r + q, j] = edged[first + np.uint64(q)]


@compiled
def fetch_sixteen(edged: Array, place: Array, stride: int, near: Array) -> None:
    """near (16, …) = the square of four by four pixels around each place."""
    for j in range(len(place)):
        for r in range(4):
            first = np.uint64(place[j] - 1 + (r - 1) * stride)
            for q in range(4):
                near[4 * r + q, j] = edged[first + np.uint64(q)]


@compiled
def channel(pixel: np.uint32, k: int) -> float:
    """Channel k of a pixel that is one number."""
    return float(np.int32((pixel >> np.uint32(8 * k)) & np.uint32(255)))


@compiled
def bilinear(near: Array, k: int, dx: Array, dy: Array, found: Array) -> None:
    """Channel k between the four pixels near (4, …) of each place -> found (n,)."""
    for j in range(len(found)):
        one, two = channel(near[0, j], k), channel(near[1, j], k)
        upper = one + (two - one) * dx[j]
        one, two = channel(near[2, j], k), channel(near[3, j], k)
        lower = one + (two - one) * dx[j]
        found[j] = np.int32(upper + (lower - upper) * dy[j])


@compiled
def spline(v1: float, v2: float, v3: float, v4: float, d: float) -> float:
    """Pillow's cubic through four values, a = -1."""
    p1 = v2
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return p1 + d * (p2 + d * (p3 + d * p4))


@compiled
def line_through(near: Array, first: int, k: int, j: int, d: float) -> float:
    """The cubic through four pixels of one line."""
    return spline(
        channel(near[first, j], k),
        channel(near[first + 1, j], k),
        channel(near[first + 2, j], k),
        channel(near[first + 3, j], k),
        d,
    )


@compiled
def bicubic(near: Array, k: int, dx: Array, dy: Array, found: Array) -> None:
    """Channel k between the sixteen pixels near (16, …) of each place -> found (n,)."""
    for j in range(len(found)):
        value = spline(
            line_through(near, 0, k, j, dx[j]),
            line_through(near, 4, k, j, dx[j]),
            line_through(near, 8, k, j, dx[j]),
            line_through(near, 12, k, j, dx[j]),
            dy[j],
        )
        value = 0.0 if value < 0.0 else value
        found[j] = np.int32(255.0 if value > 255.0 else value)


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

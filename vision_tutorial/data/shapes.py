"""An embedded data set: small images of shapes, drawn by the package, with their masks.

A linear model fails on it, because place, turn, size and colours say nothing about the class; a
small convolutional network learns it on a laptop. The images are the same bits on every machine:
the draws are raw Philox integers, whose stream NumPy promises to keep, and the drawing uses only
operations that IEEE 754 rounds exactly (+, -, *, /, sqrt, floor, comparisons: no sine, no sum).
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy import ndarray as Array

from ..core.errors import UserError, check_range
from ..core.randomness import generator
from ..core.registry import datasets
from ..core.sources import ArraySource, check_split

SMALLEST, LARGEST = 16, 256  # pixels
NUMBERS = 37  # drawn per image, before its noise
CONTRAST = 90  # grey levels
NOISE = 8.0  # grey levels, each way
FIFTHS = (  # unit vectors 72 degrees apart, written out because libraries round sines differently
    (1.0, 0.0),
    (0.30901699437494745, 0.9510565162951535),
    (-0.8090169943749475, 0.5877852522924731),
    (-0.8090169943749475, -0.5877852522924731),
    (0.30901699437494745, -0.9510565162951535),
)

Draws = Iterator[Array]  # each (n, 1, 1), uniform in [0, 1)
Outline = Callable[[Array, Array], Array]


@datasets.register
def shapes(
    split: str,
    *,
    size: int = 32,
    train: int = 4000,
    test: int = 1000,
    seed: int = 0,
    masks: bool = False,
) -> ArraySource:
    """Ten shapes on textured ground, drawn by the package: no download; `masks` to segment them."""
    check_split(split)
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"shapes: size is {size}; use {SMALLEST} to {LARGEST} pixels.")
    count = {"train": train, "test": test}[split]
    check_range("shapes", "[1, 1000000]", **{split: count})
    images = np.empty((count, size, size, 3), np.uint8)
    drawn = np.empty((count, size, size), np.uint8)
    for label, outline in enumerate(OUTLINES.values()):
        indices = np.arange(label, count, len(OUTLINES))
        # A few hundred at a time, so that the arrays stay in the processor's cache.
        for some in np.array_split(indices, 1 + len(indices) * size**2 // 2**17):
            images[some], inside = _draw(outline, seed, split, some, size)
            drawn[some] = (label + 1) * inside
    targets = np.arange(count, dtype=np.int64) % len(OUTLINES)
    if masks:
        classes = ("background", *OUTLINES)
        return ArraySource("shapes", images, targets + 1, classes, drawn, dense=True)
    return ArraySource("shapes", images, targets, tuple(OUTLINES), drawn)


def _draw(
    outline: Outline, seed: int, split: str, indices: Array, size: int
) -> tuple[Array, Array]:
    """Images uint8 (n, size, size, 3), and where their shape is: bool (n, size, size)."""
    numbers, noise = _numbers(seed, split, indices, size)
    draw = iter(numbers)
    radius = size * (0.26 + 0.16 * next(draw))
    right, down = (radius + (size - 2 * radius) * next(draw) for _ in "xy")
    cosine, sine = _direction(draw)
    y, x = np.ogrid[0.5:size, 0.5:size]  # pixel centres
    along = ((x - right) * cosine + (y - down) * sine) / radius
    across = ((y - down) * cosine - (x - right) * sine) / radius
    edge = outline(along, across) * radius  # pixels from the outline, negative inside

    # Apart by CONTRAST in each channel; which is the lighter one says nothing about the class.
    dark = [(255 - CONTRAST) * next(draw) for _ in "rgb"]
    light = [level + CONTRAST + (255 - CONTRAST - level) * next(draw) for level in dark]
    swap = next(draw) < 0.5
    ground = [np.where(swap, *pair) for pair in zip(light, dark, strict=True)]
    ink = [np.where(swap, *pair) for pair in zip(dark, light, strict=True)]
    for colour, amplitude in ((ground, 25), (ground, 25), (ink, 15)):
        # A triangle wave of up to so many grey levels: a long one is a slope, else stripes.
        phase = next(draw)
        for place in (x / size, y / size):
            phase = phase + 6 * (next(draw) - 0.5) * place
        wave = 4 * np.abs(phase - np.floor(phase) - 0.5) - 1
        colour[:] = [channel + amplitude * (2 * next(draw) - 1) * wave for channel in colour]
    # A streak: edges that belong to no shape.
    cosine, sine = _direction(draw)
    apart = (x - size * next(draw)) * cosine + (y - size * next(draw)) * sine
    ground = _paint(ground, np.abs(apart) - size / 40, [255 * next(draw) for _ in "rgb"])
    image = np.stack(np.broadcast_arrays(*_paint(ground, edge, ink)), -1) + noise
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8), edge < 0


def _numbers(seed: int, split: str, indices: Array, size: int) -> tuple[Array, Array]:
    """Each image's own draws: uniform in [0, 1), (NUMBERS, n, 1, 1); noise (n, size, size, 3)."""
    values = size * size * 3
    raw = np.empty((len(indices), NUMBERS + -(-values // 8)), "<u8")
    for row, index in zip(raw, indices, strict=True):
        bits = generator("shapes", seed, split, int(index)).bit_generator
        row[:] = bits.random_raw(row.size)
    numbers = (raw[:, :NUMBERS] >> 11) * 2.0**-53
    grain = raw[:, NUMBERS:].view(np.uint8)[:, :values].reshape(-1, size, size, 3)
    return numbers.T[..., None, None], (grain - 127.5) * (NOISE / 127.5)


def _direction(draw: Draws) -> tuple[Array, Array]:
    """A unit vector, any way round."""
    x, y = 2 * next(draw) - 1, 2 * next(draw) - 1
    length = np.sqrt(x * x + y * y)
    return x / length, y / length


def _paint(colour: list[Array], edge: Array, ink: list[Array]) -> list[Array]:
    """`ink` laid where `edge` (pixels) is negative, its rim one pixel soft."""
    cover = np.clip(0.5 - edge, 0, 1)
    return [under + cover * (over - under) for under, over in zip(colour, ink, strict=True)]


# -- outlines: how far (u, v) is outside the shape (negative: inside), in units of its radius ------


def _disc(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - 1


def _box(u: Array, v: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _triangle(u: Array, v: Array) -> Array:
    lean = 0.8660254037844386  # sine of 60 degrees
    return np.maximum(-u, 0.5 * u + lean * np.abs(v)) - 0.5


def _star(u: Array, v: Array) -> Array:
    """Five lines; a point is in the star when it is on the inner side of all but one of them."""
    sides = np.stack([u * x + v * y for x, y in FIFTHS])
    return np.partition(sides, 3, axis=0)[3] - FIFTHS[1][0]


OUTLINES: dict[str, Outline] = {
    "disc": _disc,
    "half": lambda u, v: np.maximum(_disc(u, v + 0.4), -0.4 - v),
    "crescent": lambda u, v: np.maximum(_disc(u, v), -0.8 * _disc((u - 0.6) / 0.8, v / 0.8)),
    "ring": lambda u, v: np.maximum(_disc(u, v), -0.45 - _disc(u, v)),
    "triangle": _triangle,
    "square": lambda u, v: _box(u, v, 0.75, 0.75),
    "frame": lambda u, v: np.maximum(_box(u, v, 0.75, 0.75), -_box(u, v, 0.4, 0.4)),
    "bar": lambda u, v: _box(u, v, 1, 0.3),
    "cross": lambda u, v: np.minimum(_box(u, v, 1, 0.3), _box(v, u, 1, 0.3)),
    "star": _star,
}

"""What Pillow makes of an operation, and random arguments for each: for tests of the batched path.

Nothing here knows how the executors work; Pillow itself is called, one image at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL
import pytest
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import functional

from vision_tutorial.data.augmentation.operation import ARGUMENTS, BatchedOp, Filter, Op

OLD = int(PIL.__version__.partition(".")[0]) < 13  # its resize always begins with the width
NEW_PILLOW = "Pillow 13 or newer is what resizing is compared with"
FILTERS = {
    Filter.NEAREST: Image.Resampling.NEAREST,
    Filter.BILINEAR: Image.Resampling.BILINEAR,
    Filter.BICUBIC: Image.Resampling.BICUBIC,
}
SIMPLE = {
    Op.NONE: lambda picture: picture,
    Op.HFLIP: ImageOps.mirror,
    Op.VFLIP: ImageOps.flip,
    Op.INVERT: ImageOps.invert,
    Op.AUTOCONTRAST: ImageOps.autocontrast,
    Op.EQUALIZE: ImageOps.equalize,
    Op.GRAYSCALE: lambda picture: picture.convert("L").convert("RGB"),
}
ENHANCERS = {
    Op.BRIGHTNESS: ImageEnhance.Brightness,
    Op.CONTRAST: ImageEnhance.Contrast,
    Op.COLOR: ImageEnhance.Color,
    Op.SHARPNESS: ImageEnhance.Sharpness,
}


def expected(picture: Image.Image, code: int, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    """`image` (RGB) after one operation of `slot` with its arguments (ARGUMENTS,), by Pillow."""
    if code in SIMPLE:
        return SIMPLE[code](picture)
    if code in ENHANCERS:
        return ENHANCERS[code](picture).enhance(args[0])
    return SPECIAL[code](picture, args, slot)


def resample(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    if OLD:
        pytest.skip(NEW_PILLOW)
    top, left, height, width = (int(value) for value in args[:4])
    crop = picture.crop((left, top, left + width, top + height))
    return crop.resize(slot.size[::-1], FILTERS[args[4]])


def window(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    (top, bottom), (left, right) = (
        padding(source, length)
        for source, length in ((slot.rows, picture.height), (slot.columns, picture.width))
    )
    mode = "constant" if (slot.rows < 0).any() or (slot.columns < 0).any() else "reflect"
    padded = functional.pad(picture, [left, top, right, bottom], slot.fill, mode)
    return functional.crop(padded, int(args[0]), int(args[1]), *slot.size)


def padding(source: np.ndarray, length: int) -> tuple[int, int]:
    """How many pixels come before and after: `source` is the index of each padded one."""
    before = int(np.argmin(np.where(source < 0, length, source)))
    return before, len(source) - length - before


def affine(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    matrix = tuple(args[:6].tolist())
    method = Image.Transform.AFFINE
    return picture.transform(picture.size, method, matrix, FILTERS[args[6]], fillcolor=slot.fill)


def posterize(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    if args[0] <= 0:  # black, as timm's policy v0 has it; Pillow 13 refuses
        return Image.new("RGB", picture.size)
    return ImageOps.posterize(picture, int(args[0]))


def solarize(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    return ImageOps.solarize(picture, args[0])


def solarize_add(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    table = [min(255, value + int(args[0])) if value < 128 else value for value in range(256)]
    return picture.point(table * 3)


def linear(picture: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    table = [math.floor(args[0] * value + args[1] + 0.5) for value in range(256)]
    return picture.point([min(max(value, 0), 255) for value in table] * 3)


SPECIAL = {
    Op.LINEAR: linear,
    Op.RESAMPLE: resample,
    Op.WINDOW: window,
    Op.AFFINE: affine,
    Op.POSTERIZE: posterize,
    Op.SOLARIZE: solarize,
    Op.SOLARIZE_ADD: solarize_add,
}


def by_pillow(images: np.ndarray, slots: Sequence[BatchedOp]) -> np.ndarray:
    """images uint8 (B, H, W, 3) through `slots`, one image at a time."""
    made = []
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        for slot in slots:
            picture = expected(picture, slot.codes[i], slot.args[i], slot)
        made.append(np.array(picture))
    return np.stack(made)


# How often each operation happens to an image under timm's `original` policy.
ORIGINAL = {
    Op.EQUALIZE: 0.448,
    Op.COLOR: 0.152,
    Op.AFFINE: 0.144 + 0.024,
    Op.SOLARIZE: 0.144,
    Op.POSTERIZE: 0.112,
    Op.CONTRAST: 0.080,
    Op.INVERT: 0.072,
    Op.AUTOCONTRAST: 0.048,
    Op.SHARPNESS: 0.016,
}


# --- random arguments ------------------------------------------------------------------------

FACTORS = [0, 1, 0.1, 0.5, 0.999, 1.001, 1.9, 2, 3.7, -0.5]
NUMBERS = {  # op -> its special values, and the range of the others
    Op.POSTERIZE: ([0, 1, 4, 7, 8], (0, 9)),
    Op.SOLARIZE: ([0, 0.5, 1, 128, 128.5, 255, 256, 300], (0, 257)),
    Op.SOLARIZE_ADD: ([0, 1, 110, 127, 128, 255], (0, 129)),
    **dict.fromkeys(ENHANCERS, (FACTORS, (0, 2))),
}
FILL = (124, 116, 104)


def random_slot(
    op: int, rng: np.random.Generator, batch: int, height: int, width: int, size=None
) -> BatchedOp:
    """`op` for `batch` images of height x width, each with its own arguments, edge values too.

    size: (height, width) of the result, where op can change it; drawn if None.
    """
    codes, args = np.full(batch, op, np.int64), np.zeros((batch, ARGUMENTS))
    slot = BatchedOp(codes, args, (height, width), FILL)
    if op == Op.RESAMPLE:
        size = size or some_size(rng, height, width)
        for row in args:
            row[:5] = *crop(rng, height, width, size), rng.integers(3)
        return replace(slot, size=size)
    if op == Op.WINDOW:
        return random_window(slot, rng, height, width, size)
    if op == Op.AFFINE:
        for row in args:
            row[:7] = *matrix(rng, height, width), rng.integers(3)
    elif op in NUMBERS:
        special, (low, high) = NUMBERS[op]
        drawn = rng.uniform(low, high, batch)
        if op in (Op.POSTERIZE, Op.SOLARIZE_ADD):
            drawn = np.floor(drawn)
        args[:, 0] = np.where(rng.random(batch) < 0.5, rng.choice(special, batch), drawn)
    elif op == Op.LINEAR:
        args[:, 0] = np.where(rng.random(batch) < 0.5, rng.choice(FACTORS, batch), 1.0)
        args[:, 1] = rng.choice([0, 0.5, -0.5, 51, -51.0, 300, *rng.uniform(-60, 60, 6)], batch)
    return slot


def some_size(rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
    sizes = [(height, width), (height + 3, max(width - 2, 1)), (max(height // 2, 1), 2 * width)]
    return sizes[rng.integers(3)]


def crop(rng, height, width, size):
    """Top, left, height, width: anything, the whole, one pixel, a line, or what needs no resize."""
    sides = [
        (rng.integers(1, height + 1), rng.integers(1, width + 1)),
        (height, width),
        (1, 1),
        (height, 1),
        (min(size[0], height), min(size[1], width)),
    ][rng.choice(5, p=[0.6, 0.1, 0.1, 0.1, 0.1])]
    return rng.integers(height - sides[0] + 1), rng.integers(width - sides[1] + 1), *sides


def random_window(slot: BatchedOp, rng, height: int, width: int, size=None) -> BatchedOp:
    """A window of one padded size; reflected or filled."""
    reflect = bool(rng.integers(2)) and min(height, width) > 1
    pad = int(rng.integers(1, min(height, width, 5))) if reflect else 4
    mode, options = ("reflect", {}) if reflect else ("constant", {"constant_values": -1})
    rows = np.pad(np.arange(height), pad, mode, **options)
    columns = np.pad(np.arange(width), pad, mode, **options)
    size = size or tuple(int(rng.integers(1, len(line) + 1)) for line in (rows, columns))
    for i, line in enumerate((rows, columns)):
        slot.args[:, i] = rng.integers(0, len(line) - size[i] + 1, len(slot.args))
    return replace(slot, size=size, rows=rows, columns=columns)


def rotation(degrees: float, height: int, width: int) -> list[float]:
    """The six numbers with which Pillow turns an image around its centre."""
    angle = -math.radians(degrees)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), a
    x, y = width / 2, height / 2
    return [a, b, a * -x + b * -y + 0.0 + x, d, e, d * -x + e * -y + 0.0 + y]


def matrix(rng, height, width):
    """a to f: turned, sheared, shifted, scaled, anything, flat, or far outside."""
    shift = rng.choice([rng.integers(-width, width + 1), rng.uniform(-width, width), 0.5, 0])
    factor = rng.choice([rng.uniform(-0.5, 0.5), rng.uniform(-3, 3), 0.3, -0.3, 0])
    middle = width / 2
    return [
        rotation(rng.choice([rng.uniform(-180, 180), 27, -24, 0, 90]), height, width),
        [1, factor, 0, 0, 1, 0],
        [1, 0, 0, factor, 1, 0],
        [1, 0, shift, 0, 1, 0],
        [1, 0, 0, 0, 1, shift],
        [rng.uniform(0.2, 3), 0, shift, 0, rng.uniform(0.2, 3), -shift],
        [-1, 0, width, 0, 1, 0],
        [0, 0, middle, 0, 0, middle],
        [*rng.normal(0, 1, 2), shift, *rng.normal(0, 1, 2), shift],
        [1e300, 0, -1e300, 0, 1, 0],
    ][rng.choice(10, p=[0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1, 0.05])]

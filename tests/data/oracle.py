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

from vision_tutorial.core.registry import augments
from vision_tutorial.data.augmentation.operation import ARGUMENTS, BatchedOp, Filter, Op
from vision_tutorial.recipe.grammar import Choice

OLD = int(PIL.__version__.partition(".")[0]) < 13  # its resize always begins with the width
NEW_PILLOW = "Pillow 13 or newer is what resizing is compared with"
FILTERS = [Image.Resampling[kind.name] for kind in Filter]
SIZES = [(32, 32), (24, 40), (7, 5), (65, 64), (1, 1), (2, 5), (5, 2), (1, 9)]
FILL = (124, 116, 104)


def entry(name: str, **options) -> Choice:
    """An entry of the augmentations with its defaults, as a recipe has it."""
    whole = augments.entries[name].__kwdefaults__ | options
    return Choice(name, {key: tuple(v) if isinstance(v, list) else v for key, v in whole.items()})


def drawn(rng, batch: int, height: int, width: int) -> np.ndarray:
    """Noise, gradients, flat and two-valued images in turn, uint8 (batch, height, width, 3)."""
    shape = (batch, height, width, 3)
    noise = rng.integers(0, 256, shape)
    slopes = rng.uniform(-9, 9, (2, batch, 1, 1, 3))
    ramp = (
        slopes[0] * np.arange(height)[:, None, None] + slopes[1] * np.arange(width)[:, None] + 128
    )
    flat = np.broadcast_to(rng.integers(0, 256, (batch, 1, 1, 3)), shape)
    two = np.where(noise < rng.integers(0, 256, (batch, 1, 1, 1)), flat, 255 - flat // 2)
    kind = np.arange(batch).reshape(-1, 1, 1, 1) % 4
    return np.choose(kind, [noise, ramp.clip(0, 255), flat, two]).astype(np.uint8)


def chi2_fits(found, wanted) -> bool:
    """Counts against expected ones: within five deviations of chi-square's mean."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    wanted = wanted * found.sum() / wanted.sum()
    freedom = len(found) - 1
    chi2 = ((found - wanted) ** 2 / wanted).sum()
    return abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def same_distribution(ours, theirs, bins: int = 25) -> bool:
    """Two samples of one number each: a two-sample chi-square over the second's quantiles."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    inner = np.unique(np.quantile(theirs, np.linspace(0, 1, bins + 1)))[1:-1]
    edges = [-np.inf, *inner, np.inf]
    a, b = np.histogram(ours, edges)[0], np.histogram(theirs, edges)[0]
    share = math.sqrt(len(theirs) / len(ours))
    chi2 = ((a * share - b / share) ** 2 / np.maximum(a + b, 1)).sum()
    return chi2 < len(a) + 5 * math.sqrt(2 * len(a))


def happens(found: np.ndarray, p: float) -> bool:
    """Whether about a share p of `found` (bool) is true, and exactly it for 0 and 1."""
    found = np.asarray(found)
    return abs(found.mean() - p) <= 5 * math.sqrt(p * (1 - p) / found.size)


# --- one operation by Pillow -----------------------------------------------------------------


def resample(image: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    if OLD:
        pytest.skip(NEW_PILLOW)
    top, left, height, width = (int(value) for value in args[:4])
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize(slot.size[::-1], FILTERS[int(args[4])])


def window(image: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    (top, bottom), (left, right) = (
        padding(source, length)
        for source, length in ((slot.rows, image.height), (slot.columns, image.width))
    )
    mode = "constant" if (slot.rows < 0).any() or (slot.columns < 0).any() else "reflect"
    padded = functional.pad(image, [left, top, right, bottom], slot.fill, mode)
    return functional.crop(padded, int(args[0]), int(args[1]), *slot.size)


def padding(source: np.ndarray, length: int) -> tuple[int, int]:
    """How many pixels come before and after: `source` is the index of each padded one."""
    before = int(np.argmin(np.where(source < 0, length, source)))
    return before, len(source) - length - before


def affine(image: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    matrix = tuple(args[:6].tolist())
    method = Image.Transform.AFFINE
    return image.transform(image.size, method, matrix, FILTERS[int(args[6])], fillcolor=slot.fill)


def posterize(image: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    if args[0] <= 0:  # black, as timm's policy v0 has it; Pillow 13 refuses
        return Image.new("RGB", image.size)
    return ImageOps.posterize(image, int(args[0]))


def solarize_add(image: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    table = [min(255, value + int(args[0])) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def linear(image: Image.Image, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    table = [math.floor(args[0] * value + args[1] + 0.5) for value in range(256)]
    return image.point([min(max(value, 0), 255) for value in table] * 3)


ENHANCERS = {
    Op.BRIGHTNESS: ImageEnhance.Brightness,
    Op.CONTRAST: ImageEnhance.Contrast,
    Op.COLOR: ImageEnhance.Color,
    Op.SHARPNESS: ImageEnhance.Sharpness,
}
OTHERS = {
    Op.NONE: lambda image, args, slot: image,
    Op.HFLIP: lambda image, args, slot: ImageOps.mirror(image),
    Op.VFLIP: lambda image, args, slot: ImageOps.flip(image),
    Op.AUTOCONTRAST: lambda image, args, slot: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, args, slot: ImageOps.equalize(image),
    Op.LINEAR: linear,
    Op.RESAMPLE: resample,
    Op.WINDOW: window,
    Op.AFFINE: affine,
    Op.POSTERIZE: posterize,
    Op.SOLARIZE: lambda image, args, slot: ImageOps.solarize(image, args[0]),
    Op.SOLARIZE_ADD: solarize_add,
}


def expected(image: Image.Image, code: int, args: np.ndarray, slot: BatchedOp) -> Image.Image:
    """`image` (RGB) after one operation of `slot` with its arguments (ARGUMENTS,), by Pillow."""
    if code in ENHANCERS:
        return ENHANCERS[code](image).enhance(args[0])
    return OTHERS[code](image, args, slot)


def by_pillow(images: np.ndarray, slots: Sequence[BatchedOp]) -> np.ndarray:
    """images uint8 (B, H, W, 3) through `slots`, one image at a time."""
    made = []
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        for slot in slots:
            image = expected(image, slot.codes[i], slot.args[i], slot)
        made.append(np.array(image))
    return np.stack(made)


# How often each operation happens to an image under timm's `original` policy.
ORIGINAL = {
    Op.EQUALIZE: 0.448,
    Op.COLOR: 0.152,
    Op.AFFINE: 0.144 + 0.024,
    Op.SOLARIZE: 0.144 + 0.072,  # those of an inversion too
    Op.POSTERIZE: 0.112,
    Op.CONTRAST: 0.080,
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


def matrix(rng, height, width):
    """a to f: turned, sheared, shifted, scaled, anything, flat, or far outside."""
    shift = rng.choice([rng.integers(-width, width + 1), rng.uniform(-width, width), 0.5, 0])
    factor = rng.choice([rng.uniform(-0.5, 0.5), rng.uniform(-3, 3), 0.3, -0.3, 0])
    angle, middle = math.radians(rng.choice([rng.uniform(-180, 180), 27, 0, 90])), width / 2
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return [
        [a, b, middle - a * middle, -b, a, height / 2 + b * middle],
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

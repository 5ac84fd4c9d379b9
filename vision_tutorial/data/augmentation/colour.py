"""Operations of light and colour; every pixel stays in its place, so masks need not follow.

Luma is the Y of Pillow's YCbCr: that of BT.601, from 0 to 255.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from math import floor

import numpy as np
from PIL import Image, ImageOps
from torchvision import transforms as tv

from ...core.errors import UserError, check_range
from ...core.registry import augments
from .operation import Op, Operation, around, batched_op, check_pairs, pick, sometimes

LEVELS = 256


@augments.register
def color_jitter(*, strength: float | list[float] = 0.4, p: float = 1.0) -> Operation:
    """Brightness, contrast and saturation by factors in 1 ± strength, in random order (timm).

    strength: one number for the three, or a list [brightness, contrast, saturation] or
    [brightness, contrast, saturation, hue], hue at most 0.5.
    """
    check_range("color_jitter", "[0, 1]", p=p)
    parts = list(strength) if isinstance(strength, Sequence) else [strength] * 3
    if len(parts) not in (3, 4):
        raise UserError(f"color_jitter: strength is {strength}; use a number, or 3 or 4 of them.")
    check_range("color_jitter", "[0, 10]", strength=parts[:3])
    check_range("color_jitter", "[0, 0.5]", hue=parts[3:])
    changes = zip((Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR), parts[:3], strict=True)
    spans = [(code, max(0.0, 1 - part), 1 + part) for code, part in changes if part]
    codes, low, high = np.reshape(spans, (-1, 3)).T
    orders = np.array(list(permutations(range(len(codes)))), np.int64)

    def sample(stream, source):
        u = stream(8)
        order = orders[pick(u[:, 1], len(orders))]  # (B, operations)
        kinds = np.where(u[:, :1] < p, codes[order], Op.NONE)
        factors = np.take_along_axis(low + (high - low) * u[:, 4 : 4 + len(codes)], order, 1)
        return [
            batched_op(len(stream), kinds[:, i], source, factors[:, i]) for i in range(len(codes))
        ]

    jitter = tv.ColorJitter(*parts)
    # As in timm, where p = 1 makes no draw.
    reference = jitter if p == 1 else tv.RandomApply([jitter], p)
    hue = len(parts) == 4 and parts[3]  # has no batched form
    return Operation(reference, "colour", sample=None if hue else sample)


@augments.register
def brightness_contrast(*, limit: float = 0.2, p: float = 0.5) -> Operation:
    """Each value v becomes (1 + c)·v + 255·b, with probability p; b and c in ± limit.

    Rounded and clipped; c and b are drawn for the image. Albumentations' RandomBrightnessContrast
    with `brightness_by_max`, its default.
    """
    check_range("brightness_contrast", "[0, 1]", limit=limit, p=p)

    def args(source, contrast, brightness):
        return around(1, limit, contrast), 255 * around(0, limit, brightness)

    reference = tv.RandomApply([partial(_brighten, limit=limit)], p)
    return Operation(reference, "colour", sample=sometimes(Op.LINEAR, p, 2, args))


def _brighten(image: Image.Image, limit: float) -> Image.Image:
    factor = 1 + random.uniform(-limit, limit)
    return image.point(linear(factor, 255 * random.uniform(-limit, limit)) * 3)


def linear(factor: float, shift: float) -> list[int]:
    """What each value becomes: factor * value + shift, half rounded up, clipped."""
    return [min(max(floor(factor * v + shift + 0.5), 0), LEVELS - 1) for v in range(LEVELS)]


@augments.register
def grayscale(*, p: float = 0.1) -> Operation:
    """Take the colour away with probability p; still three channels."""
    check_range("grayscale", "[0, 1]", p=p)
    return Operation(tv.RandomGrayscale(p), "colour", sample=sometimes(Op.COLOR, p))


@augments.register
def gaussian_blur(
    *, p: float = 0.1, kernel: int = 23, sigma: tuple[float, float] = (0.1, 2.0)
) -> Operation:
    """Blur with probability p, by a random standard deviation of `sigma` pixels (SimCLR)."""
    check_range("gaussian_blur", "[0, 1]", p=p)
    check_range("gaussian_blur", "[1, 99]", kernel=kernel)
    check_pairs("gaussian_blur", "(0, 100]", sigma=sigma)
    if kernel % 2 == 0:
        raise UserError(f"gaussian_blur: kernel is {kernel}; use an odd number of pixels.")
    blur = tv.RandomApply([tv.GaussianBlur(kernel, sigma)], p)

    def reference(image: Image.Image) -> Image.Image:
        if min(image.size) <= kernel // 2:  # what is outside is mirrored, once
            raise UserError(
                f"augment.gaussian_blur: kernel {kernel} is too large for an image of "
                f"{image.width}x{image.height}; use at most {2 * min(image.size) - 1}."
            )
        return blur(image)

    return Operation(reference, "colour")


@augments.register
def equalize_luma(*, p: float = 1.0) -> Operation:
    """Histogram equalisation of the luma, with probability p; colours keep their hue (Pillow's)."""
    check_range("equalize_luma", "[0, 1]", p=p)
    reference = tv.RandomApply([partial(_on_luma, change=ImageOps.equalize)], p)
    return Operation(reference, "colour", random=p < 1)


@augments.register
def clahe(*, p: float = 0.5, clip: tuple[float, float] = (1.0, 4.0), grid: int = 8) -> Operation:
    """Contrast-limited adaptive histogram equalisation of the luma (Zuiderveld 1994; OpenCV's).

    clip: the limit is drawn from it; in units of a flat histogram's bin, the most that a bin may
    hold. grid: so many tiles down and across. p: how often. Albumentations takes the L of CIELAB.
    """
    check_range("clahe", "[0, 1]", p=p)
    check_range("clahe", "[1, 64]", grid=grid)
    check_pairs("clahe", "(0, 255]", clip=clip)
    reference = tv.RandomApply([partial(_adapt, clip=clip, grid=grid)], p)
    return Operation(reference, "colour", random=p < 1 or len({*clip}) > 1)


def _adapt(image: Image.Image, clip: tuple[float, float], grid: int) -> Image.Image:
    limit = random.uniform(*clip)
    return _on_luma(
        image, lambda luma: Image.fromarray(equalized_in_tiles(np.asarray(luma), limit, grid))
    )


def _on_luma(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The RGB image with its luma, a grey image, changed."""
    luma, blue, red = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (change(luma), blue, red)).convert("RGB")


def equalized_in_tiles(values: np.ndarray, clip: float, grid: int) -> np.ndarray:
    """CLAHE of uint8 (H, W) by `grid` x `grid` tiles: between the tables of the four nearest tiles.

    OpenCV's arithmetic (`createCLAHE(clip, (grid, grid))`): float32, in its order.
    """
    tables, tile = _tile_tables(values, clip, grid)
    (up, down, dy), (left, right, dx) = (
        _neighbours(length, side, grid) for length, side in zip(values.shape, tile, strict=True)
    )
    one = np.float32(1)
    above, below = (
        tables[row[:, None], left, values] * (one - dx) + tables[row[:, None], right, values] * dx
        for row in (up, down)
    )
    dy = dy[:, None]
    return np.rint(above * (one - dy) + below * dy).astype(np.uint8)


def _tile_tables(values: np.ndarray, clip: float, grid: int) -> tuple[np.ndarray, tuple[int, int]]:
    """What each tile makes of each value: float32 (grid, grid, 256); a tile's height and width.

    An image that does not divide is continued by its mirror image; a side of it that does divide
    by `grid` lines then, as in OpenCV.
    """
    lacking = [grid - length % grid for length in values.shape]
    if any(more < grid for more in lacking):
        values = np.pad(values, [(0, more) for more in lacking], mode="reflect")
    height, width = (length // grid for length in values.shape)
    tiles = values.reshape(grid, height, grid, width).transpose(0, 2, 1, 3).reshape(grid**2, -1)
    which = np.arange(grid**2)[:, None] * LEVELS + tiles
    counts = np.bincount(which.ravel(), minlength=grid**2 * LEVELS).reshape(grid, grid, LEVELS)
    most = max(int(clip * height * width / LEVELS), 1)
    whole, rest = np.divmod(np.maximum(counts - most, 0).sum(2, keepdims=True), LEVELS)
    # What does not divide goes to every step-th bin from the first on.
    step, bins = np.maximum(LEVELS // np.maximum(rest, 1), 1), np.arange(LEVELS)
    counts = np.minimum(counts, most) + whole + ((bins % step == 0) & (bins // step < rest))
    scale = np.float32(LEVELS - 1) / np.float32(height * width)
    return np.rint(counts.cumsum(2).astype(np.float32) * scale).clip(0, 255), (height, width)


def _neighbours(length: int, side: int, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `length` pixels: the tile before it, the one behind, its share of the latter."""
    place = np.arange(length, dtype=np.float32) * (np.float32(1) / np.float32(side))
    place -= np.float32(0.5)
    before = np.floor(place)
    behind = before.astype(np.int64) + 1
    return (behind - 1).clip(0), behind.clip(max=grid - 1), place - before

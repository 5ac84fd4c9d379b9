"""Operations that move pixels: crops, resizes, mirrors, turns.

A recipe's chain is applied in its order and nothing is skipped silently (timm drops colour jitter
next to AutoAugment; here one leaves it out).
"""

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode

from ...core.errors import check_range
from ...core.registry import augments
from .operation import (
    PIXELS,
    BatchedOp,
    Op,
    Operation,
    RandomStream,
    Size,
    around,
    batched_op,
    between,
    check_pairs,
    filters,
    pick,
    sometimes,
)

ATTEMPTS = 10  # of a random crop or box, as in timm


@augments.register
def random_resized_crop(
    *,
    size: int = 32,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (0.75, 1.3333333333333333),
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Operation:
    """A random share `scale` of the area at a random aspect ratio, resized to `size` (Inception).

    interpolation: `random` draws bilinear or bicubic for each image; both are antialiased.
    """
    check_range("random_resized_crop", PIXELS, size=size)
    check_pairs("random_resized_crop", "(0, 1]", scale=scale)
    check_pairs("random_resized_crop", "(0, 100]", ratio=ratio)

    def sample(stream, source):
        boxes, without = draw_boxes(stream, source, scale, ratio)
        # As timm: the largest box in the middle whose aspect ratio is allowed.
        (height, width), (least, most) = source, ratio
        h, w = min(height, round(width / least)), min(width, round(height * most))
        boxes[without] = (height - h) // 2, (width - w) // 2, h, w
        kinds = filters(interpolation, stream(1, block=ATTEMPTS)[:, 0])
        return [batched_op(len(stream), Op.RESAMPLE, (size, size), *boxes.T, kinds)]

    reference = RandomResizedCropAndInterpolation(size, scale, ratio, interpolation)
    return Operation(reference, sample=sample, framing=True)


def draw_boxes(
    stream: RandomStream,
    source: Size,
    share: Sequence[float],
    ratio: Sequence[float],
    *,
    erased: bool = False,
    block: int = 0,
    parts: np.ndarray | int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """A box for each image, float64 (B, 4): top, left, height, width; and who found none, (n,).

    share: of the area of `source`, over `parts`, (B,) or one number. ratio: of width to height, or
    of height to width where `erased`, which is also smaller than the image, as timm has both.
    Attempt k takes block `block` + k of the stream.
    """
    height, width = source
    boxes, left = np.zeros((len(stream), 4)), np.arange(len(stream))
    parts, logs = np.broadcast_to(parts, len(stream)), [math.log(end) for end in ratio]
    for attempt in range(ATTEMPTS):
        u = stream.of(left)(4, block + attempt)
        area = between(share, u[:, 0]) * (height * width) / parts[left]
        aspect = np.exp(between(logs, u[:, 1]))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        if erased:
            h, w = w, h
        else:
            w, h = np.maximum(w, 1), np.maximum(h, 1)  # a very small part is one pixel
        fits = (h <= height - erased) & (w <= width - erased)
        h, w, u = h[fits], w[fits], u[fits]
        top, start = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        boxes[left[fits]] = np.stack([top, start, h, w], 1)
        left = left[~fits]
        if not len(left):
            break
    return boxes, left


@augments.register
def random_crop(
    *,
    size: int = 32,
    padding: int = 4,
    fill: tuple[int, int, int] = (0, 0, 0),
    mode: Literal["constant", "reflect"] = "constant",
) -> Operation:
    """A random `size` x `size` window of the image padded by `padding` pixels (CIFAR's classic).

    An image that is still too small is padded further.
    """
    check_range("random_crop", PIXELS, size=size)
    check_range("random_crop", "[0, 8192]", padding=padding)
    check_range("random_crop", "[0, 255]", fill=fill)

    def sample(stream, source):
        lines = [padded(length, size, padding, mode) for length in source]
        starts = [pick(u, len(line) - size + 1) for u, line in zip(stream(2).T, lines, strict=True)]
        return [window(len(stream), size, starts, lines, fill)]

    reference = tv.RandomCrop(size, padding, True, fill, mode)
    return Operation(reference, sample=sample, framing=True)


def window(
    count: int, size: int, starts: list, lines: list, fill: tuple[int, int, int]
) -> BatchedOp:
    """Windows of `size` x `size` from `starts` on, of the rows and columns `lines`."""
    more = {"fill": fill, "rows": lines[0], "columns": lines[1]}
    return batched_op(count, Op.WINDOW, (size, size), *starts, **more)


def padded(length: int, size: int, padding: int, mode: str) -> np.ndarray:
    """Which row of `length` each row of the padded image shows; -1: none."""
    line = np.arange(length)
    for pad in (padding, max(0, size - length - 2 * padding)):
        line = np.pad(line, pad, mode, **({} if mode == "reflect" else {"constant_values": -1}))
    return line


@augments.register
def hflip(*, p: float = 0.5) -> Operation:
    """Mirror left and right with probability p."""
    check_range("hflip", "[0, 1]", p=p)
    return Operation(tv.RandomHorizontalFlip(p), sample=sometimes(Op.HFLIP, p), framing=True)


@augments.register
def vflip(*, p: float = 0.5) -> Operation:
    """Mirror top and bottom with probability p."""
    check_range("vflip", "[0, 1]", p=p)
    return Operation(tv.RandomVerticalFlip(p), sample=sometimes(Op.VFLIP, p), framing=True)


@augments.register
def rotate(
    *,
    limit: float = 30.0,
    p: float = 0.5,
    fill: tuple[int, int, int] = (124, 116, 104),
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Operation:
    """Turn about the middle by -limit to limit degrees, with probability p; the size stays.

    fill: the colour that moves in from outside; the default is ImageNet's mean.
    """
    check_range("rotate", "[0, 180]", limit=limit)
    check_range("rotate", "[0, 1]", p=p)
    check_range("rotate", "[0, 255]", fill=fill)

    def args(source, number):
        return *rotation(around(0, limit, number), *source), filters(interpolation)

    mode = str_to_interp_mode(interpolation)
    turn = tv.RandomApply([tv.RandomRotation((-limit, limit), mode, fill=fill)], p)
    return Operation(turn, sample=sometimes(Op.AFFINE, p, 1, args, fill))


def rotation(degrees: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Pillow's `rotate` about the middle, counter-clockwise: a, b, c, d, e, f, each (n,)."""
    # Python's cosine and its rounding to 15 digits, as in Pillow; NumPy's differ in the last bit.
    different, which = np.unique(degrees % 360.0, return_inverse=True)
    angles = [-math.radians(angle) for angle in different.tolist()]
    cosine = np.array([round(math.cos(angle), 15) for angle in angles])[which]
    sine = np.array([round(math.sin(angle), 15) for angle in angles])[which]
    minus = -sine
    x, y = width / 2, height / 2
    across = cosine * -x + sine * -y + 0.0 + x
    down = minus * -x + cosine * -y + 0.0 + y
    return cosine, sine, across, minus, cosine, down


@augments.register
def random_scale(
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Operation:
    """Resize both sides by one random factor of `scale`, antialiased; crop to one size after it."""
    check_pairs("random_scale", "(0, 10]", scale=scale)

    def sample(stream, source):
        factor = between(scale, stream(1).item())
        size = tuple(max(1, round(factor * side)) for side in source)
        return [batched_op(1, Op.RESAMPLE, size, 0, 0, *source, filters(interpolation))]

    reference = partial(rescale, scale=scale, mode=str_to_interp_mode(interpolation))
    return Operation(reference, sample=sample, single=True, framing=True)


def rescale(image: Image.Image, scale: tuple[float, float], mode: InterpolationMode) -> Any:
    """The image, both sides times one factor from scale[0] to scale[1], each at least a pixel."""
    factor = random.uniform(*scale)
    size = [max(1, round(factor * side)) for side in (image.height, image.width)]
    return tv.functional.resize(image, size, mode)


@augments.register
def resize(
    *,
    size: int | tuple[int, int] = 36,
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
) -> Operation:
    """Make the shorter side `size` pixels, antialiased, or the image [height, width].

    With one number the aspect ratio stays.
    """
    check_range("resize", PIXELS, size=size)

    def sample(stream, source):
        target = size
        if isinstance(size, int):
            target = tuple(int(size * length / min(source)) for length in source)
        kind = filters(interpolation)
        return [batched_op(len(stream), Op.RESAMPLE, target, 0, 0, *source, kind)]

    reference = tv.Resize(size, str_to_interp_mode(interpolation))
    return Operation(reference, sample=sample, framing=True, random=False)


@augments.register
def center_crop(*, size: int = 32) -> Operation:
    """The middle `size` x `size` pixels; a smaller image is padded with black."""
    check_range("center_crop", PIXELS, size=size)

    def sample(stream, source):
        lines, starts = [], []
        for length in source:
            short = max(0, size - length)
            pads = (short // 2, (short + 1) // 2)
            lines.append(np.pad(np.arange(length), pads, constant_values=-1))
            starts.append(0 if short else round((length - size) / 2.0))
        return [window(len(stream), size, starts, lines, (0, 0, 0))]

    return Operation(tv.CenterCrop(size), sample=sample, framing=True, random=False)

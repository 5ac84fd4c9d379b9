"""Operations that move pixels: crops, resizes, mirrors, turns.

A recipe's chain is applied in its order and nothing is skipped silently (timm drops colour jitter
next to AutoAugment; here one leaves it out).
"""
# ruff: noqa: B006 - an option's default must be the literal a recipe would hold; none is written to

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

from ...core.registry import augments
from .operation import (
    ATTEMPTS,
    FILTERS,
    MOST_PIXELS,
    BatchedOp,
    Op,
    Operation,
    RandomStream,
    Size,
    around,
    batched_op,
    check,
    check_colour,
    check_name,
    check_size,
    check_span,
    filters,
    pick,
    sometimes,
)

RESAMPLING = ("random", "nearest", "bilinear", "bicubic")


@augments.register
def random_resized_crop(
    *,
    size: int = 32,
    scale: list[float] = [0.08, 1.0],
    ratio: list[float] = [0.75, 1.3333333333333333],
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Operation:
    """A random share `scale` of the area at a random aspect ratio, resized to `size` (Inception).

    interpolation: `random` draws bilinear or bicubic for each image; both are antialiased.
    """
    check("random_resized_crop", "size", size, 1, MOST_PIXELS)
    check_span("random_resized_crop", "scale", scale, 1.0)
    check_span("random_resized_crop", "ratio", ratio, 100.0)
    check_name("interpolation", interpolation, RESAMPLING)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        boxes = crops(stream, source, scale, ratio)
        kinds = filters(stream(1, block=ATTEMPTS)[:, 0], interpolation)
        return [batched_op(len(stream), Op.RESAMPLE, (size, size), *boxes.T, kinds)]

    reference = RandomResizedCropAndInterpolation(size, tuple(scale), tuple(ratio), interpolation)
    return Operation(reference, sample=sample, framing=True)


def crops(
    stream: RandomStream, source: Size, scale: Sequence[float], ratio: Sequence[float]
) -> np.ndarray:
    """Boxes (B, 4): top, left, height, width. Attempt k takes block k of the stream."""
    height, width = source
    boxes = np.tile(np.array(middle(source, ratio), np.float64), (len(stream), 1))
    left = np.arange(len(stream))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        u = stream.of(left)(4, block=attempt)
        area = (scale[0] + (scale[1] - scale[0]) * u[:, 0]) * (width * height)
        aspect = np.exp(low + (high - low) * u[:, 1])
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        w, h = np.maximum(w, 1), np.maximum(h, 1)  # a very small part is one pixel
        fits = (w <= width) & (h <= height)
        w, h, u = w[fits], h[fits], u[fits]
        top, start = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        boxes[left[fits]] = np.stack([top, start, h, w], 1)
        left = left[~fits]
        if not len(left):
            break
    return boxes


def middle(source: Size, ratio: Sequence[float]) -> tuple[int, int, int, int]:
    """The largest box in the middle whose aspect ratio is allowed."""
    height, width = source
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@augments.register
def random_crop(
    *,
    size: int = 32,
    padding: int = 4,
    fill: list[int] = [0, 0, 0],
    mode: Literal["constant", "reflect"] = "constant",
) -> Operation:
    """A random `size` x `size` window of the image padded by `padding` pixels (CIFAR's classic).

    An image that is still too small is padded further.
    """
    check("random_crop", "size", size, 1, MOST_PIXELS)
    check("random_crop", "padding", padding, 0, MOST_PIXELS)
    check_name("padding mode", mode, ("constant", "reflect"))
    colour = check_colour("random_crop", fill)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        lines = [padded(length, size, padding, mode) for length in source]
        starts = [pick(u, len(line) - size + 1) for u, line in zip(stream(2).T, lines, strict=True)]
        return [
            batched_op(
                len(stream),
                Op.WINDOW,
                (size, size),
                *starts,
                fill=tuple(fill),
                rows=lines[0],
                columns=lines[1],
            )
        ]

    reference = tv.RandomCrop(size, padding, pad_if_needed=True, fill=colour, padding_mode=mode)
    return Operation(reference, sample=sample, framing=True)


def padded(length: int, size: int, padding: int, mode: str) -> np.ndarray:
    """Which row of `length` each row of the padded image shows; -1: none."""
    line = np.arange(length)
    extra = max(0, size - length - 2 * padding)
    for pad in (padding, extra):
        if mode == "reflect":
            line = np.pad(line, pad, mode="reflect")
        else:
            line = np.pad(line, pad, constant_values=-1)
    return line


@augments.register
def hflip(*, p: float = 0.5) -> Operation:
    """Mirror left and right with probability p."""
    check("hflip", "p", p, 0, 1)
    return Operation(tv.RandomHorizontalFlip(p), sample=sometimes(Op.HFLIP, p), framing=True)


@augments.register
def vflip(*, p: float = 0.5) -> Operation:
    """Mirror top and bottom with probability p."""
    check("vflip", "p", p, 0, 1)
    return Operation(tv.RandomVerticalFlip(p), sample=sometimes(Op.VFLIP, p), framing=True)


@augments.register
def rotate(
    *,
    limit: float = 30.0,
    p: float = 0.5,
    fill: list[int] = [124, 116, 104],
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Operation:
    """Turn about the middle by -limit to limit degrees, with probability p; the size stays.

    fill: the colour that moves in from outside; the default is ImageNet's mean.
    """
    check("rotate", "limit", limit, 0, 180)
    check("rotate", "p", p, 0, 1)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    colour, mode = check_colour("rotate", fill), str_to_interp_mode(interpolation)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(2)
        codes = np.where(u[:, 0] < p, Op.AFFINE, Op.NONE)
        matrix = rotation(around(0, limit, u[:, 1]), *source)
        kind = int(FILTERS[interpolation])
        return [batched_op(len(stream), codes, source, *matrix, kind, fill=tuple(fill))]

    turn = tv.RandomRotation((-limit, limit), mode, fill=colour)
    return Operation(tv.RandomApply([turn], p), sample=sample)


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
    scale: list[float] = [0.5, 2.0],
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Operation:
    """Resize both sides by one random factor of `scale`, antialiased; crop to one size after it."""
    check_span("random_scale", "scale", scale, 10.0)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    mode = str_to_interp_mode(interpolation)

    def sample_one(stream: RandomStream, source: Size) -> list[BatchedOp]:
        factor = scale[0] + (scale[1] - scale[0]) * stream(1).item()
        size = tuple(max(1, round(factor * side)) for side in source)
        return [batched_op(1, Op.RESAMPLE, size, 0, 0, *source, int(FILTERS[interpolation]))]

    reference = partial(rescale, scale=tuple(scale), mode=mode)
    return Operation(reference, sample_one=sample_one, framing=True)


def rescale(image: Image.Image, scale: tuple[float, float], mode: InterpolationMode) -> Any:
    """The image, both sides times one factor from scale[0] to scale[1], each at least a pixel."""
    factor = random.uniform(*scale)
    size = [max(1, round(factor * side)) for side in (image.height, image.width)]
    return tv.functional.resize(image, size, mode)


@augments.register
def resize(
    *,
    size: int | list[int] = 36,
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
) -> Operation:
    """Make the shorter side `size` pixels, antialiased, or the image [height, width].

    With one number the aspect ratio stays.
    """
    check_size("resize", size)
    check_name("interpolation", interpolation, RESAMPLING[1:])

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        height, width = source
        if isinstance(size, int):
            short = min(source)
            target = (int(size * height / short), int(size * width / short))
        else:
            target = tuple(size)
        kind = int(FILTERS[interpolation])
        return [batched_op(len(stream), Op.RESAMPLE, target, 0, 0, height, width, kind)]

    reference = tv.Resize(size, str_to_interp_mode(interpolation))
    return Operation(reference, sample=sample, framing=True, random=False)


@augments.register
def center_crop(*, size: int = 32) -> Operation:
    """The middle `size` x `size` pixels; a smaller image is padded with black."""
    check("center_crop", "size", size, 1, MOST_PIXELS)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        lines, starts = [], []
        for length in source:
            short = max(0, size - length)
            pads = (short // 2, (short + 1) // 2)
            lines.append(np.pad(np.arange(length), pads, constant_values=-1))
            starts.append(0 if short else round((length - size) / 2.0))
        return [
            batched_op(
                len(stream), Op.WINDOW, (size, size), *starts, rows=lines[0], columns=lines[1]
            )
        ]

    return Operation(tv.CenterCrop(size), sample=sample, framing=True, random=False)

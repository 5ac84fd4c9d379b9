"""Boxes of the normalised image that are overwritten.

Drawn on the CPU wherever the images are, so that every device erases the same. As in timm, a box
is tried ten times and left out if it never fits. A mask keeps its labels under a box.
"""
# ruff: noqa: B006 - an option's default must be the literal a recipe would hold; none is written to

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as tv

from ...core.registry import augments
from .operation import (
    ATTEMPTS,
    MOST_PIXELS,
    Operation,
    Patch,
    RandomStream,
    Size,
    check,
    check_name,
    check_span,
    pick,
)

CHANNELS = 3
TABLE_BITS = 16  # of a draw that becomes a normal number


@augments.register
def random_erasing(
    *,
    p: float = 0.25,
    mode: Literal["const", "rand", "pixel"] = "pixel",
    area: list[float] = [0.02, 0.3333333333333333],
    aspect: list[float] = [0.3, 3.3333333333333335],
    count: int = 1,
) -> Operation:
    """Overwrite random boxes of the normalised image, with probability p (Zhong et al. 2020).

    mode: zero (the mean colour), one normal colour a box, or a normal draw a pixel. area: share of
    the image that all boxes cover. count: at most so many boxes.
    """
    check("random_erasing", "p", p, 0, 1)
    check_name("mode of random_erasing", mode, ("const", "rand", "pixel"))
    check_span("random_erasing", "area", area, 1.0)
    check_span("random_erasing", "aspect", aspect, 100.0)
    check("random_erasing", "count", count, 1, 100)

    def sample(stream: RandomStream, source: Size) -> list[Patch]:
        u = stream(2)
        counts = np.where(u[:, 0] < p, 1 + pick(u[:, 1], count), 0)
        return [
            _patch(stream, _erased_boxes(stream, source, area, aspect, counts, box), mode, box)
            for box in range(count)
            if (counts > box).any()
        ]

    erase = RandomErasing(p, *area, *aspect, mode, max_count=count, device="cpu")
    return Operation(erase, "tensor", sample_boxes=sample)


def _erased_boxes(
    stream: RandomStream,
    source: Size,
    area: Sequence[float],
    aspect: Sequence[float],
    counts: np.ndarray,
    box: int,
) -> np.ndarray:
    """Box number `box` of each image int64 (B, 4): top, left, height, width; 0 high: none."""
    height, width = source
    boxes = np.zeros((len(stream), 4), np.int64)
    left = np.flatnonzero(counts > box)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(ATTEMPTS):
        if not len(left):
            break
        u = stream.of(left)(4, block=1 + box * ATTEMPTS + attempt)
        share = (area[0] + (area[1] - area[0]) * u[:, 0]) * (height * width) / counts[left]
        slant = np.exp(low + (high - low) * u[:, 1])
        h, w = np.rint(np.sqrt(share * slant)), np.rint(np.sqrt(share / slant))
        fits = (h < height) & (w < width)
        h, w, u = h[fits], w[fits], u[fits]
        top, start = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        boxes[left[fits]] = np.stack([top, start, h, w], 1).astype(np.int64)
        left = left[~fits]
    return boxes


@augments.register
def cutout(*, holes: int = 1, size: int = 16, p: float = 1.0) -> Operation:
    """Set square holes of the normalised image to zero, its mean colour (DeVries & Taylor 2017).

    A hole's centre is any pixel, so it may reach over the border. p: how often there are any. A
    mask keeps its labels under a hole, as in mmsegmentation and albumentations.
    """
    check("cutout", "holes", holes, 1, 100)
    check("cutout", "size", size, 1, MOST_PIXELS)
    check("cutout", "p", p, 0, 1)
    half = size // 2

    def sample(stream: RandomStream, source: Size) -> list[Patch]:
        numbers = stream(2 * holes + 1)
        happens = numbers[:, -1] < p
        patches = []
        for hole in range(holes):
            ends = []
            for u, length in zip(numbers[:, 2 * hole : 2 * hole + 2].T, source, strict=True):
                centre = pick(u, length)
                first, last = np.maximum(centre - half, 0), np.minimum(centre + half, length)
                ends.append((first, (last - first) * happens))
            (top, height), (left, width) = ends
            boxes = np.stack([top, left, height, width], 1)
            patches.append(_patch(stream, boxes, "const", hole))
        return patches

    cut = partial(_cut_holes, holes=holes, size=size)
    # At p = 1 nothing is drawn for it, so that the holes lie where they lay before there was a p.
    reference = cut if p == 1 else tv.RandomApply([cut], p)
    return Operation(reference, "tensor", sample_boxes=sample)


def _cut_holes(image: Tensor, holes: int, size: int) -> Tensor:
    """Zero `holes` squares of 2 * (size // 2) pixels in image (C, H, W), in place."""
    height, width = image.shape[-2:]
    for _ in range(holes):
        y, x = np.random.randint(height), np.random.randint(width)
        half = size // 2
        image[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return image


def _patch(stream: RandomStream, boxes: np.ndarray, mode: str, number: int) -> Patch:
    """Boxes (B, 4) filled with zeros (const), a colour (rand) or noise (pixel), as timm's modes."""
    touched = np.flatnonzero(boxes[:, 2] * boxes[:, 3])
    top, left, height, width = boxes[touched].T
    counts = height * width
    which = np.repeat(np.arange(len(touched)), counts)
    # Of all pixels of a box, row by row, the number of each.
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, columns = top[which] + place // width[which], left[which] + place % width[which]
    some = stream.of(touched)
    if mode == "const":
        values = np.zeros((len(which), CHANNELS), np.float32)
    elif mode == "rand":
        values = _normals(some, number, np.full(len(touched), CHANNELS)).reshape(-1, CHANNELS)[
            which
        ]
    else:
        values = _normals(some, number, CHANNELS * counts).reshape(-1, CHANNELS)
    return Patch(touched[which], rows, columns, values)


def _normals(stream: RandomStream, number: int, counts: np.ndarray) -> np.ndarray:
    """counts (B,) normal draws for each image's box `number`, one after the other; float32."""
    blocks = -(-counts // 4)
    owners = np.repeat(np.arange(len(counts)), blocks)
    block = np.arange(len(owners)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    # a stream of its own for each box, far behind the draws that place boxes
    uniform = stream.of(owners)(4, ((number + 1) << 24) + block)
    used = (block[:, None] * 4 + np.arange(4)) < counts[owners][:, None]
    return _normal_table()[(uniform[used] * (1 << TABLE_BITS)).astype(np.int64)]


@cache
def _normal_table() -> np.ndarray:
    """65,536 equally likely values of a standard normal, float32: alike on every device."""
    middles = (torch.arange(1 << TABLE_BITS, dtype=torch.float64) + 0.5) / (1 << TABLE_BITS)
    return torch.special.ndtri(middles).float().numpy()

"""Boxes of the normalised image that are overwritten, drawn for many images at once.

Drawn on the CPU wherever the images are, so that every device erases the same. As in timm, a box
is tried ten times and left out if it never fits.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from .sampling import ATTEMPTS, Draws, Eraser, Patch, Size, batched, pick

CHANNELS = 3
TABLE_BITS = 16  # of a draw that becomes a normal number


@batched
def random_erasing(
    *, p: float, mode: str, area: Sequence[float], aspect: Sequence[float], count: int
) -> Eraser:
    """timm's RandomErasing: up to `count` boxes, with probability p."""

    def draw(draws: Draws, source: Size) -> list[Patch]:
        u = draws(2)
        counts = np.where(u[:, 0] < p, 1 + pick(u[:, 1], count), 0)
        return [
            patch(draws, erased_boxes(draws, source, area, aspect, counts, box), mode, box)
            for box in range(count)
            if (counts > box).any()
        ]

    return draw


def erased_boxes(
    draws: Draws,
    source: Size,
    area: Sequence[float],
    aspect: Sequence[float],
    counts: np.ndarray,
    box: int,
) -> np.ndarray:
    """Box number `box` of each image int64 (B, 4): top, left, height, width; 0 high: none."""
    height, width = source
    boxes = np.zeros((len(draws), 4), np.int64)
    left = np.flatnonzero(counts > box)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(ATTEMPTS):
        if not len(left):
            break
        u = draws.of(left)(4, block=1 + box * ATTEMPTS + attempt)
        share = (area[0] + (area[1] - area[0]) * u[:, 0]) * (height * width) / counts[left]
        slant = np.exp(low + (high - low) * u[:, 1])
        h, w = np.rint(np.sqrt(share * slant)), np.rint(np.sqrt(share / slant))
        fits = (h < height) & (w < width)
        h, w, u = h[fits], w[fits], u[fits]
        top, start = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        boxes[left[fits]] = np.stack([top, start, h, w], 1).astype(np.int64)
        left = left[~fits]
    return boxes


@batched
def cutout(*, holes: int, size: int, p: float) -> Eraser:
    """`holes` squares of zeros around any pixels, cut off at the border, with probability p."""
    half = size // 2

    def draw(draws: Draws, source: Size) -> list[Patch]:
        numbers = draws(2 * holes + 1)
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
            patches.append(patch(draws, boxes, "const", hole))
        return patches

    return draw


def patch(draws: Draws, boxes: np.ndarray, mode: str, number: int) -> Patch:
    """Boxes (B, 4) filled with zeros (const), a colour (rand) or noise (pixel), as timm's modes."""
    touched = np.flatnonzero(boxes[:, 2] * boxes[:, 3])
    top, left, height, width = boxes[touched].T
    counts = height * width
    which = np.repeat(np.arange(len(touched)), counts)
    # Of all pixels of a box, row by row, the number of each.
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, columns = top[which] + place // width[which], left[which] + place % width[which]
    some = draws.of(touched)
    if mode == "const":
        values = np.zeros((len(which), CHANNELS), np.float32)
    elif mode == "rand":
        values = normals(some, number, np.full(len(touched), CHANNELS)).reshape(-1, CHANNELS)[which]
    else:
        values = normals(some, number, CHANNELS * counts).reshape(-1, CHANNELS)
    return Patch(touched[which], rows, columns, values)


def normals(draws: Draws, number: int, counts: np.ndarray) -> np.ndarray:
    """counts (B,) normal draws for each image's box `number`, one after the other; float32."""
    blocks = -(-counts // 4)
    owners = np.repeat(np.arange(len(counts)), blocks)
    block = np.arange(len(owners)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    # a stream of its own for each box, far behind the draws that place boxes
    uniform = draws.of(owners)(4, ((number + 1) << 24) + block)
    used = (block[:, None] * 4 + np.arange(4)) < counts[owners][:, None]
    return normal_table()[(uniform[used] * (1 << TABLE_BITS)).astype(np.int64)]


@cache
def normal_table() -> np.ndarray:
    """65,536 equally likely values of a standard normal, float32: alike on every device."""
    middles = (torch.arange(1 << TABLE_BITS, dtype=torch.float64) + 0.5) / (1 << TABLE_BITS)
    return torch.special.ndtri(middles).float().numpy()

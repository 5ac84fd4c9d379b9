"""Boxes of the normalised image that are overwritten.

Drawn on the CPU wherever the images are, so that every device erases the same. As in timm, a box
is tried ten times and left out if it never fits. A mask keeps its labels under a box.
"""

from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as tv

from ...core.errors import check_range
from ...core.registry import augments
from .geometry import ATTEMPTS, draw_boxes
from .operation import PIXELS, Operation, Patch, RandomStream, check_pairs, pick

CHANNELS = 3
TABLE_BITS = 16  # of a draw that becomes a normal number


@augments.register
def random_erasing(
    *,
    p: float = 0.25,
    mode: Literal["const", "rand", "pixel"] = "pixel",
    area: tuple[float, float] = (0.02, 0.3333333333333333),
    aspect: tuple[float, float] = (0.3, 3.3333333333333335),
    count: int = 1,
) -> Operation:
    """Overwrite random boxes of the normalised image, with probability p (Zhong et al. 2020).

    mode: zero (the mean colour), one normal colour a box, or a normal draw a pixel. area: share of
    the image that all boxes cover. count: at most so many boxes.
    """
    check_range("random_erasing", "[0, 1]", p=p)
    check_range("random_erasing", "[1, 100]", count=count)
    check_pairs("random_erasing", "(0, 1]", area=area)
    check_pairs("random_erasing", "(0, 100]", aspect=aspect)

    def sample(stream, source):
        u = stream(2)
        counts = np.where(u[:, 0] < p, 1 + pick(u[:, 1], count), 0)
        patches = []
        for box in range(counts.max(initial=0)):
            some = np.flatnonzero(counts > box)
            chosen, block = stream.of(some), 1 + box * ATTEMPTS
            boxes, _ = draw_boxes(
                chosen, source, area, aspect, erased=True, block=block, parts=counts[some]
            )
            patches.append(_patch(chosen, some, boxes, mode, box))
        return patches

    erase = RandomErasing(p, *area, *aspect, mode, max_count=count, device="cpu")
    return Operation(erase, "tensor", sample=sample)


@augments.register
def cutout(*, holes: int = 1, size: int = 16, p: float = 1.0) -> Operation:
    """Set square holes of the normalised image to zero, its mean colour (DeVries & Taylor 2017).

    A hole's centre is any pixel, so it may reach over the border. p: how often there are any. A
    mask keeps its labels under a hole, as in mmsegmentation and albumentations.
    """
    check_range("cutout", "[0, 1]", p=p)
    check_range("cutout", PIXELS, holes=holes, size=size)
    half = size // 2

    def sample(stream, source):
        *numbers, happens = stream(2 * holes + 1).T
        some = np.flatnonzero(happens < p)
        patches = []
        for hole in range(holes):
            centres = numbers[2 * hole : 2 * hole + 2]
            centre = np.stack([pick(u[some], n) for u, n in zip(centres, source, strict=True)], 1)
            first, last = np.maximum(centre - half, 0), np.minimum(centre + half, source)
            boxes = np.concatenate([first, last - first], 1)
            patches.append(_patch(stream, some, boxes, "const", hole))
        return patches

    cut = partial(_cut_holes, holes=holes, size=size)
    # At p = 1 nothing is drawn for it, so that the holes lie where they lay before there was a p.
    reference = cut if p == 1 else tv.RandomApply([cut], p)
    return Operation(reference, "tensor", sample=sample)


def _cut_holes(image: Tensor, holes: int, size: int) -> Tensor:
    """Zero `holes` squares of 2 * (size // 2) pixels in image (C, H, W), in place."""
    height, width = image.shape[-2:]
    for _ in range(holes):
        y, x = np.random.randint(height), np.random.randint(width)
        half = size // 2
        image[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return image


def _patch(
    stream: RandomStream, images: np.ndarray, boxes: np.ndarray, mode: str, number: int
) -> Patch:
    """Boxes (n, 4) of `images` (n,) filled with zeros (const), a colour (rand) or noise (pixel).

    stream: of these images. number: of the box in its image.
    """
    top, left, height, width = boxes.astype(np.int64).T
    counts = height * width
    which, place = _numbered(counts)
    rows, columns = top[which] + place // width[which], left[which] + place % width[which]
    if mode == "const":
        values = np.zeros((len(which), CHANNELS), np.float32)
    elif mode == "rand":
        colours = _normals(stream, number, np.full(len(images), CHANNELS))
        values = colours.reshape(-1, CHANNELS)[which]
    else:
        values = _normals(stream, number, CHANNELS * counts).reshape(-1, CHANNELS)
    return images[which], rows, columns, values


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts[i] things of each i, one after the other: i, and the number of the thing."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)


def _normals(stream: RandomStream, number: int, counts: np.ndarray) -> np.ndarray:
    """counts (B,) normal draws for each image's box `number`, one after the other; float32."""
    owners, block = _numbered(-(-counts // 4))
    # a stream of its own for each box, far behind the draws that place boxes
    uniform = stream.of(owners)(4, ((number + 1) << 24) + block)
    used = (block[:, None] * 4 + np.arange(4)) < counts[owners][:, None]
    return _normal_table()[(uniform[used] * (1 << TABLE_BITS)).astype(np.int64)]


@cache
def _normal_table() -> np.ndarray:
    """65,536 equally likely values of a standard normal, float32: alike on every device."""
    middles = (torch.arange(1 << TABLE_BITS, dtype=torch.float64) + 0.5) / (1 << TABLE_BITS)
    return torch.special.ndtri(middles).float().numpy()

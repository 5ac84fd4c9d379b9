"""Regions of an image as COCO defines them: polygons and run lengths, and masks made of them.

pycocotools' rules to the pixel (the tests compare), and not the package itself: its C code brings
the process down on damaged text (2.0.11), and a data set is a stranger's.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..core.errors import UserError, shown
from ..core.images import VOID

_FINE = 5  # polygons are drawn on a grid this many times finer
_MOST_BITS = 35  # of one number in text


class Region(NamedTuple):
    """The pixels of one class: how many, and run lengths as `counts_of` gives them, in bytes."""

    label: int
    area: int
    counts: bytes

    @classmethod
    def of(cls, label: int, counts: np.ndarray) -> "Region":
        return cls(label, int(counts[1::2].sum()), counts.astype("<u4").tobytes())


@dataclass(frozen=True)
class Drawn:
    """Masks as regions in the order in which they are drawn; None where nothing is known."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) of each image
    regions: tuple[tuple[Region, ...], ...] | None
    paths: ClassVar[tuple[Path, ...]] = ()

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self.sizes[index]
        if self.regions is None:
            return np.full((height, width), VOID, np.uint8)
        pixels = np.zeros(height * width, np.uint8)  # down the columns, as run lengths go
        for region in self.regions[index]:
            np.copyto(pixels, region.label, where=_covered(np.frombuffer(region.counts, "<u4")))
        return np.ascontiguousarray(pixels.reshape(width, height).T)

    def digest(self) -> str:
        return hashlib.sha256(repr((self.sizes, self.regions)).encode()).hexdigest()


def counts_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Run lengths int64 (n,) down the columns: so many pixels outside, so many inside, …

    segmentation: polygons [[x, y, …], …] or run lengths {size, counts}. UserError: what is wrong.
    """
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(
            f"its segmentation is {shown(segmentation)}; polygons [[x, y, …], …] or run lengths "
            "{size, counts} are expected."
        )
    several = [_polygon_counts(_points(p, height, width), height, width) for p in segmentation]
    if len(several) == 1:
        return several[0]
    covered = np.logical_or.reduce([_covered(counts) for counts in several])
    changes = np.flatnonzero(np.diff(covered, prepend=False))
    return np.diff(changes, prepend=0, append=height * width)


def _covered(counts: np.ndarray) -> np.ndarray:
    """Run lengths -> which pixels are inside, bool (height * width,)."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def _points(polygon: Any, height: int, width: int) -> np.ndarray:
    """A polygon [x, y, …] as float64 (n, 2), if it can belong to the image."""
    numbers = isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise UserError(f"a polygon is {shown(polygon)}; 3 or more points [x, y, …] are expected.")
    low, high, most = min(polygon), max(polygon), max(height, width)
    if not (-most <= low and high <= 2 * most and math.isfinite(sum(polygon))):
        raise UserError(
            f"a polygon reaches from {shown(low)} to {shown(high)}, which is nowhere near the "
            f"image of {width}x{height} pixels."
        )
    return np.array(polygon, np.float64).reshape(-1, 2)


def _polygon_counts(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths int64 of a polygon float64 (n, 2), as pycocotools draws it.

    The outline is walked on the fine grid. Where it passes the middle of a column of pixels, what
    lies below changes sides.
    """
    x, y = _walk((_FINE * points + 0.5).astype(np.int64))
    column, off = np.divmod(np.minimum(x[1:], x[:-1]) - _FINE // 2, _FINE)
    row = np.clip(-((_FINE // 2 - np.minimum(y[1:], y[:-1])) // _FINE), 0, height)  # rounded up
    passed = (x[1:] != x[:-1]) & (off == 0) & (column >= 0) & (column < width)
    places, times = np.unique(column[passed] * height + row[passed], return_counts=True)
    changes = places[(times % 2 == 1) & (places < height * width)]
    return np.diff(changes, prepend=0, append=height * width)


def _walk(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every point on the closed outline of corners int64 (n, 2), edge after edge.

    An edge goes in steps of one along its longer axis, and is rounded as seen from its lower end.
    """
    start, end = corners.copy(), np.roll(corners, -1, axis=0)
    span = np.abs(end - start)
    tall = span[:, 1] > span[:, 0]
    for points in (start, end):
        points[tall] = points[tall, ::-1]  # the longer axis first
    back = (start[:, 0] > end[:, 0])[:, None]
    low, high = np.where(back, end, start), np.where(back, start, end)
    length = span.max(1)
    slope = (high - low)[:, 1] / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(back[edge, 0], length[edge] - step, step)
    along = low[edge, 0] + step
    side = (low[edge, 1] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(tall[edge], side, along), np.where(tall[edge], along, side)


def _run_lengths(coded: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The counts of {size, counts}, a list or COCO's text; they must cover the whole image."""
    size, counts = coded.get("size"), coded.get("counts")
    if isinstance(counts, str):
        counts = _text_counts(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise UserError(
            f"its run lengths are {shown(coded.get('counts'))}; a list of numbers from 0 up, or "
            "COCO's text for one, is expected."
        )
    if size != [height, width] or sum(counts) != height * width:
        raise UserError(
            f"its run lengths have the size {shown(size)} and cover {sum(counts):,} pixels; the "
            f"image's [height, width] is [{height}, {width}], {height * width:,} pixels."
        )
    return np.array(counts, np.int64)


def _text_counts(text: str) -> list[int] | None:
    """The numbers in COCO's text of run lengths; None where it is damaged.

    Letters hold five bits each, the lowest first, and whether the number goes on; from the fourth
    on, a number is what is to be added to the one two before it.
    """
    counts: list[int] = []
    number = bits = 0
    for letter in text.encode(errors="replace"):
        letter -= 48
        if not 0 <= letter < 64 or bits == _MOST_BITS:
            return None
        number |= (letter & 31) << bits
        bits += 5
        if not letter & 32:
            if letter & 16:  # below zero, in two's complement
                number -= 1 << bits
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = bits = 0
    return None if bits or not counts else counts

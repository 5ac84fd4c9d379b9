"""COCO's polygons and run lengths, drawn by pycocotools' rules to the pixel (the tests compare).

Not by the package itself: its C code brings the process down on damaged text (2.0.11), and a data
set is a stranger's. A region is kept as run lengths: a few hundred bytes that travel cheaply to the
loader's workers.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..core.errors import UserError, shown
from ..core.images import VOID

_FINE = 5  # polygons are drawn on a grid this many times finer
_MOST_BITS = 35  # of one number in text


class Region(NamedTuple):
    """The pixels of one class: how many, and run lengths as `region` makes them, in bytes."""

    label: int
    area: int
    counts: bytes


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

    def some(self, rows: Sequence[int]) -> "Drawn":
        """Those of some images."""
        regions = None if self.regions is None else tuple(self.regions[row] for row in rows)
        return Drawn(tuple(self.sizes[row] for row in rows), regions)

    def digest(self) -> str:
        return hashlib.sha256(repr((self.sizes, self.regions)).encode()).hexdigest()


def region(label: int, segmentation: Any, height: int, width: int) -> Region:
    """An annotation drawn: runs down the columns, so many pixels outside, so many inside, …

    segmentation: polygons [[x, y, …], …] or run lengths {size, counts}. UserError: what is wrong.
    """
    if isinstance(segmentation, dict):
        counts = _run_lengths(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        counts, *more = [polygon_runs(polygon, height, width) for polygon in segmentation]
        if more:
            covered = np.logical_or.reduce([_covered(each) for each in (counts, *more)])
            changes = np.flatnonzero(np.diff(covered, prepend=False))
            counts = np.diff(changes, prepend=0, append=height * width)
    else:
        raise UserError(f"its segmentation is {shown(segmentation)}; give polygons or run lengths.")
    return Region(label, int(counts[1::2].sum()), counts.astype("<u4").tobytes())


def _covered(counts: np.ndarray) -> np.ndarray:
    """Run lengths -> which pixels are inside, bool (height * width,)."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def polygon_runs(polygon: Any, height: int, width: int) -> np.ndarray:
    """Run lengths int64 of a polygon [x, y, …], as pycocotools draws it.

    The outline is walked on the fine grid. Where it passes the middle of a column of pixels, what
    lies below changes sides.
    """
    numbers = isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise UserError(f"a polygon is {shown(polygon)}; 3 or more points [x, y, …] are expected.")
    low, high, most = min(polygon), max(polygon), max(height, width)
    if not (-most <= low and high <= 2 * most and math.isfinite(sum(polygon))):
        raise UserError(
            f"a polygon from {shown(low)} to {shown(high)} is far outside {width}x{height} pixels."
        )
    points = np.array(polygon, np.float64).reshape(-1, 2)
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
    tall, length = span[:, 1] > span[:, 0], span.max(1)
    for points in (start, end):
        points[tall] = points[tall, ::-1]  # the longer axis first
    back = (start[:, 0] > end[:, 0])[:, None]
    low, high = np.where(back, end, start), np.where(back, start, end)
    slope = (high - low)[:, 1] / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(back[edge, 0], length[edge] - step, step)
    along = low[edge, 0] + step
    side = (low[edge, 1] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(tall[edge], side, along), np.where(tall[edge], along, side)


def _run_lengths(coded: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The counts of {size, counts}, a list or COCO's text; they must cover the whole image."""
    size, given = coded.get("size"), coded.get("counts")
    counts = _text_counts(given) if isinstance(given, str) else given
    if not isinstance(counts, list) or not all(_is_count(n) for n in counts):
        raise UserError(
            f"its run lengths are {shown(given)}; numbers from 0 up, or COCO's text, are expected."
        )
    if size != [height, width] or sum(counts) != height * width:
        raise UserError(
            f"its run lengths are of {shown(size)}, {sum(counts)} pixels, not [{height}, {width}]."
        )
    return np.array(counts, np.int64)


def _is_count(number: Any) -> bool:
    """Whether it is whole and not below 0, as 3 and, of tools that know no integers, 3.0."""
    return type(number) in (int, float) and number >= 0 and number == number // 1


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

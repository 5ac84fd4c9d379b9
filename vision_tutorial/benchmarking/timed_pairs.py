"""Timed pairs: two sides measured in turn in one run, with the median and spread of their ratio.

On a machine that others use too, a single time says little. The ratio of two measurements, one
right after the other, says more.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Sample(NamedTuple):
    """One measurement of a rate."""

    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


class TimingSpread(NamedTuple):
    """Of several values: how many, the middle, the quartiles, the ends."""

    n: int
    median: float
    lower: float
    upper: float
    least: float
    most: float


def spread(values: Sequence[float]) -> TimingSpread:
    """The spread of at least one value; quartiles are interpolated between the values."""
    values = sorted(values)
    lower, _, upper = quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return TimingSpread(len(values), median(values), lower, upper, values[0], values[-1])


@dataclass(frozen=True)
class Side:
    """One side of a pair: its name, its values, and for rates the samples behind them."""

    what: str
    values: tuple[float, ...]
    samples: tuple[Sample, ...] = ()

    @classmethod
    def rates(cls, what: str, samples: Iterable[Sample]) -> "Side":
        """A side of images a second."""
        samples = tuple(samples)
        return cls(what, tuple(sample.rate for sample in samples), samples)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        made = {"what": self.what, "values": list(self.values)}
        if self.samples:
            made["images"] = [sample.images for sample in self.samples]
            made["seconds"] = [sample.seconds for sample in self.samples]
        return made | spread(self.values)._asdict()


@dataclass(frozen=True)
class Pair:
    """Two sides measured in turn. `unit` is images/s, s or bytes; `about` holds further facts."""

    name: str
    unit: str
    ours: Side
    other: Side
    about: dict[str, Any] = field(default_factory=dict)

    def ratios(self) -> list[float]:
        """Ours beside the other, pair by pair."""
        return [a / b for a, b in zip(self.ours.values, self.other.values, strict=True)]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        ratios = self.ratios()
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours.plain(),
            "other": self.other.plain(),
            "ratio": {"values": ratios, **spread(ratios)._asdict()},
            "about": self.about,
        }


def in_turn(
    sides: Sequence[Callable[[], T]], rounds: int, tell: Callable[[str], None]
) -> list[list[T]]:
    """Call the sides A B A B …; the results of each. The first round warms up and is dropped."""
    found: list[list[T]] = [[] for _ in sides]
    for number in range(rounds + 1):
        tell(f"round {number} of {rounds}" if number else "warm-up")
        for results, side in zip(found, sides, strict=True):
            result = side()
            if number:
                results.append(result)
    return found


def drawn(
    counts: Iterator[int], seconds: float, skip: int = 1, settle: Callable[[], None] = lambda: None
) -> Sample:
    """Images drawn in `seconds`, at least one batch, after `skip` batches that do not count.

    counts: yields the images of each batch once it is ready. settle: waits for the device.
    """
    for _ in range(skip):
        next(counts)
    settle()
    images, began = 0, time.perf_counter()
    while True:
        images += next(counts)
        if time.perf_counter() - began >= seconds:
            settle()
            return Sample(images, time.perf_counter() - began)

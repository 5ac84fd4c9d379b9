"""Numbers over seeds: mean and spread, and whether a difference is more than noise."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# 97.5 % quantiles of Student's t at 1 … 30 degrees of freedom: 95 % lie within ± of it.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
_STUDENT += (2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064)
_STUDENT += (2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
NORMAL = 1.960


@dataclass(frozen=True)
class Sample:
    """A metric over runs that differ in their seed alone; at least one value."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @cached_property
    def spread(self) -> float | None:
        """The sample standard deviation (n - 1); None of a single run."""
        return statistics.stdev(self.values) if self.n > 1 else None


class Spread(NamedTuple):
    """A standard deviation between seeds, and on how many degrees of freedom it is known."""

    value: float
    freedom: float = math.inf


def pooled(samples: Iterable[Sample]) -> Spread | None:
    """The spread within several samples, taken for one and the same; None if there is none."""
    seeded = [(sample.spread, sample.n - 1) for sample in samples if sample.spread is not None]
    freedom = sum(n for _, n in seeded)
    if not freedom:
        return None
    return Spread(math.sqrt(sum(s * s * n for s, n in seeded) / freedom), freedom)


def confidence_interval(one: Sample, two: Sample, elsewhere: Spread | None = None) -> float | None:
    """How far the means may lie apart by chance, at 95 %: a smaller difference is within noise.

    Welch's test, t · √(s₁²/n₁ + s₂²/n₂), where both have seeds; else t · s · √(1/n₁ + 1/n₂) with
    the spread s of other runs, `elsewhere`; else None: nobody knows.
    """
    if one.spread is not None and two.spread is not None:
        parts = [(sample.spread**2 / sample.n, sample.n - 1) for sample in (one, two)]
        variance = sum(part for part, _ in parts)
        weights = sum(part**2 / freedom for part, freedom in parts)
        freedom = variance**2 / weights if weights else math.inf
        return student(freedom) * math.sqrt(variance)
    if elsewhere is None:
        return None
    return student(elsewhere.freedom) * elsewhere.value * math.sqrt(1 / one.n + 1 / two.n)


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; a fraction of a degree of freedom counts for none."""
    if freedom == math.inf:
        return NORMAL
    whole = max(1, int(freedom + 1e-9))
    return _STUDENT[whole - 1] if whole <= len(_STUDENT) else NORMAL + 2.46 / whole

"""Timed pairs: two sides measured in turn in one run, with the median and spread of their ratio.

On a machine that others use too, a single time says little. The ratio of two measurements, one
right after the other, says more.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Measurement(NamedTuple):
    """One measurement of a rate."""

    images: int
    seconds: float


def spread(values: Sequence[float]) -> dict[str, float]:
    """How many values there are (one at least), their median, quartiles, least and most."""
    values = sorted(values)
    lower, _, upper = quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    ends = {"lower": lower, "upper": upper, "least": values[0], "most": values[-1]}
    return {"n": len(values), "median": median(values), **ends}


def pair(
    name: str,
    unit: str,
    ours: tuple[str, Sequence[Any]],
    other: tuple[str, Sequence[Any]],
    **about: Any,
) -> dict[str, Any]:
    """Two sides and our values divided by the other's, as `bench --json` prints them.

    unit: images/s, s or bytes. A side: what it is, and its numbers or Samples. about: more facts.
    """
    sides = [_side(*ours), _side(*other)]
    ratios = [a / b for a, b in zip(*(side["values"] for side in sides), strict=True)]
    made = {"name": name, "unit": unit, "ours": sides[0], "other": sides[1]}
    return made | {"ratio": {"values": ratios, **spread(ratios)}, "about": about}


def _side(what: str, values: Sequence[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"what": what, "values": list(values)}
    if isinstance(values[0], Measurement):
        made["values"] = [sample.images / sample.seconds for sample in values]
        made["images"], made["seconds"] = map(list, zip(*values, strict=True))
    return made | spread(made["values"])


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


def _settle() -> None:
    """Wait until the GPU, if this process uses one, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Timer:
    """Passes batches on for some seconds; counts those after the first `skip`, and their time."""

    def __init__(self, seconds: float, skip: int = 1):
        self.least, self.skip, self.batches = seconds, skip, 0
        self.seconds = self.waited = 0.0  # until the user was done with a batch; until it was there

    def passing(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches until the time is over; at least one that counts."""
        began = 0.0
        for number in count(1 - self.skip):
            asked = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - asked
            yield batch
            if number == 0:
                _settle()
                began, self.waited = time.perf_counter(), 0.0
            elif number > 0 and time.perf_counter() - began >= self.least:
                _settle()
                self.batches, self.seconds = number, time.perf_counter() - began
                return


def drawn(counts: Iterator[int], seconds: float, skip: int = 1) -> Measurement:
    """Images drawn in `seconds`. counts: how many each batch has, once it is ready."""
    timer = Timer(seconds, skip)
    images = sum(list(timer.passing(counts))[skip:])
    return Measurement(images, timer.seconds)


def timed_once(work: Callable[[], int]) -> Measurement:
    """One call of `work`, which returns how many images it took."""
    _settle()
    began = time.perf_counter()
    images = work()
    _settle()
    return Measurement(images, time.perf_counter() - began)

"""Medians, spreads, turns, timers: against NumPy and a clock of our own."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_tutorial.benchmarking import timed_pairs
from vision_tutorial.benchmarking.timed_pairs import (
    Measurement,
    Timer,
    drawn,
    in_turn,
    pair,
    spread,
)


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30))
def test_the_spread_is_numpys(values):
    found = spread(values)
    quartiles = np.percentile(values, [25, 50, 75])
    assert (found["n"], found["least"], found["most"]) == (len(values), min(values), max(values))
    assert [found[key] for key in ("lower", "median", "upper")] == pytest.approx(quartiles)


def test_ratios_pair_what_was_measured_together():
    made = pair(
        "x", "images/s", ("a", [Measurement(100, 4.0), Measurement(30, 0.5)]), ("b", [5.0, 20.0])
    )
    assert made["ratio"]["values"] == [5.0, 3.0] and made["ratio"]["median"] == 4.0
    ours = made["ours"]
    assert (ours["values"], ours["images"], ours["seconds"]) == ([25, 60], [100, 30], [4, 0.5])
    assert made["other"]["values"] == [5.0, 20.0] and "images" not in made["other"]


def test_sides_take_turns_and_the_first_round_is_dropped():
    calls, said = [], []
    sides = [lambda name=name: calls.append(name) or f"{name}{len(calls)}" for name in "ab"]
    assert in_turn(sides, 2, said.append) == [["a3", "a5"], ["b4", "b6"]]
    assert calls == ["a", "b"] * 3 and said == ["warm-up", "round 1 of 2", "round 2 of 2"]


def test_batches_are_counted_until_the_time_is_over_and_the_device_is_waited_for(monkeypatch):
    now, settled = [100.0], []
    monkeypatch.setattr(timed_pairs.time, "perf_counter", lambda: now[0])

    def settle():
        settled.append(now[0])
        now[0] += 0.25

    def batches():
        for seconds in itertools.chain([7.0], itertools.repeat(0.5)):
            now[0] += seconds
            yield 10

    monkeypatch.setattr(timed_pairs, "_settle", settle)
    assert drawn(batches(), 1.2) == Measurement(30, 1.75)
    assert settled == [107.0, 108.75]
    monkeypatch.setattr(timed_pairs, "_settle", lambda: None)
    assert drawn(batches(), 0.1, skip=3) == Measurement(10, 0.5), "one batch at least"
    timer = Timer(2.0)
    for _ in timer.passing(batches()):
        now[0] += 0.25  # a step: the user's time counts too, but not as waiting
    assert (timer.batches, timer.seconds, timer.waited) == (3, 2.25, 1.5)

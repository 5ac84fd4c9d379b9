"""Medians, spreads, turns: against NumPy and a clock of our own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_tutorial.benchmarking import timed_pairs
from vision_tutorial.benchmarking.timed_pairs import Pair, Sample, Side, drawn, in_turn, spread

VALUES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30)


@given(VALUES)
def test_the_spread_is_numpys(values):
    found = spread(values)
    low, middle, high = np.percentile(values, [25, 50, 75])
    assert (found.n, found.least, found.most) == (len(values), min(values), max(values))
    assert (found.lower, found.median, found.upper) == pytest.approx((low, middle, high))


def test_ratios_pair_what_was_measured_together():
    side = Side.rates("a", [Sample(100, 4.0), Sample(30, 0.5)])
    pair = Pair("x", "images/s", side, Side("b", (5.0, 20.0)))
    assert pair.ratios() == [5.0, 3.0] and pair.plain()["ratio"]["median"] == 4.0
    plain = pair.plain()["ours"]
    assert (plain["values"], plain["images"], plain["seconds"]) == ([25, 60], [100, 30], [4, 0.5])
    assert "images" not in pair.plain()["other"]
    with pytest.raises(ValueError, match="zip"):
        Pair("x", "s", side, Side("b", (1.0,))).ratios()


def test_sides_take_turns_and_the_first_round_is_dropped():
    calls, said = [], []

    def side(name):
        def measure():
            calls.append(name)
            return f"{name}{len(calls)}"

        return measure

    found = in_turn([side("a"), side("b")], 2, said.append)
    assert calls == ["a", "b"] * 3
    assert found == [["a3", "a5"], ["b4", "b6"]]
    assert said == ["warm-up", "round 1 of 2", "round 2 of 2"]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where the test says so."""
    now = [100.0]
    monkeypatch.setattr(timed_pairs.time, "perf_counter", lambda: now[0])
    return now


def test_batches_are_counted_until_the_time_is_over_and_the_device_is_waited_for(clock):
    settled = []

    def batches():
        for seconds in (7.0, 0.5, 0.5, 0.5, 0.5):
            clock[0] += seconds
            yield 10

    def settle():
        settled.append(clock[0])
        clock[0] += 0.25

    assert drawn(batches(), seconds=1.2, skip=1, settle=settle) == Sample(30, 1.75)
    assert settled == [107.0, 108.75]
    assert drawn(batches(), seconds=0.1, skip=2) == Sample(10, 0.5), "one batch at least"

"""Spread and noise against numpy, the integral of Student's density, and known cases."""

import math

import numpy as np
import pytest

from vision_tutorial.runs.seed_statistics import (
    NORMAL,
    Sample,
    Spread,
    confidence_interval,
    pooled,
    student,
)


def within(t: float, freedom: float) -> float:
    """P(|T| < t) of Student's t, by the trapezoidal rule over its density."""
    x = np.linspace(-t, t, 200_001)
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    scale = math.exp(log) / math.sqrt(freedom * math.pi)
    return float(np.trapezoid(scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2), x))


@pytest.mark.parametrize("freedom", [1, 2, 7, 15, 30, 31, 60, 1000])
def test_the_quantiles(freedom: int) -> None:
    assert within(student(freedom), freedom) == pytest.approx(0.95, abs=2e-4)
    assert student(freedom) == student(freedom + 0.5 * (freedom < 30))


def test_welch_by_hand() -> None:
    # s² 4/3 and 4, n 4 and 3: variance 1/3 + 4/3, freedom (5/3)² / ((1/3)²/3 + (4/3)²/2) = 3
    one, two = Sample((1.0, 1.0, 3.0, 3.0)), Sample((0.0, 2.0, 4.0))
    assert one.spread**2 == pytest.approx(4 / 3) and two.spread == pytest.approx(2)
    assert confidence_interval(one, two) == pytest.approx(3.182 * math.sqrt(5 / 3))
    assert confidence_interval(one, two, Spread(100.0)) == confidence_interval(one, two)
    assert confidence_interval(Sample((1.0, 1.0)), Sample((1.0, 1.0))) == 0


def test_single_runs_borrow_a_spread() -> None:
    one, two, three = Sample((1.0,)), Sample((2.0,)), Sample((1.0, 2.0))
    assert confidence_interval(one, two) is None and confidence_interval(one, three) is None
    assert confidence_interval(one, two, Spread(0.4)) == pytest.approx(NORMAL * 0.4 * math.sqrt(2))
    assert confidence_interval(one, three, Spread(0.4, 4)) == pytest.approx(
        2.776 * 0.4 * math.sqrt(1.5)
    )


def test_the_pooled_spread() -> None:
    samples = [Sample((1.0, 3.0)), Sample((5.0,)), Sample((0.0, 2.0, 4.0))]
    # squares around their own means: 1 + 1, and 4 + 0 + 4, on 1 + 2 degrees of freedom
    assert pooled(samples) == (pytest.approx(math.sqrt(10 / 3)), 3)
    assert pooled([Sample((1.0,))]) is None and pooled([]) is None


def test_noise_is_called_noise() -> None:
    draws = np.random.default_rng(0).normal(80, 0.4, (4000, 2, 3))
    pairs = [(Sample(tuple(a)), Sample(tuple(b))) for a, b in draws.tolist()]
    deltas = np.array([abs(a.mean - b.mean) for a, b in pairs])
    assert 0.02 < np.mean(deltas > [confidence_interval(a, b) for a, b in pairs]) < 0.05

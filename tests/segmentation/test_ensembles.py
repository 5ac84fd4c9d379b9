"""Votes of several runs against slow loops and hand-made numbers."""

from collections import Counter

import numpy as np
import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.segmentation.refine import hard_vote, soft_vote


def maps(runs, shape=(4, 6, 5)):
    generator = torch.Generator().manual_seed(runs)
    return [torch.randn(shape, generator=generator).softmax(0) for _ in range(runs)]


# Soft ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.5, 0, 2.5]], ids=str)
def test_a_soft_vote_is_the_weighted_mean(weights):
    given = maps(3)
    found = soft_vote(given, weights)
    wanted = np.average(torch.stack(given).double().numpy(), axis=0, weights=weights)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_one_run_is_its_own_soft_vote():
    (alone,) = maps(1)
    assert torch.equal(soft_vote([alone]), alone)
    assert torch.equal(soft_vote([alone.numpy()], [3.0]), alone)


@pytest.mark.parametrize(
    ("given", "weights", "said"),
    [
        ([], None, "0 runs"),
        (maps(2) + maps(1, (4, 3, 5)), None, "(4, 3, 5)"),
        (maps(2) + maps(1, (3, 6, 5)), None, "(3, 6, 5)"),
        (maps(2), [1.0], "[1.0] for 2 runs"),
        (maps(2), [0.0, 0.0], "more than 0"),
        (maps(2), [2.0, -1.0], "[2.0, -1.0]"),
        (maps(2), [1.0, float("nan")], "nan"),
        (maps(2), [1.0, float("inf")], "inf"),
        ([10 * torch.ones(2, 3, 3)], None, "softmax"),
    ],
)
def test_a_soft_vote_refuses_what_does_not_fit(given, weights, said):
    with pytest.raises(UserError) as error:
        soft_vote(given, weights)
    assert said in str(error.value)


# Hard ---------------------------------------------------------------------------------------------


def voted_by_loop(masks):
    """Pixel by pixel: count; of the classes with the most votes, the first that was named."""
    wanted = np.empty_like(masks[0])
    for place in np.ndindex(wanted.shape):
        ballots = [mask[place] for mask in masks]
        most = max(Counter(ballots).values())
        wanted[place] = next(b for b in ballots if ballots.count(b) == most)
    return wanted


@pytest.mark.parametrize("runs", range(1, 8))
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_a_hard_vote_equals_the_slow_loop(runs, classes):
    rng = np.random.default_rng(runs)
    masks = list(rng.integers(0, classes, (runs, 23, 17), dtype=np.uint8))
    found = hard_vote(masks)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, voted_by_loop(masks))


@pytest.mark.parametrize(
    ("ballots", "winner"),
    [
        ([3], 3),
        ([1, 2], 1),  # a tie: the first run
        ([0, 5, 5], 5),
        ([7, 2, 2, 4, 4], 2),  # the first run's 7 has one vote: 2 and 4 tie, 2 was named first
        ([7, 4, 2, 2, 4], 4),
        ([255, 255, 1], 255),
        ([9, 8, 7], 9),
    ],
)
def test_ties_go_to_the_earliest_run_among_the_tied(ballots, winner):
    assert hard_vote([np.full((1, 1), b, np.uint8) for b in ballots]) == winner


def test_more_than_255_runs_do_not_overflow():
    masks = [np.full((1, 1), 1, np.uint8)] * 299 + [np.zeros((1, 1), np.uint8)] * 300
    assert hard_vote(masks) == 0


@pytest.mark.parametrize("sizes", [[], [(4, 4), (4, 5)]])
def test_a_hard_vote_refuses_what_does_not_fit(sizes):
    with pytest.raises(UserError, match="runs with the shapes"):
        hard_vote([np.zeros(size, np.uint8) for size in sizes])

"""Weighted sums that keep their parts, and balance them."""

import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import losses
from vision_tutorial.losses import WeightedSum, pixel
from vision_tutorial.recipe.fields import Balance
from vision_tutorial.recipe.grammar import Term


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, generator=generator).requires_grad_()
    return logits, torch.randint(3, (4, 5), generator=generator)


def test_no_terms_unknown_names_and_weights_of_zero_are_refused():
    for terms, words in (
        ([], "give at least one"),
        ([Term("focl")], "no loss called 'focl'; did you mean 'focal'"),
        ([Term("focal", 0.0), Term("dice", 0.0)], "'focal', 'dice'.*: every weight is 0"),
    ):
        with pytest.raises(UserError, match=words):
            WeightedSum(terms)


def test_parts_are_raw_and_detached_and_the_total_is_their_weighted_sum(example):
    logits, target = example
    terms = [Term("focal", 0.75), Term("bce", 0.25, {"sum_classes": True})]
    focal, bce = pixel.focal(*example), pixel.bce(*example, sum_classes=True)
    for scale in (1.0, 0.4):  # an auxiliary head has a scale
        total, parts = WeightedSum(terms, scale=scale)(*example)
        assert not any(part.requires_grad for part in parts.values())
        assert list(parts) == ["focal", "focal/weighted", "bce", "bce/weighted"]
        expected = [focal, scale * 0.75 * focal, bce, scale * 0.25 * bce]
        assert list(parts.values()) == pytest.approx([value.item() for value in expected])
        torch.testing.assert_close(total, expected[1] + expected[3])
        gradients = [torch.autograd.grad(t, logits, retain_graph=True)[0] for t in (total, focal)]
        expected_gradient = torch.autograd.grad(bce, logits, retain_graph=True)[0]
        expected_gradient = scale * (0.75 * gradients[1] + 0.25 * expected_gradient)
        torch.testing.assert_close(gradients[0], expected_gradient)
    total, parts = WeightedSum([Term("focal", 0.5, {"gamma": 1.0})])(*example)
    assert parts == {} and total.item() == 0.5 * pixel.focal(*example, gamma=1.0).item()
    terms = [Term("focal", 1.0, {"gamma": g}) for g in (0.0, 1.0, 2.0)]
    _, parts = WeightedSum([terms[0], Term("cross_entropy"), *terms[1:]])(*example)
    assert list(parts)[::2] == ["focal", "cross_entropy", "focal#2", "focal#3"]
    assert parts["focal#3"] < parts["focal#2"] < parts["focal"]


# Balance -----------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch):
    """Two losses that are whatever the list of pairs says, one pair a forward pass."""
    values = []

    def first(logits, target):
        return values[0][0] + 0 * logits.sum()

    def second(logits, target):
        return values.pop(0)[1] + 0 * logits.sum()

    monkeypatch.setattr(losses, "entries", losses.entries | {"first": first, "second": second})
    return values


def balanced(balance, weights=(0.75, 0.25)):
    names = zip(("first", "second"), weights, strict=True)
    return WeightedSum([Term(name, weight) for name, weight in names], balance)


def step(criterion, given, *pairs):
    """The weights in use over the forward passes of a step."""
    criterion.begin_step()
    used = []
    for pair in pairs:
        given[:] = [pair]
        total, parts = criterion(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
        assert sum(v for k, v in parts.items() if "/" in k) == pytest.approx(total.item())
        used.append([(parts[f"{n}/weighted"] / parts[n]).item() for n in ("first", "second")])
    assert all(one == pytest.approx(used[0]) for one in used)
    return pytest.approx(used[0], rel=1e-5)


def test_calibration_divides_by_the_mean_size_and_then_stands_still(given):
    criterion = balanced(Balance(calibrate=3))
    pairs = [(-4.0, 0.1), (2.0, 0.2), (6.0, 0.3)]
    assert all(step(criterion, given, pair) == [0.75, 0.25] for pair in pairs)
    raw = [0.75 / 4.0, 0.25 / 0.2]  # by the means of |term|
    expected = [weight / sum(raw) for weight in raw]  # the sum of the given ones is 1
    for pair in [(1.0, 1.0), (100.0, 0.01), (0.5, 7.0)]:
        assert step(criterion, given, pair) == expected


def test_the_running_mean_forgets(given):
    criterion = balanced(Balance(ema=0.9), (1.0, 1.0))
    assert step(criterion, given, (1.0, 1.0)) == [1.0, 1.0]  # nothing was seen yet
    means = [1.0, 1.0]
    for count in range(2, 40):
        pair = (1.0, 10.0)
        raw = [1 / mean for mean in means]
        assert step(criterion, given, pair) == [2 * w / sum(raw) for w in raw]
        rate = max(1 / count, 0.1)  # a plain mean until it is as long as the decay's memory
        means = [mean + rate * (x - mean) for mean, x in zip(means, pair, strict=True)]


def test_a_step_counts_once_however_many_passes_it_takes_and_not_without_any(given):
    whole, parts = balanced(Balance(calibrate=4)), balanced(Balance(calibrate=4))
    for pair in [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]:
        halves = [(pair[0] - 0.5, pair[1] + 1), (pair[0] + 0.5, pair[1] - 1)]
        assert step(whole, given, pair) == step(parts, given, *halves).expected
    for criterion in (whole, parts):
        for _ in range(3):  # as after steps that were skipped, whose sums the engine takes back
            criterion.begin_step()
    assert whole.mean.tolist() == parts.mean.tolist() == [3.0, 4.0]
    assert whole.steps == parts.steps == 3


def test_a_term_that_was_always_zero_leaves_the_weights_alone(given):
    criterion = balanced(Balance(calibrate=1))
    criterion.seen += torch.tensor([0.0, 5.0, 1.0])
    criterion.begin_step()
    assert criterion.steps == 1 and criterion.weights().tolist() == [0.75, 0.25]
    assert WeightedSum([Term("dice")], Balance(ema=0.9)).state_dict() == {}  # nothing to balance

"""Blends: weighted sums that keep their parts, and balance them."""

import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import losses
from vision_tutorial.losses import WeightedSum, pixel, region, weighted_sum
from vision_tutorial.recipe.fields import Balance
from vision_tutorial.recipe.grammar import Term


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, generator=generator).requires_grad_()
    return logits, torch.randint(3, (4, 5), generator=generator)


def test_a_single_loss_keeps_its_weight_and_options_and_has_no_parts(example):
    total, parts = weighted_sum([Term("focal", 0.5, {"gamma": 1.0})])(*example)
    assert parts == {} and total.item() == 0.5 * pixel.focal(*example, gamma=1.0).item()


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ([], "at least one"),
        ([Term("focl")], "no loss called 'focl'; did you mean 'focal'"),
        ([Term("focal", 0.0), Term("dice", 0.0)], "focal, dice: every weight is 0"),
    ],
)
def test_no_terms_unknown_names_and_weights_of_zero_are_refused(terms, words):
    with pytest.raises(UserError, match=words):
        weighted_sum(terms)


def test_parts_are_raw_and_detached_and_the_total_is_their_weighted_sum(example):
    logits, target = example
    total, parts = weighted_sum([Term("focal", 0.75), Term("bce", 0.25, {"sum_classes": True})])(
        *example
    )
    focal, bce = pixel.focal(*example), pixel.bce(*example, sum_classes=True)
    assert parts == {
        "focal": focal.detach(),
        "focal/weighted": 0.75 * focal.detach(),
        "bce": bce.detach(),
        "bce/weighted": 0.25 * bce.detach(),
    }
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(total, 0.75 * focal + 0.25 * bce)
    (gradient,) = torch.autograd.grad(total, logits)
    (expected,) = torch.autograd.grad(0.75 * focal + 0.25 * bce, logits)
    torch.testing.assert_close(gradient, expected)


def test_a_loss_named_twice_is_numbered(example):
    terms = [Term("focal", 1.0, {"gamma": g}) for g in (0.0, 1.0, 2.0)]
    _, parts = weighted_sum([terms[0], Term("cross_entropy"), *terms[1:]])(*example)
    assert list(parts)[::2] == ["focal", "cross_entropy", "focal#2", "focal#3"]
    assert parts["focal#3"] < parts["focal#2"] < parts["focal"]


def test_the_share_of_a_head_scales_total_and_weighted_parts(example):
    terms = [Term("focal", 0.75), Term("dice", 0.25)]
    total, parts = weighted_sum(terms, scale=0.4)(*example)
    whole, raw = weighted_sum(terms)(*example)
    torch.testing.assert_close(total, 0.4 * whole)
    assert parts["focal"] == raw["focal"]
    torch.testing.assert_close(parts["dice/weighted"], 0.4 * raw["dice/weighted"])
    torch.testing.assert_close(
        weighted_sum([Term("dice")], scale=0.4)(*example)[0], 0.4 * raw["dice"]
    )


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
    return weighted_sum([Term(name, weight) for name, weight in names], balance)


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
    sizes = [4.0, 0.2]  # means of |term|
    raw = [0.75 / sizes[0], 0.25 / sizes[1]]
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
    assert criterion.mean.tolist() != [1.0, 1.0]


def test_a_step_counts_once_however_many_passes_it_takes(given):
    whole, parts = balanced(Balance(calibrate=2)), balanced(Balance(calibrate=2))
    for pair in [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]:
        halves = [(pair[0] - 0.5, pair[1] + 1), (pair[0] + 0.5, pair[1] - 1)]
        assert step(whole, given, pair) == step(parts, given, *halves).expected
    assert torch.equal(whole.mean, parts.mean) and whole.steps == parts.steps == 2


def test_a_term_that_was_always_zero_leaves_the_weights_alone(given):
    criterion = balanced(Balance(calibrate=1))
    criterion.watch([torch.tensor(0.0), torch.tensor(5.0)])
    criterion.begin_step()
    assert criterion.steps == 1
    assert criterion.weights().tolist() == [0.75, 0.25]


def test_a_step_without_a_trace_is_not_counted(given):
    """As after one that was skipped, whose sums the engine takes back."""
    criterion = balanced(Balance(calibrate=2))
    step(criterion, given, (1.0, 2.0))
    criterion.begin_step()
    criterion.begin_step()
    assert criterion.steps == 1 and criterion.mean.tolist() == [1.0, 2.0]


def test_one_term_has_nothing_to_balance():
    assert type(weighted_sum([Term("dice")], Balance(ema=0.9))) is WeightedSum
    assert weighted_sum([Term("dice")]).state_dict() == {}


def test_balancing_does_not_change_what_flows_back(example):
    """The weights are constants to the gradient."""
    logits, target = example
    criterion = weighted_sum([Term("focal"), Term("dice")], Balance(calibrate=1))
    criterion(logits, target)
    criterion.begin_step()
    total, _ = criterion(logits, target)
    one, two = criterion.weights().tolist()
    (gradient,) = torch.autograd.grad(total, logits)
    plain = one * pixel.focal(logits, target) + two * region.dice(logits, target)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, logits)[0])
    assert one != 1 and not any(p.requires_grad for p in criterion.parameters())

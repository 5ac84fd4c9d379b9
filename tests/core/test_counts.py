"""Counts against torchmetrics and loops; sums that no order can change."""

import math
from fractions import Fraction

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from vision_tutorial.core.task import QUANTUM, exact_sum, ranks, tally


def draws(seed):
    return torch.Generator().manual_seed(seed)


def test_an_exact_sum_is_the_same_in_any_order_and_split():
    values = torch.randn(10_000, generator=draws(0)) * 100
    whole = exact_sum(values.requires_grad_())
    assert whole.dtype == torch.float64 and not whole.requires_grad
    for seed in range(5):
        shuffled = values[torch.randperm(len(values), generator=draws(seed))]
        parts = [exact_sum(part) for part in shuffled.split(1 + 37 * seed)]
        assert sum(parts).item() == whole.item()


def test_an_exact_sum_is_near_the_true_one():
    values = torch.rand(1000, generator=draws(1))
    true = float(sum(Fraction(v) for v in values.tolist()))
    assert abs(exact_sum(values).item() - true) <= 1000 * QUANTUM / 2
    assert exact_sum(torch.tensor([])).item() == 0
    assert math.isnan(exact_sum(torch.tensor([1.0, math.nan])).item())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_equals_torchmetrics(k):
    logits = torch.randn(500, 10, generator=draws(2))
    target = torch.randint(10, (500,), generator=draws(3))
    expected = multiclass_accuracy(logits, target, 10, top_k=k, average="micro")
    assert (ranks(logits, target) < k).double().mean().item() == pytest.approx(expected.item())


def test_a_tie_is_broken_as_a_stable_sort_does():
    logits = torch.randint(3, (300, 8), generator=draws(4)).float()
    target = torch.randint(8, (300,), generator=draws(5))
    for k in (1, 3):
        first = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
        expected = (first == target[:, None]).any(1)
        assert torch.equal(ranks(logits, target) < k, expected)


def test_more_places_than_classes_always_hit_and_nan_never():
    assert (ranks(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])) < 5).all()
    assert not (ranks(torch.full((2, 3), math.nan), torch.tensor([0, 1])) < 5).any()


def test_a_tally_counts_as_bincount_does():
    classes = torch.randint(0, 7, (100,))
    hits = torch.rand(100) < 0.3
    assert tally(hits, classes, 9).dtype == torch.float64
    assert tally(hits, classes, 9).tolist() == torch.bincount(classes[hits], minlength=9).tolist()

"""Counts against torchmetrics, sums that no order changes; class ids <-> class maps, by loops."""

import math
from fractions import Fraction

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from vision_tutorial.classification.metrics import ranks
from vision_tutorial.core.task import (
    IGNORE,
    QUANTUM,
    VOID,
    exact_sum,
    from_masks,
    is_map,
    tally,
    to_map,
    to_masks,
    valid,
)


def draws(seed):
    return torch.Generator().manual_seed(seed)


# -- counts ----------------------------------------------------------------------------------------


def test_an_exact_sum_is_near_the_true_one_in_any_order_and_split():
    sizes = 10 ** (14 * torch.rand(10_000, generator=draws(1)) - 12)
    values = torch.randn(10_000, generator=draws(0)) * sizes
    whole = exact_sum(values.requires_grad_())
    assert whole.dtype == torch.float64 and not whole.requires_grad
    assert abs(whole.item() - float(sum(map(Fraction, values.tolist())))) <= 10_000 * QUANTUM / 2
    for seed in range(5):
        shuffled = values[torch.randperm(len(values), generator=draws(seed))]
        parts = [exact_sum(part) for part in shuffled.split(1 + 37 * seed)]
        assert sum(parts).item() == whole.item()
    assert exact_sum(torch.tensor([])).item() == 0
    assert math.isnan(exact_sum(torch.tensor([1.0, math.nan])).item())


def test_ranks_are_torchmetrics_topk_and_a_tie_is_broken_as_a_stable_sort_does():
    logits = torch.randn(500, 10, generator=draws(2))
    target = torch.randint(10, (500,), generator=draws(3))
    for k in (1, 2, 5):
        expected = multiclass_accuracy(logits, target, 10, top_k=k, average="micro")
        assert (ranks(logits, target) < k).double().mean().item() == pytest.approx(expected.item())
    logits = torch.randint(3, (500, 10), generator=draws(4)).float()
    order = logits.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(ranks(logits, target), (order == target[:, None]).int().argmax(1))
    assert not (ranks(torch.full((2, 3), math.nan), torch.tensor([0, 1])) < 5).any()


def test_a_tally_sums_by_class():
    classes = torch.randint(0, 7, (100,))
    values = torch.rand(100, dtype=torch.float64)
    found = tally(values, classes, 9)
    torch.testing.assert_close(found, torch.bincount(classes, values, minlength=9))
    assert tally(values < 0.3, classes, 9).dtype == torch.float64


# -- targets ---------------------------------------------------------------------------------------

SHAPES = [(6,), (3, 2, 5)]


def ids_of(shape, classes=4, ignored=True):
    ids = torch.randint(classes, shape, generator=draws(len(shape)))
    if ignored:
        ids[torch.rand(shape, generator=draws(9)) < 0.3] = IGNORE
    return ids


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(shape):
    ids = ids_of(shape)
    made = to_map(ids, 4)
    assert made.shape == (shape[0], 4, *shape[1:])
    assert made.dtype == torch.float32
    assert is_map(made) and not is_map(ids)
    assert torch.equal(to_masks(made), ids.masked_fill(ids == IGNORE, VOID))
    assert to_map(made, 4) is made
    assert torch.equal(valid(made), ids != IGNORE)
    assert torch.equal(valid(ids), ids != IGNORE)
    for position in torch.cartesian_prod(*[torch.arange(n) for n in shape]).view(-1, len(shape)):
        first, *rest = position.tolist()
        cell = made[(first, slice(None), *rest)].tolist()
        assert cell == [float(ids[(first, *rest)].item() == c) for c in range(4)]


def test_masks_come_back_as_they_were_and_a_map_gives_its_largest_share():
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0], [0.4, 0.2, 0.4]])
    assert to_masks(shares).tolist() == [1, VOID, 0]
    masks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    ids = from_masks(masks)
    assert ids[masks == VOID].tolist() == [IGNORE]
    assert torch.equal(to_masks(ids), masks) and to_masks(ids).dtype == torch.uint8

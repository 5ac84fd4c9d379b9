"""Blends: weighted sums that keep their parts."""

import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.grammar import Term
from vision_tutorial.losses import blend, pixel


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, generator=generator).requires_grad_()
    return logits, torch.randint(3, (4, 5), generator=generator)


def test_a_single_loss_has_no_parts(example):
    total, parts = blend([Term("focal", options={"gamma": 1.0})])(*example)
    assert parts == {} and total.item() == pixel.focal(*example, gamma=1.0).item()


def test_a_single_loss_keeps_its_weight(example):
    total, _ = blend([Term("cross_entropy", 0.5)])(*example)
    assert total.item() == 0.5 * pixel.cross_entropy(*example).item()


def test_parts_are_raw_and_detached_and_the_total_is_their_weighted_sum(example):
    logits, target = example
    total, parts = blend([Term("focal", 0.75), Term("bce", 0.25, {"sum_classes": True})])(*example)
    focal, bce = pixel.focal(*example), pixel.bce(*example, sum_classes=True)
    assert parts == {"focal": focal.detach(), "bce": bce.detach()}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(total, 0.75 * focal + 0.25 * bce)
    (gradient,) = torch.autograd.grad(total, logits)
    (expected,) = torch.autograd.grad(0.75 * focal + 0.25 * bce, logits)
    torch.testing.assert_close(gradient, expected)


def test_a_loss_named_twice_is_numbered(example):
    terms = [Term("focal", 1.0, {"gamma": g}) for g in (0.0, 1.0, 2.0)]
    _, parts = blend([terms[0], Term("cross_entropy"), *terms[1:]])(*example)
    assert list(parts) == ["focal", "cross_entropy", "focal#2", "focal#3"]
    assert parts["focal#3"] < parts["focal#2"] < parts["focal"]


def test_nothing_counts(example):
    logits, target = example
    total, parts = blend([Term("focal"), Term("cross_entropy")])(logits, target.fill_(-100))
    total.backward()
    assert total.item() == 0 and all(part.item() == 0 for part in parts.values())
    assert not logits.grad.any()


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match="no loss called 'focl'; did you mean 'focal'"):
        blend([Term("focl")])


def test_an_empty_blend_is_refused():
    with pytest.raises(UserError, match="at least one"):
        blend([])

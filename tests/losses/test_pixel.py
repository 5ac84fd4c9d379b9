"""Per-position losses against torch, torchvision, timm and plain float64 loops."""

import math

import pytest
import timm.loss
import torch
import torchvision
from loss_examples import example, rows, soft
from torch.nn import functional as F

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import losses as registry
from vision_tutorial.core.task import IGNORE, to_map
from vision_tutorial.losses import pixel

WEIGHTS = [0.5, 2.0, 1.0, 0.1, 3.0]
close = torch.testing.assert_close


def positions(logits, target):
    """(logits, shares) of each counted position, float64 (C,) each."""
    shares = to_map(target, 5).double()
    pairs = zip(*(t.movedim(1, -1).reshape(-1, 5) for t in (logits, shares)), strict=True)
    return [(z, share) for z, share in pairs if share.any()]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(smoothing, weights):
    logits, ids = example()
    options = {"ignore_index": IGNORE, "label_smoothing": smoothing}
    expected = F.cross_entropy(logits, ids, weights and torch.tensor(weights), **options)
    given = pixel.cross_entropy(logits, ids, label_smoothing=smoothing, class_weights=weights)
    close(given, expected)


def test_soft_cross_entropy_is_torchs_and_timms():
    logits, ids = example((6, 5), ignored=False)
    target = soft((6, 5))
    target[0] = 0.2
    given = pixel.cross_entropy(logits, target, label_smoothing=0.1)
    close(given, F.cross_entropy(logits, target, label_smoothing=0.1))
    smoothed = timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, ids)
    close(pixel.label_smoothing(logits, ids), smoothed)


def test_soft_weighted_cross_entropy_is_the_weighted_mean():
    logits, _ = example(dtype=torch.float64)
    target, weights = soft(dtype=torch.float64), torch.tensor(WEIGHTS, dtype=torch.float64)
    pairs = positions(logits, target)
    above = sum((weights * share * (z.logsumexp(0) - z)).sum() for z, share in pairs)
    below = sum((weights * share).sum() for _, share in pairs)
    close(pixel.cross_entropy(logits, target, class_weights=WEIGHTS), above / below)


def test_classes_of_weight_zero_give_zero_not_nan():
    logits, _ = example((4, 2))
    loss = pixel.cross_entropy(logits, torch.zeros(4, dtype=torch.int64), class_weights=[0.0, 1.0])
    assert loss.item() == 0


@pytest.mark.parametrize(("gamma", "alpha"), [(0.75, None), (2.0, WEIGHTS)])
@pytest.mark.parametrize("form", ["ids", "map"])
def test_focal_is_its_definition(gamma, alpha, form):
    logits, ids = example(dtype=torch.float64)
    target = ids if form == "ids" else soft(dtype=torch.float64)
    scale = torch.tensor(alpha or [1.0] * 5, dtype=torch.float64)
    values = [
        (share * scale * (1 - z.softmax(0)) ** gamma * -z.log_softmax(0)).sum()
        for z, share in positions(logits, target)
    ]
    given = pixel.focal(logits, target, gamma=gamma, alpha=alpha)
    close(given, sum(values) / len(values))


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, None), (2.0, 0.25)])
def test_focal_ovr_is_torchvisions(gamma, alpha):
    logits, ids = example()
    keep = ids != IGNORE
    expected = torchvision.ops.sigmoid_focal_loss(
        rows(logits, keep),
        rows(to_map(ids, 5), keep),
        alpha=-1 if alpha is None else alpha,
        gamma=gamma,
        reduction="mean",
    )
    close(pixel.focal_ovr(logits, ids, gamma=gamma, alpha=alpha), expected)


def test_focal_ovr_of_a_class_map_is_the_expectation():
    logits, _ = example((1, 2), torch.float64)
    one, other = (
        torchvision.ops.sigmoid_focal_loss(logits, torch.tensor([[t, 1 - t]]), 0.5, 2.0, "mean")
        for t in (1.0, 0.0)
    )
    mixed = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    close(pixel.focal_ovr(logits, mixed), 0.3 * one + 0.7 * other)


@pytest.mark.parametrize(
    "options",
    [
        {"smoothing": 0.1},
        {"smoothing": 0.1, "target_threshold": 0.9},
        {"smoothing": 0.1, "sum_classes": True, "pos_weight": 3.0},
        {"smoothing": 0.0, "class_weights": WEIGHTS},
    ],
    ids=str,
)
def test_bce_is_timms_over_the_counted_positions(options):
    logits, ids = example()
    keep = ids != IGNORE
    theirs = {k: v for k, v in options.items() if k != "class_weights"}
    if "class_weights" in options:
        theirs["weight"] = torch.tensor(WEIGHTS)
    expected = timm.loss.BinaryCrossEntropy(**theirs)(rows(logits, keep), ids[keep])
    close(pixel.bce(logits, ids, **options), expected)


@pytest.mark.parametrize(("splits", "smoothing"), [(2, 0.0), (3, 0.1)])
def test_jsd_is_timms(splits, smoothing):
    logits, ids = example((6, 5), ignored=False)
    expected = timm.loss.JsdCrossEntropy(splits, 7.0, smoothing)(logits, ids)
    close(pixel.jsd(logits, ids, num_splits=splits, alpha=7.0, smoothing=smoothing), expected)


@pytest.mark.parametrize("form", ["ids", "map"])
@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 1), (0.05, 7), (0.0, 1), (1.0, 1), (0.3, 10**6)]
)
def test_ohem_is_its_definition(threshold, min_kept, form):
    """p_y < max(threshold, p of rank min_kept), as a loop over the sorted positions."""
    logits, ids = example(dtype=torch.float64)
    target = ids if form == "ids" else soft(dtype=torch.float64)
    values = [-(share * z.log_softmax(0)).sum() for z, share in positions(logits, target)]
    values.sort(reverse=True)
    kept = [
        value
        for rank, value in enumerate(values)
        if rank < min_kept or math.exp(-value.item()) < threshold
    ]
    given = pixel.ohem(logits, target, threshold=threshold, min_kept=min_kept)
    close(given, sum(kept) / len(kept))
    (gradient,) = torch.autograd.grad(given, logits)
    assert gradient.abs().sum(1).count_nonzero() == len(kept)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cross_entropy", {"label_smoothing": 1.5}, "label_smoothing is 1.5; give 0 to 1"),
        ("cross_entropy", {"class_weights": [1.0, 1.0, 1.0, 1.0, -1.0]}, "from 0 up"),
        ("focal", {"alpha": [0.5]}, "for 5 classes"),
        ("focal_ovr", {"gamma": math.nan}, "focal_ovr: gamma is nan"),
        ("ohem", {"min_kept": 0}, "min_kept is 0"),
        ("jsd", {"num_splits": 4}, "4 versions"),
        ("jsd", {"num_splits": 1}, "at least 2"),
        ("dice", {"smooth": -1.0}, "dice: smooth is -1.0"),
        ("tversky", {"beta": -0.1}, "tversky: beta is -0.1"),
    ],
)
def test_bad_options_are_refused(name, options, words):
    with pytest.raises(UserError, match=words) as caught:
        registry.build(name, **options)(*example())
    assert "\n" not in str(caught.value)

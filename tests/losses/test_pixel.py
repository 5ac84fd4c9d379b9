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
from vision_tutorial.core.targets import IGNORE, to_map
from vision_tutorial.losses import pixel

SHAPES = [(6, 5), (6, 5, 7), (6, 5, 4, 3)]


def test_mean_is_over_positions_not_over_images():
    logits, ids = torch.zeros(2, 2, 4), torch.zeros(2, 4, dtype=torch.int64)
    logits[0, 0] = 5
    ids[0, 1:] = IGNORE
    small, large = math.log1p(math.exp(-5)), math.log(2)
    assert pixel.cross_entropy(logits, ids).item() == pytest.approx((small + 4 * large) / 5)


# Oracles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(shape, smoothing, weighted):
    logits, ids = example(shape)
    weights = [0.5, 2.0, 1.0, 0.1, 3.0] if weighted else None
    expected = F.cross_entropy(
        logits,
        ids,
        None if weights is None else torch.tensor(weights),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    given = pixel.cross_entropy(logits, ids, label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(given, expected)
    if not weighted:
        torch.testing.assert_close(pixel.label_smoothing(logits, ids, epsilon=smoothing), expected)


def test_soft_cross_entropy_is_torchs_and_timms():
    logits, _ = example((6, 5))
    target = soft((6, 5))
    target[0] = 0.2
    given = pixel.cross_entropy(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(given, F.cross_entropy(logits, target, label_smoothing=0.1))
    smooth = 0.9 * target + 0.1 / 5
    torch.testing.assert_close(given, timm.loss.SoftTargetCrossEntropy()(logits, smooth))


def test_soft_weighted_cross_entropy_is_the_weighted_mean():
    logits, _ = example(dtype=torch.float64)
    target, weights = soft(dtype=torch.float64), [0.5, 2.0, 1.0, 0.1, 3.0]
    above = below = 0.0
    for z, share in zip(
        logits.movedim(1, -1).reshape(-1, 5), target.movedim(1, -1).reshape(-1, 5), strict=True
    ):
        for c in range(5):
            above += weights[c] * share[c] * (z.logsumexp(0) - z[c])
            below += weights[c] * share[c]
    torch.testing.assert_close(
        pixel.cross_entropy(logits, target, class_weights=weights), above / below
    )


def test_weightless_classes_give_zero_not_nan():
    logits, _ = example((4, 2))
    loss = pixel.cross_entropy(logits, torch.zeros(4, dtype=torch.int64), class_weights=[0.0, 1.0])
    assert loss.item() == 0


def test_label_smoothing_is_timms():
    logits, ids = example((6, 5), ignored=False)
    expected = timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, ids)
    torch.testing.assert_close(pixel.label_smoothing(logits, ids), expected)


def test_students_blend_of_smoothed_and_plain_is_one_smoothing():
    """0.75 LS(ε) + 0.25 CE is exactly LS(0.75 ε)."""
    logits, ids = example(dtype=torch.float64)
    both = 0.75 * pixel.label_smoothing(logits, ids, epsilon=0.05)
    both = both + 0.25 * pixel.cross_entropy(logits, ids)
    torch.testing.assert_close(pixel.label_smoothing(logits, ids, epsilon=0.0375), both)


@pytest.mark.parametrize("alpha", [None, [0.5, 2.0, 1.0, 0.1, 3.0]])
@pytest.mark.parametrize("gamma", [0.0, 0.75, 2.0])
@pytest.mark.parametrize("form", ["ids", "map"])
def test_focal_is_its_definition(gamma, alpha, form):
    logits, ids = example((4, 5, 3), torch.float64)
    target = ids if form == "ids" else soft((4, 5, 3), torch.float64)
    shares = to_map(target, 5).movedim(1, -1).reshape(-1, 5).double()
    total, count = 0.0, 0
    for z, share in zip(logits.movedim(1, -1).reshape(-1, 5), shares, strict=True):
        count += bool(share.any())
        p = z.exp() / z.exp().sum()
        for c in range(5):
            total += share[c] * (alpha[c] if alpha else 1) * (1 - p[c]) ** gamma * -p[c].log()
    torch.testing.assert_close(pixel.focal(logits, target, gamma=gamma, alpha=alpha), total / count)


def test_focal_without_gamma_is_cross_entropy():
    logits, ids = example()
    torch.testing.assert_close(pixel.focal(logits, ids, gamma=0), pixel.cross_entropy(logits, ids))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.5])
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
    torch.testing.assert_close(pixel.focal_ovr(logits, ids, gamma=gamma, alpha=alpha), expected)


def test_focal_ovr_of_a_class_map_is_the_expectation():
    logits, _ = example((1, 2), torch.float64)
    share = 0.3
    mixed = torch.tensor([[share, 1 - share]], dtype=torch.float64)
    each = [
        torchvision.ops.sigmoid_focal_loss(logits, torch.tensor([[t, 1 - t]]), 0.5, 2.0, "mean")
        for t in (1.0, 0.0)
    ]
    torch.testing.assert_close(
        pixel.focal_ovr(logits, mixed), share * each[0] + (1 - share) * each[1]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"smoothing": 0.0},
        {"smoothing": 0.1},
        {"smoothing": 0.1, "target_threshold": 0.05},
        {"smoothing": 0.1, "sum_classes": True},
        {"smoothing": 0.1, "sum_classes": True, "pos_weight": 3.0},
        {"smoothing": 0.0, "class_weights": [0.5, 2.0, 1.0, 0.1, 3.0]},
    ],
    ids=str,
)
def test_bce_is_timms(options):
    logits, ids = example((6, 5), ignored=False)
    theirs = {k: v for k, v in options.items() if k != "class_weights"}
    if "class_weights" in options:
        theirs["weight"] = torch.tensor(options["class_weights"])
    expected = timm.loss.BinaryCrossEntropy(**theirs)
    torch.testing.assert_close(pixel.bce(logits, ids, **options), expected(logits, ids))
    dense = to_map(ids, 5) * (1 - options["smoothing"]) + options["smoothing"] / 5
    plain = {**options, "smoothing": 0.0}
    torch.testing.assert_close(pixel.bce(logits, dense, **plain), expected(logits, dense))


def test_bce_of_many_pixels_is_the_mean_over_rows():
    logits, ids = example()
    keep = ids != IGNORE
    options = {"class_weights": [0.5, 2.0, 1.0, 0.1, 3.0], "pos_weight": 2.0, "sum_classes": True}
    expected = timm.loss.BinaryCrossEntropy(
        0.0, weight=torch.tensor(options["class_weights"]), sum_classes=True, pos_weight=2.0
    )(rows(logits, keep), ids[keep])
    torch.testing.assert_close(pixel.bce(logits, ids, **options), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("splits", [2, 3])
def test_jsd_is_timms(splits, smoothing):
    logits, ids = example((6, 5), ignored=False)
    expected = timm.loss.JsdCrossEntropy(splits, 7.0, smoothing)(logits, ids)
    given = pixel.jsd(logits, ids, num_splits=splits, alpha=7.0, smoothing=smoothing)
    torch.testing.assert_close(given, expected)


def test_jsd_of_equal_versions_is_cross_entropy():
    logits, ids = example((2, 5, 3), torch.float64)
    given = pixel.jsd(logits.repeat(3, 1, 1), ids.repeat(3, 1), smoothing=0.1)
    torch.testing.assert_close(given, pixel.cross_entropy(logits, ids, label_smoothing=0.1))


@pytest.mark.parametrize("form", ["ids", "map"])
@pytest.mark.parametrize(
    ("threshold", "min_kept"),
    [(0.7, 1), (0.7, 40), (0.05, 1), (0.05, 7), (0.0, 5), (0.0, 1), (1.0, 1), (0.3, 10**6)],
)
def test_ohem_is_its_definition(threshold, min_kept, form):
    """p_y < max(threshold, p of rank min_kept), as a loop over the sorted positions."""
    logits, ids = example(dtype=torch.float64)
    target = ids if form == "ids" else soft(dtype=torch.float64)
    shares = to_map(target, 5).movedim(1, -1).reshape(-1, 5).double()
    entropies = [
        sum(-g * torch.log(p) for g, p in zip(share, z.softmax(0), strict=True))
        for z, share in zip(logits.movedim(1, -1).reshape(-1, 5), shares, strict=True)
        if share.any()
    ]
    entropies.sort(reverse=True)
    kept = [
        entropy
        for rank, entropy in enumerate(entropies)
        if rank < min_kept or math.exp(-entropy.item()) < threshold
    ]
    given = pixel.ohem(logits, target, threshold=threshold, min_kept=min_kept)
    torch.testing.assert_close(given, sum(kept) / len(kept))
    (gradient,) = torch.autograd.grad(given, logits)
    assert gradient.abs().sum(1).count_nonzero() == len(kept)


def test_ohem_of_few_positions_is_cross_entropy():
    logits, ids = example()
    torch.testing.assert_close(pixel.ohem(logits, ids), pixel.cross_entropy(logits, ids))


def test_ohem_keeps_ties():
    logits, ids = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    given = pixel.ohem(logits, ids, threshold=0.1, min_kept=1)
    assert given.item() == pytest.approx(math.log(2))


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cross_entropy", {"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ("cross_entropy", {"class_weights": [1.0, 2.0]}, "for 5 classes"),
        ("cross_entropy", {"class_weights": [1.0, 1.0, 1.0, 1.0, -1.0]}, "from 0 up"),
        ("label_smoothing", {"epsilon": -0.1}, "epsilon is -0.1"),
        ("focal", {"gamma": -1.0}, "gamma is -1.0"),
        ("focal", {"alpha": [0.5]}, "for 5 classes"),
        ("focal_ovr", {"gamma": math.nan}, "gamma is nan"),
        ("focal_ovr", {"alpha": 1.5}, "0 to 1"),
        ("bce", {"smoothing": 2.0}, "smoothing is 2.0"),
        ("bce", {"class_weights": []}, "for 5 classes"),
        ("ohem", {"threshold": 1.1}, "from 0 to 1"),
        ("ohem", {"min_kept": 0}, "from 1 to inf"),
        ("jsd", {"num_splits": 4}, "4 versions"),
        ("jsd", {"num_splits": 1}, "at least 2"),
    ],
)
def test_bad_options_are_told(name, options, words):
    logits, ids = example()
    with pytest.raises(UserError, match=words) as caught:
        registry.build(name, **options)(logits, ids)
    assert "\n" not in str(caught.value)

"""What every loss holds to; losses per position against torch, torchvision, timm and loops."""

import math

import pytest
import timm.loss
import torch
import torchvision
from loss_examples import example, rows, soft
from torch.nn import functional as F

from vision_tutorial import losses  # noqa: F401  (fills the registry)
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import losses as registry
from vision_tutorial.core.task import IGNORE, to_map
from vision_tutorial.losses import pixel

# Options that take another path through the code.
VARIANTS = [(name, {}) for name in registry] + [
    ("cross_entropy", {"label_smoothing": 0.1, "class_weights": [0.5, 2.0, 1.0, 0.1, 3.0]}),
    ("focal", {"gamma": 0.5, "alpha": [0.5, 2.0, 1.0, 0.1, 3.0]}),
    ("focal_ovr", {"gamma": 0.0, "alpha": None}),
    ("bce", {"smoothing": 0.1, "sum_classes": True, "class_weights": [1.0] * 5}),
    ("jsd", {"num_splits": 2, "smoothing": 0.1}),
    ("ohem", {"threshold": 0.3, "min_kept": 4}),
    ("dice", {"squared": True, "smooth": 0.0}),
    ("jaccard", {"classes": "all", "smooth": 0.0}),
    ("tversky", {"gamma": 0.75, "classes": "all"}),
    ("lovasz", {"classes": "all"}),
]
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{name}-{'-'.join(options)}" for name, options in VARIANTS]
)
both_forms = pytest.mark.parametrize("form", ["ids", "map"])


def target_of(name, form, ids, shape, dtype=torch.float32):
    """The target in a form that the loss takes; lovasz takes no shares."""
    if form == "ids":
        return ids
    return to_map(ids, shape[1]).to(dtype) if name == "lovasz" else soft(shape, dtype)


@both_forms
@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("name", list(registry))
def test_every_loss_takes_any_number_of_axes_and_both_forms(name, shape, form):
    logits, ids = example(shape)
    loss = registry.build(name)(logits, target_of(name, form, ids, shape))
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@both_forms
@every_variant
def test_nothing_counts_gives_zero_and_zero_gradient(name, options, form):
    logits, ids = example()
    target = torch.full_like(ids, IGNORE) if form == "ids" else torch.zeros_like(logits)
    loss = registry.build(name, **options)(logits, target)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@every_variant
def test_ignored_positions_are_as_if_absent(name, options, poison):
    """The loss over what counts equals the loss of a batch that never held the rest."""
    logits, ids = example(dtype=torch.float64)
    splits = options.get("num_splits", 3) if name == "jsd" else 1
    ids = ids[: len(ids) // splits].repeat(splits, 1, 1)  # the versions of an image share its mask
    loss = registry.build(name, **options)
    keep = ids != IGNORE
    alone = rows(logits, keep).detach().requires_grad_()
    logits = logits.detach().masked_fill(~keep.unsqueeze(1), poison).requires_grad_()
    given, expected = loss(logits, ids), loss(alone, ids[keep])
    given.backward()
    expected.backward()
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(rows(logits.grad, keep), alone.grad)
    assert not rows(logits.grad, ~keep).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_variant
def test_half_precision_is_computed_in_float32_and_both_forms_agree(name, options, dtype):
    logits, ids = example(dtype=dtype)
    loss = registry.build(name, **options)
    exact = loss(logits.float(), ids)
    with torch.autocast("cpu", torch.bfloat16):
        inside, mapped = loss(logits, ids), loss(logits, to_map(ids, 5).to(dtype))
    assert exact.dtype == inside.dtype == torch.float32
    assert loss(logits, ids).item() == inside.item() == exact.item()
    torch.testing.assert_close(mapped, exact)
    inside.backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


@every_variant
def test_gradients_are_right(name, options):
    shape = (6, 5, 2)
    logits, ids = example(shape, torch.float64)
    target = target_of(name, "map", ids, shape, torch.float64)
    loss = registry.build(name, **options)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits, fast_mode=True)


@every_variant
def test_extreme_logits_stay_finite_and_nan_is_not_hidden(name, options):
    loss = registry.build(name, **options)
    logits = torch.zeros(6, 5)
    logits[:, 0], logits[:, 1] = 6e4, -6e4
    for label in (0, 1):
        z = logits.clone().requires_grad_()
        value = loss(z, torch.full((6,), label))
        value.backward()
        assert value.isfinite() and z.grad.isfinite().all()
    logits, ids = example(ignored=False)
    assert loss(logits.detach().index_fill(2, torch.tensor([1]), math.nan), ids).isnan()


@pytest.mark.parametrize("target", [torch.zeros(6, 4, dtype=torch.int64), torch.zeros(6, 4, 4, 3)])
@pytest.mark.parametrize("name", ["cross_entropy", "lovasz"])
def test_shapes_that_do_not_fit_are_told(name, target):
    logits, _ = example()
    with pytest.raises(UserError, match=r"class ids are \(6, 4, 3\) here, a class map is \(6, 5"):
        registry.build(name)(logits, target)


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
    logits, _ = example((4, 2))
    loss = pixel.cross_entropy(logits, torch.zeros(4, dtype=torch.int64), class_weights=[0.0, 1.0])
    assert loss.item() == 0  # not 0/0


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
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1), (0.05, 7), (0.0, 1), (0.3, 10**6)])
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
        ("cross_entropy", {"class_weights": [1.0, 1.0, 1.0, 1.0, -1.0]}, "from 0 up"),
        ("focal", {"alpha": [0.5]}, "for 5 classes"),
        ("focal_ovr", {"gamma": math.nan}, "focal_ovr: gamma is nan"),
        ("ohem", {"min_kept": 0}, "min_kept is 0"),
        ("jsd", {"num_splits": 4}, "num_splits 4 must .* divide 6"),
        ("jsd", {"num_splits": 1}, "num_splits 1 must be 2"),
        ("dice", {"smooth": -1.0}, "dice: smooth is -1.0"),
        ("tversky", {"beta": -0.1}, "tversky: beta is -0.1"),
    ],
)
def test_bad_options_are_refused(name, options, words):
    with pytest.raises(UserError, match=words) as caught:
        registry.build(name, **options)(*example())
    assert "\n" not in str(caught.value)

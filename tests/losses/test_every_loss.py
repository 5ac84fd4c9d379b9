"""What every loss on the registry holds to: shapes, ignored positions, both forms, precision."""

import math

import pytest
import torch
from loss_examples import example, rows, soft

from vision_tutorial import losses  # noqa: F401  (fills the registry)
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import losses as registry
from vision_tutorial.core.task import IGNORE, to_map

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

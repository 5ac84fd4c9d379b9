"""Region losses against their definitions in float64 loops and against segmentation_models_pytorch.

With smp 0.6 these coincide, for class ids and reduce=batch where every class occurs: Jaccard and
Tversky (gamma 1) at equal `smooth`, Dice at half of ours; Lovász with per_image = (reduce == image)
where no image is ignored whole. Elsewhere smp differs: it divides by all classes and puts 0 for
absent ones, takes Tversky's exponent of the mean over classes, and Σ min(p, g) for Σ pg.
"""

import itertools

import pytest
import torch
from loss_examples import example, soft

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import losses as registry
from vision_tutorial.core.task import IGNORE, to_map
from vision_tutorial.losses import region

REGIONS = ["dice", "jaccard", "tversky", "tanimoto", "lovasz"]
both_reductions = pytest.mark.parametrize("reduce", ["batch", "image"])
OPTIONS = [
    ("dice", {}),
    ("dice", {"squared": True, "smooth": 0.5}),
    ("jaccard", {"smooth": 0.0}),
    ("tversky", {"alpha": 0.2, "beta": 1.5, "smooth": 0.0, "gamma": 0.75}),
    ("tanimoto", {"gamma": 2.0}),
    ("lovasz", {}),
]


def uneven(dtype=torch.float64):
    """Five classes of which one is nowhere, one in one image only; an image ignored whole."""
    logits, ids = example((4, 5, 3, 4), dtype)
    ids[ids == 4] = 1
    ids[0][ids[0] == 3] = 0
    ids[1][ids[1] == 3] = 2
    ids[3] = IGNORE
    return logits, ids


def regions(logits, target, reduce):
    """[[(p, g) of each counted position of each class], …] for the batch or each image."""
    share = to_map(target, logits.shape[1]).double()
    found = []
    for z, g in zip(logits, share, strict=True):
        p = z.softmax(0).flatten(1)
        g = g.flatten(1)
        keep = [n for n in range(g.shape[1]) if g[:, n].any()]
        found.append([[(p[c, n], g[c, n]) for n in keep] for c in range(len(p))])
    if reduce == "batch":
        found = [[list(itertools.chain(*own)) for own in zip(*found, strict=True)]]
    return [one for one in found if one[0]]


def of_class(name, pairs, smooth=1.0, squared=False, alpha=0.3, beta=0.7, gamma=1.0):
    """The loss of one class in one region, as the spec writes it."""
    if name == "lovasz":
        return lovasz_extension(pairs)
    hit = sum(p * g for p, g in pairs)
    if name == "dice":
        power = 2 if squared else 1
        below = sum(p**power + g**power for p, g in pairs) + smooth
        return 1 - (2 * hit + smooth) / below
    false, missed = (sum(p * (1 - g) for p, g in pairs), sum((1 - p) * g for p, g in pairs))
    if name in ("jaccard", "tanimoto"):
        alpha = beta = 1.0
    score = (hit + smooth) / (hit + alpha * false + beta * missed + smooth)
    return (1 - score) ** gamma


def lovasz_extension(pairs):
    """Σ m_(k) [Δ({1 … k}) − Δ({1 … k−1})], with Δ the Jaccard loss of a set of mistakes."""
    errors = sorted(((abs(g - p), bool(g)) for p, g in pairs), key=lambda e: -e[0])
    size = sum(own for _, own in errors)

    def jaccard_loss(mistakes):
        lost = sum(own for _, own in mistakes)
        taken = len(mistakes) - lost
        return 1 - (size - lost) / (size + taken) if mistakes else 0.0

    steps = [jaccard_loss(errors[: k + 1]) - jaccard_loss(errors[:k]) for k in range(len(errors))]
    return sum(error * step for (error, _), step in zip(errors, steps, strict=True))


def defined(name, logits, target, reduce, classes, **options):
    means = []
    for one in regions(logits, target, reduce):
        counted = [pairs for pairs in one if classes == "all" or any(g for _, g in pairs)]
        means.append(sum(of_class(name, pairs, **options) for pairs in counted) / len(counted))
    return sum(means) / len(means)


@pytest.mark.parametrize("classes", ["present", "all"])
@both_reductions
@pytest.mark.parametrize(
    ("name", "options", "form"),
    [(*given, form) for given in OPTIONS for form in ("ids", "map")[: 1 + (given[0] != "lovasz")]],
    ids=str,
)
def test_each_is_its_definition(name, options, reduce, classes, form):
    logits, target = uneven()
    if form == "map":
        target, gone = soft((4, 5, 3, 4), torch.float64), target == IGNORE
        target[:, 4] = 0
        target[:2, 3] = 0
        target.masked_fill_(gone.unsqueeze(1), 0)
    expected = defined(name, logits, target, reduce, classes, **options)
    expected_gradient = torch.autograd.grad(expected, logits)[0]
    given = registry.build(name, reduce=reduce, classes=classes, **options)(logits, target)
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(torch.autograd.grad(given, logits)[0], expected_gradient)


@pytest.mark.parametrize("name", REGIONS)
def test_many_positions_lose_no_digits(name):
    """float32 beside float64 where a position's share is 4e-6; Berman's differences keep two."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2**18, generator=generator, dtype=torch.float64)
    ids = torch.randint(3, (1, 2**18), generator=generator)
    found = []
    for dtype in (torch.float64, torch.float32):
        z = logits.clone().to(dtype).requires_grad_()
        loss = registry.build(name)(z, ids)
        loss.backward()
        found.append((loss.item(), z.grad.double()))
    (exact, slope), (value, gradient) = found
    assert value == pytest.approx(exact, rel=1e-5)
    assert (gradient - slope).norm() < 1e-4 * slope.norm()


def test_lovasz_takes_one_hot_maps_and_refuses_shares():
    logits, ids = example()
    hot = to_map(ids, 5)
    assert region.lovasz(logits, hot.half()) == region.lovasz(logits, ids)
    mixed = 0.5 * hot + 0.5 * hot.flip(0)
    both = (hot + to_map(ids.roll(1, 0), 5)).clamp(max=1)
    for bad in (mixed, both):
        with pytest.raises(UserError, match="lovasz: targets are mixed. Use jaccard"):
            region.lovasz(logits, bad)


@both_reductions
def test_sums_are_smps_where_every_class_occurs_and_its_lovasz_is_bermans(reduce):
    smp = pytest.importorskip("segmentation_models_pytorch").losses
    logits, ids = example()
    theirs = {"mode": "multiclass", "smooth": 1.0, "ignore_index": IGNORE}
    dice = region.dice(logits, ids, smooth=2.0)
    torch.testing.assert_close(dice, smp.DiceLoss(**theirs)(logits, ids))
    expected = smp.TverskyLoss(alpha=0.3, beta=0.7, **theirs)(logits, ids)
    torch.testing.assert_close(region.tversky(logits, ids), expected)
    logits, ids = uneven(torch.float32)
    logits, ids = logits[:3].detach().requires_grad_(), ids[:3]
    theirs = smp.LovaszLoss("multiclass", per_image=reduce == "image", ignore_index=IGNORE)
    given, expected = region.lovasz(logits, ids, reduce=reduce), theirs(logits, ids)
    torch.testing.assert_close(given, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (given, expected)]
    torch.testing.assert_close(*gradients)

"""CutMix and Mixup against timm's: the same images and targets for the same draws."""

from math import asin, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from vision_tutorial.core import targets
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.randomness import generator
from vision_tutorial.core.registry import mixers
from vision_tutorial.data.mix import cutmix, draw_box, mix, mixup
from vision_tutorial.recipe.grammar import Term

CLASSES = 10
# Sides of the box that are even: on odd ones versions of timm differ by a pixel.
SHARES = [1 - ((side + 0.5) / 32) ** 2 for side in (0, 2, 8, 14, 22, 30)]
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def batch(size=8, side=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, side, side), generator=draw, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (size,), generator=draw)


class Scripted:
    """A generator that says what it is told, as NumPy's own generator and its old global one."""

    def __init__(self, share, centres=()):
        self.share, self.centres = share, list(centres)

    def random(self):
        return 0.0

    def beta(self, a, b):
        return self.share

    def integers(self, high):
        return self.centres.pop(0)

    def randint(self, low, high, size=None):
        assert size is None
        return self.centres.pop(0)


def timm_answers(monkeypatch, share, centres, images, target, smoothing, **alphas):
    """What timm's collating mixer and its on-device one make of the same draws."""
    options = dict(mixup_alpha=0.0, label_smoothing=smoothing, num_classes=CLASSES) | alphas
    for name in ("beta", "randint"):
        script = Scripted(share, centres * 2)
        monkeypatch.setattr(np.random, name, getattr(script, name))
    items = [(image, int(label)) for image, label in zip(images.numpy(), target, strict=True)]
    collated = timm_mixup.FastCollateMixup(**options)(items)
    on_device = timm_mixup.Mixup(**options)(images.float(), target)
    return collated, on_device


def ours(name, script, images, target, monkeypatch):
    monkeypatch.setattr("vision_tutorial.data.mix.generator", lambda *_: script)
    script.choice = lambda n, p: 0
    return mix([Term(name)])(images, target, CLASSES, 0, 0)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("centres", [[16, 16], [0, 31], [5, 27]])
def test_cutmix_is_timms(monkeypatch, share, centres):
    images, target = batch()
    with monkeypatch.context() as patch:
        (pixels, labels), (device_pixels, _) = timm_answers(
            patch, share, centres, images, target, 0.0, cutmix_alpha=1.0
        )
    assert torch.equal(pixels.float(), device_pixels)
    script = Scripted(share, centres * 2)  # once for the probe, once for the batch
    mixed, class_map = ours("cutmix", script, images, target, monkeypatch)
    assert torch.equal(mixed, pixels)
    assert torch.equal(class_map, labels)  # areas of 1024 pixels are exact in float32


@pytest.mark.parametrize("share", [0.0, 0.123456789, 0.5, 0.7071067811865476, 0.999])
def test_mixup_is_timms(monkeypatch, share):
    images, target = batch()
    with monkeypatch.context() as patch:
        (pixels, labels), (device_pixels, _) = timm_answers(
            patch, share, [], images, target, 0.0, mixup_alpha=1.0
        )
    mixed, class_map = ours("mixup", Scripted(share), images, target, monkeypatch)
    assert torch.equal(mixed, pixels)
    assert mixed.dtype == torch.uint8
    assert (mixed - device_pixels).abs().max() <= 0.5 + 1e-4  # only the rounding lies between
    # timm rounds 1-λ to float32, our map subtracts in float32 (and so adds up to one)
    assert (class_map - labels).abs().max() <= 2**-24


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_loss_with_smoothing_is_timms(monkeypatch, name):
    """on = 1-ε+ε/K, off = ε/K in timm's target; torch's label_smoothing on ours: the same loss."""
    images, target = batch()
    share, centres = SHARES[2], [9, 20]
    with monkeypatch.context() as patch:
        (_, labels), _ = timm_answers(
            patch, share, centres, images, target, 0.1, **{f"{name}_alpha": 1.0}
        )
    script = Scripted(share, centres * 2)
    _, class_map = ours(name, script, images, target, monkeypatch)
    smooth = class_map * 0.9 + 0.1 / CLASSES
    assert torch.allclose(smooth, labels, rtol=0, atol=2**-23)
    logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(1))
    expected = SoftTargetCrossEntropy()(logits, labels)
    loss = F.cross_entropy(logits, class_map, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_box(height, width, share, seed):
    """Every pixel by the written rule: within half a side of the centre, half of a side whole."""
    rows, columns = draw_box(height, width, share, np.random.default_rng(seed))
    centres = np.random.default_rng(seed)
    for drawn, length in ((rows, height), (columns, width)):
        half = int(length * sqrt(1 - share)) // 2
        centre = centres.integers(length)
        inside = [i for i in range(length) if centre - half <= i < centre + half]
        assert list(range(length))[drawn] == inside


def test_box_against_timm(monkeypatch):
    """The same box wherever the side is even; timm may add one pixel where it is odd."""
    for share in np.linspace(0, 1, 200):
        for centre in (0, 3, 16, 31):
            with monkeypatch.context() as patch:
                patch.setattr(np.random, "randint", Scripted(0, [centre] * 2).randint)
                top, bottom, left, right = timm_mixup.rand_bbox((3, 32, 32), share)
            rows, columns = draw_box(32, 32, share, Scripted(0, [centre] * 2))
            odd = int(32 * sqrt(1 - share)) % 2
            assert (rows.start, columns.start) == (top, left)
            assert 0 <= bottom - rows.stop <= odd and 0 <= right - columns.stop <= odd


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_cutmix_keeps_what_it_says(device, size):
    images, _ = batch(size)
    images = images.to(device)
    before = images.clone()
    seen = set()
    for step in range(20):
        mixed, share = cutmix(images, generator(0, step))
        expected = torch.where(share.bool(), images, images.flip(0))
        assert torch.equal(mixed, expected)
        assert mixed.dtype == torch.uint8 and share.shape == (1, 1, 32, 32)
        assert share.device == images.device
        seen.add(share.sum().item())
    assert len(seen) > 10
    assert torch.equal(images, before)  # the batch itself is left alone


@pytest.mark.parametrize("device", DEVICES)
def test_devices_mix_alike(device):
    images, target = batch()
    for name in ("cutmix", "mixup"):
        function = mix([Term(name)])
        for step in range(10):
            expected = function(images, target, CLASSES, 1, step)
            found = function(images.to(device), target.to(device), CLASSES, 1, step)
            assert torch.equal(found[0].cpu(), expected[0])
            assert torch.allclose(found[1].cpu(), expected[1], rtol=0, atol=2**-24)


# --- how the draws are distributed -----------------------------------------------------------

BETA = {  # closed forms of the cumulative distribution of Beta(a, a)
    0.5: lambda x: 2 / pi * asin(sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
}


@pytest.mark.parametrize("alpha", BETA)
def test_mixup_share_is_beta(alpha):
    n = 4000
    images = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    shares = sorted(mixup(images, generator(7, i, "mix"), alpha=alpha)[1] for i in range(n))
    heights = np.array([BETA[alpha](share) for share in shares])
    steps = np.arange(n + 1) / n
    distance = max(np.abs(heights - steps[1:]).max(), np.abs(heights - steps[:-1]).max())
    assert distance < 1.95 / sqrt(n)  # Kolmogorov-Smirnov at 0.1 %
    wrong = max(abs(BETA[other](shares[n // 8]) - 1 / 8) for other in BETA if other != alpha)
    assert wrong > 1.95 / sqrt(n)  # the test tells the three apart


def test_cutmix_box_is_uniform_and_sized_by_beta():
    """Unclipped boxes: sides as √(1-λ) of Beta(1, 1); every column is a centre as often."""
    n, side = 4000, 64
    sizes, centres = [], np.zeros(side)
    for i in range(n):
        rows, columns = draw_box(side, side, 1 - 0.25**2, generator(i))
        centres[min(columns.stop - side // 8, side - 1)] += columns.stop < side
        sizes.append(rows.stop - rows.start)
    inner = centres[1 : side - side // 8 - 1]
    statistic = ((inner - n / side) ** 2 / (n / side)).sum()
    assert statistic < len(inner) + 4 * sqrt(2 * len(inner))
    assert max(sizes) == side // 4 and min(sizes) == side // 8
    areas = []
    images = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    for i in range(n):
        _, share = cutmix(images, generator(i), alpha=1.0)
        areas.append(share.float().mean().item())
    # E[area] from the rule itself: λ and both centres on a fine grid
    grid = (np.arange(400) + 0.5) / 400
    half = (side * np.sqrt(1 - grid)).astype(int)[:, None] // 2
    centre = np.arange(side)
    length = np.minimum(centre + half, side) - np.maximum(centre - half, 0)
    expected = 1 - (length.mean(1) ** 2 / side**2).mean()
    assert np.mean(areas) == pytest.approx(expected, abs=4 * np.std(areas) / sqrt(n))


@pytest.mark.parametrize("mixer", [cutmix, mixup])
def test_p_is_how_often_a_batch_is_mixed(mixer):
    images, _ = batch(2, 4)
    n = 2000
    kept = sum(mixer(images, generator(i), p=0.3)[0] is images for i in range(n))
    assert abs(kept / n - 0.7) < 4 * sqrt(0.21 / n)
    assert all(mixer(images, generator(i), p=0.0) == (images, 1.0) for i in range(20))
    assert all(mixer(images, generator(i), p=1.0)[0] is not images for i in range(200))


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1, 1), (3, 1), (0, 2)])
def test_mixers_are_drawn_by_weight(monkeypatch, weights):
    """With both on and equal, half of the batches are CutMix: timm's switch_prob."""
    counts = {"cutmix": 0, "mixup": 0}

    def counted(name):
        def mixer(images, rng, *, alpha):
            assert alpha == 0.5
            counts[name] += 1
            return images, 1.0

        return mixer

    for name in counts:
        monkeypatch.setitem(mixers.entries, name, counted(name))
    options = {"alpha": 0.5}
    terms = [Term(name, w, options) for name, w in zip(counts, weights, strict=True)]
    function = mix(terms)
    counts.update(cutmix=0, mixup=0)
    n = 3000
    images, target = batch(2, 2)
    for step in range(n):
        function(images, target, CLASSES, 0, step)
    p = weights[0] / sum(weights)
    assert sum(counts.values()) == n
    assert abs(counts["cutmix"] / n - p) <= 4 * sqrt(p * (1 - p) / n)


# --- one function of (seed, step) ------------------------------------------------------------

BOTH = [Term("cutmix", 1.0, {"alpha": 0.5}), Term("mixup", 1.0, {"alpha": 0.5})]


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(1, 8),
    cuts=st.lists(st.integers(0, 8), max_size=3),
    seed=st.integers(0, 2**53),
    step=st.integers(0, 10**6),
    masks=st.booleans(),
)
def test_parts_that_keep_pairs_are_mixed_as_the_whole(pairs, cuts, seed, step, masks):
    size = 2 * pairs
    images, target = batch(size, 9)
    if masks:
        target = images[:, 0].long() % CLASSES
    function = mix(BOTH)
    mixed, class_map = function(images, target, CLASSES, seed, step)
    bounds = sorted({0, pairs, *(min(cut, pairs) for cut in cuts)})
    for first, last in zip(bounds, bounds[1:], strict=False):
        front = torch.arange(first, last)
        part = torch.cat([front, size - 1 - front.flip(0)])
        pixels, labels = function(images[part], target[part], CLASSES, seed, step)
        assert torch.equal(pixels, mixed[part])
        assert torch.equal(labels, class_map[part])


def test_steps_and_seeds_differ():
    images, target = batch()
    function = mix(BOTH)
    results = [function(images, target, CLASSES, *at)[0] for at in [(0, 0), (0, 1), (1, 0)]]
    again = function(images, target, CLASSES, 0, 0)[0]
    assert torch.equal(results[0], again)
    assert not any(torch.equal(results[0], other) for other in results[1:])


def test_masks_are_cut_along_the_box():
    """A mask keeps its own classes outside the box and takes the mirror's inside."""
    images, _ = batch()
    masks = images[:, 0].long() % CLASSES
    masks[:, :4] = -100
    for step in range(10):
        mixed, target = mix([Term("cutmix")])(images, masks, CLASSES, 0, step)
        assert target.shape == (8, 32, 32) and target.dtype == torch.int64
        own = mixed[:, 1:] == images[:, 1:]
        for i in range(8):
            for y, x in [(0, 5), (7, 7), (16, 3), (20, 20), (31, 31)]:
                source = i if own[i, :, y, x].all() else 7 - i
                assert target[i, y, x] == masks[source, y, x]


@pytest.mark.parametrize("form", ["ids", "map"])
def test_masks_are_as_one_way_of_pasting_says(form):
    """Ids and maps, pasted: the same as the mean of two one-hot maps that the box weighs."""
    images, _ = batch()
    masks = images[:, 0].long() % CLASSES
    masks[2:5, 10:] = -100
    target = targets.to_map(masks, CLASSES) if form == "map" else masks
    for step in range(5):
        mixed, found = mix([Term("cutmix")])(images, target, CLASSES, 7, step)
        _, kept = cutmix(images, generator_of(step))
        blend = targets.mix(masks, masks.flip(0), kept.float(), CLASSES)
        assert torch.equal(targets.to_map(found, CLASSES), blend)
        assert targets.is_map(found) == (form == "map")


def generator_of(step):
    """What `mix` with one mixer hands to it."""
    rng = generator(7, step, "mix")
    rng.choice(1, p=[1.0])
    return rng


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_masks_of_an_unmixed_batch_stay_what_they_are(name):
    images, _ = batch()
    masks = images[:, 0].long() % CLASSES
    mixed = [mix([Term(name, 1.0, {"p": 0.3})])(images, masks, CLASSES, 0, i) for i in range(200)]
    untouched = [target is masks for _, target in mixed]
    assert abs(np.mean(untouched) - 0.7) < 4 * sqrt(0.21 / 200)
    assert untouched == [pixels is images for pixels, _ in mixed]


def test_void_under_mixup_leaves_the_share_of_the_other():
    images, _ = batch(2, 4)
    masks = torch.zeros(2, 4, 4, dtype=torch.int64)
    masks[0, 0], masks[:, 1] = -100, -100
    _, class_map = mix([Term("mixup")])(images, masks, CLASSES, 0, 0)
    total = class_map.sum(1)
    assert (total[:, 1] == 0).all() and torch.allclose(total[:, 2:], torch.ones(2, 2, 4))
    assert torch.allclose(total[0, 0] + total[1, 0], torch.ones(4))
    assert (0 < total[0, 0]).all() and (total[0, 0] < 1).all()


def test_masks_are_blended_by_mixup():
    images, _ = batch(2, 4)
    masks = images[:, 0].long() % CLASSES
    _, class_map = mix([Term("mixup")])(images, masks, CLASSES, 0, 0)
    share = class_map.gather(1, masks.unsqueeze(1)).squeeze(1)
    differ = masks != masks.flip(0)
    assert share[differ].unique().numel() == 1 and 0 < share[differ][0] < 1
    assert torch.allclose(class_map.sum(1), torch.ones(2, 4, 4))


def test_class_maps_may_be_mixed_again():
    images, target = batch()
    function = mix([Term("cutmix")])
    once = function(images, target, CLASSES, 0, 3)[1]
    assert torch.equal(function(images, F.one_hot(target, CLASSES).float(), CLASSES, 0, 3)[1], once)


@pytest.mark.parametrize("terms", [None, ()])
def test_no_mixer_changes_nothing(terms):
    images, target = batch()
    found = mix(terms)(images, target, CLASSES, 0, 0)
    assert found[0] is images and found[1] is target


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([Term("cutmix", 1.0, {"alpha": 0.0})], "cutmix: alpha is 0.0; .*leave cutmix out"),
        ([Term("mixup", 1.0, {"alpha": -1.0})], "mixup: alpha is -1.0"),
        ([Term("mixup", 1.0, {"alpha": float("nan")})], "alpha is nan"),
        ([Term("cutmix", 1.0, {"p": 1.5})], "cutmix: p is 1.5; use 0 to 1"),
        ([Term("mixup", 1.0, {"p": -0.5})], "mixup: p is -0.5"),
        ([Term("cutmix", 0.0), Term("mixup", 0.0)], "every weight is 0"),
        ([Term("cutmixx")], "did you mean 'cutmix'"),
    ],
)
def test_bad_options_answer_in_one_line_at_once(terms, message):
    with pytest.raises(UserError, match=message) as caught:
        mix(terms)
    assert "\n" not in str(caught.value)

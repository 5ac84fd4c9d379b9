"""CutMix and Mixup against timm's: the same images and targets for the same draws."""

from math import sqrt

import numpy as np
import pytest
import torch
from data.oracle import happens, same_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.randomness import generator
from vision_tutorial.core.registry import mixers
from vision_tutorial.data import mix as module
from vision_tutorial.data.augmentation.operation import RandomStream
from vision_tutorial.data.mix import Mix, cutmix, mixup
from vision_tutorial.data.pipeline import part
from vision_tutorial.recipe.grammar import Term

CLASSES = 10
# Sides of the box that are even: on odd ones versions of timm differ by a pixel.
SHARES = [1 - ((side + 0.5) / 32) ** 2 for side in (0, 2, 8, 14, 22, 30, 26, 6)]
CENTRES = [[16, 16], [0, 31], [5, 27], [9, 1], [31, 31], [12, 20], [3, 3], [8, 30]]


def mix(*names, **options) -> Mix:
    return Mix([Term(name, 1.0, options) for name in names])


BOTH = mix("cutmix", "mixup", alpha=0.5)


def batch(size=8, side=32):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), generator=draw, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (size,), generator=draw)


def items(size):
    order = np.random.default_rng(0).permutation(10 * size)[:size]
    return torch.from_numpy(np.stack([np.full(size, 3), order], 1))


def dense(images):
    """Class ids for each pixel, some of them void."""
    masks = images[:, 0].long() % CLASSES
    masks[:, 5] = -100
    return masks


class Scripted:
    """Answers by a script, as NumPy's generator and as its old global one."""

    def __init__(self, share, centres=()):
        self.share, self.centres = share, list(centres)

    def random(self):
        return 0.0

    def choice(self, n, p):
        return 0

    def beta(self, a, b):
        return self.share

    def integers(self, high):
        return self.centres.pop(0)

    def randint(self, low, high, size=None):
        return self.centres.pop(0)


def collated(timm, images, target):
    return timm([(image, int(label)) for image, label in zip(images.numpy(), target, strict=True)])


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
@pytest.mark.parametrize("share", SHARES[:4])
def test_a_batch_is_timms(monkeypatch, name, share):
    """Images, targets, and the loss with smoothing: on = 1-ε+ε/K and off = ε/K in timm's target."""
    images, target = batch()
    for centres in CENTRES[:3]:
        options = {"mixup_alpha": 0.0, "num_classes": CLASSES, f"{name}_alpha": 1.0}
        with monkeypatch.context() as patch:
            script = Scripted(share, centres * 2)
            patch.setattr(np.random, "beta", script.beta)
            patch.setattr(np.random, "randint", script.randint)
            plain = timm_mixup.FastCollateMixup(label_smoothing=0.0, **options)
            pixels, labels = collated(plain, images, target)
            smooth = timm_mixup.FastCollateMixup(label_smoothing=0.1, **options)
            script.centres = list(centres)
            _, smoothed = collated(smooth, images, target)
        script = Scripted(share, centres * 2)  # once for the probe, once for the batch
        with monkeypatch.context() as patch:
            patch.setattr(module, "generator", lambda *_, script=script: script)
            mixed, class_map = mix(name)(images, target, CLASSES, 0, 0)
        assert torch.equal(mixed, pixels) and mixed.dtype == torch.uint8
        # timm rounds 1-λ to float32, our map subtracts in float32 (and so adds up to one)
        assert (class_map - labels).abs().max() <= (0 if name == "cutmix" else 2**-24)
        logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(1))
        loss = F.cross_entropy(logits, class_map, label_smoothing=0.1)
        assert loss.item() == pytest.approx(SoftTargetCrossEntropy()(logits, smoothed).item(), 1e-6)


@pytest.mark.parametrize("mode", ["elem", "pair"])
@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_images_of_their_own_shares_are_timms(monkeypatch, mode, name):
    images, target = batch()
    count = 8 if mode == "elem" else 4
    shares, centres = np.array(SHARES[:count]), np.array(CENTRES[:count])
    options = {"mode": mode, "label_smoothing": 0.0, "num_classes": CLASSES}
    timm = timm_mixup.FastCollateMixup(1.0, 1.0, **options)
    timm._params_per_elem = lambda n: (shares.astype(np.float32), np.full(count, name == "cutmix"))
    script = Scripted(0, centres.ravel().tolist())
    monkeypatch.setattr(np.random, "randint", script.randint)
    pixels, labels = collated(timm, images.clone(), target)
    if mode == "pair":
        shares, centres = (np.concatenate([one, one[::-1]]) for one in (shares, centres))
    monkeypatch.setattr(module, "beta", lambda draws, alpha: shares.copy())
    numbers = np.stack([np.zeros(8), np.zeros(8), *(centres.T + 0.5) / 32], 1)
    monkeypatch.setattr(RandomStream, "__call__", lambda self, count, block=0: numbers)
    mixed, class_map = mix(name, mode=mode)(images, target, CLASSES, 0, 0, items(8))
    assert torch.equal(mixed, pixels)
    assert (class_map - labels).abs().max() <= 2**-23


# --- how the draws are distributed -----------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_shares_are_numpys_beta(alpha):
    stream = RandomStream(np.stack([np.zeros(20_000, int), np.arange(20_000)], 1), 1)
    ours = module.beta(stream, np.full(20_000, alpha))
    theirs = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    assert same_distribution(ours, theirs)
    assert abs(np.corrcoef(ours[:-1], ours[1:])[0, 1]) < 5 / sqrt(20_000)
    images = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    of_batches = [mixup(images, generator(7, i), alpha=alpha)[1] for i in range(1000)]
    assert same_distribution(np.array(of_batches), theirs)


@pytest.mark.parametrize("mixer", [cutmix, mixup])
def test_p_is_how_often_a_batch_is_mixed(mixer):
    images, _ = batch(2, 4)
    for p in (0.0, 0.3, 1.0):
        assert happens([mixer(images, generator(i), p=p)[0] is not images for i in range(400)], p)


def test_mixers_are_drawn_by_weight(monkeypatch):
    drawn = []
    for name in ("cutmix", "mixup"):
        mixer = lambda images, rng, name=name: (drawn.append(name) or images, 1.0)  # noqa: E731
        monkeypatch.setitem(mixers.entries, name, mixer)
    images, target = batch(2, 2)
    function = Mix([Term("cutmix", 3), Term("mixup", 1)])
    for step in range(400):
        function(images, target, CLASSES, 0, step)
    assert happens(np.array(drawn[2:]) == "cutmix", 0.75)  # behind the two probes


def test_each_mixer_gets_its_share_of_the_images():
    images = torch.zeros(4000, 1, 4, 4, dtype=torch.uint8)
    images[2000:] = 200
    terms = [Term("cutmix", 1.0, {"mode": "elem", "p": 0.5}), Term("mixup", 3.0, {"mode": "elem"})]
    mixed, _ = Mix(terms)(images, torch.zeros(4000).long(), 2, 1, 0, items(4000))
    blended = ((mixed != 0) & (mixed != 200)).flatten(1).any(1).float().mean()
    assert abs(blended - 0.75) < 0.03  # a blend that rounds to one of the two is rare
    pasted = ((mixed != images) & ((mixed == 0) | (mixed == 200))).flatten(1).any(1).float().mean()
    assert pasted < 0.13  # half of a quarter, by p


# --- one function of (seed, step), or of each image's address --------------------------------


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(1, 8),
    cuts=st.lists(st.integers(0, 8), max_size=3),
    at=st.tuples(st.integers(0, 2**53), st.integers(0, 10**6)),
    masks=st.booleans(),
)
def test_parts_that_keep_pairs_are_mixed_as_the_whole(pairs, cuts, at, masks):
    size = 2 * pairs
    images, target = batch(size, 9)
    target = dense(images) if masks else target
    mixed, class_map = BOTH(images, target, CLASSES, *at)
    bounds = sorted({0, pairs, *(min(cut, pairs) for cut in cuts)})
    for first, last in zip(bounds, bounds[1:], strict=False):
        front = torch.arange(first, last)
        rows = torch.cat([front, size - 1 - front.flip(0)])
        pixels, labels = BOTH(images[rows], target[rows], CLASSES, *at)
        assert torch.equal(pixels, mixed[rows]) and torch.equal(labels, class_map[rows])


@pytest.mark.parametrize("mode", ["elem", "pair"])
def test_parts_of_images_of_their_own_shares_are_mixed_as_the_whole(mode):
    images, target = batch(16)
    ours = mix("cutmix", "mixup", mode=mode)
    mixed, class_map = ours(images, target, CLASSES, 5, 0, items(16))
    for i in range(4):
        rows = part(16, i, 4)
        pixels, labels = ours(images[rows], target[rows], CLASSES, 5, 7, items(16)[rows])
        assert torch.equal(pixels, mixed[rows]) and torch.equal(labels, class_map[rows])
    _, labels = mix("mixup", mode=mode)(images, torch.arange(16), 16, 5, 0, items(16))
    assert len(labels.diagonal().unique()) == (8 if mode == "pair" else 16)


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
def test_masks_are_cut_along_the_box(mode):
    """A mask keeps its own classes outside the box, takes the mirror's inside, stays class ids."""
    images, _ = batch()
    masks = dense(images)
    for seed in range(5):
        mixed, target = mix("cutmix", mode=mode)(images, masks, CLASSES, seed, 0, items(8))
        own, mirror = ((mixed == which).all(1) for which in (images, images.flip(0)))
        assert (own & ~mirror).any() and (mirror & ~own).any() and target.dtype == torch.int64
        assert torch.equal(target[own & ~mirror], masks[own & ~mirror])
        assert torch.equal(target[mirror & ~own], masks.flip(0)[mirror & ~own])


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_masks_of_an_unmixed_batch_stay_what_they_are(name):
    images, _ = batch()
    masks = dense(images)
    mixed = [mix(name, p=0.3)(images, masks, CLASSES, 0, i) for i in range(50)]
    untouched = [target is masks for _, target in mixed]
    assert any(untouched) and untouched == [pixels is images for pixels, _ in mixed]


def test_masks_are_blended_by_mixup_and_void_leaves_the_share_of_the_other():
    images, _ = batch(2, 4)
    masks = torch.zeros(2, 4, 4, dtype=torch.int64)
    masks[0, 0], masks[:, 1], masks[1, 3] = -100, -100, 1
    _, class_map = mix("mixup")(images, masks, CLASSES, 0, 0)
    total = class_map.sum(1)
    assert (total[:, 1] == 0).all() and torch.allclose(total[:, 2:], torch.ones(2, 2, 4))
    assert torch.allclose(total[0, 0] + total[1, 0], torch.ones(4))
    assert (0 < total[0, 0]).all() and (total[0, 0] < 1).all()


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([Term("cutmix", 1.0, {"alpha": 0.0})], r"cutmix: alpha is 0.0; a number in \(0, inf\)"),
        ([Term("mixup", 1.0, {"alpha": float("nan")})], "alpha is nan"),
        ([Term("cutmix", 1.0, {"p": 1.5})], r"cutmix: p is 1.5; a number in \[0, 1\]"),
        ([Term("cutmix", 0.0), Term("mixup", 0.0)], "every weight is 0"),
        ([Term("cutmixx")], "did you mean 'cutmix'"),
        (
            [Term("cutmix", 1.0, {"mode": "elem"}), Term("mixup", 1.0, {"mode": "pair"})],
            "mix: modes elem and pair do not go together",
        ),
    ],
)
def test_bad_options_answer_in_one_line_at_once(terms, message):
    with pytest.raises(UserError, match=message) as caught:
        Mix(terms)
    assert "\n" not in str(caught.value)

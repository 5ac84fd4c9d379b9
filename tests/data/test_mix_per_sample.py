"""Per-image CutMix and Mixup: timm's images and targets for the same shares and boxes."""

import math

import numpy as np
import pytest
import torch
from data.test_sampling import draws, same_distribution
from timm.data import mixup as timm_mixup

from vision_tutorial.core.errors import UserError
from vision_tutorial.data import mix as mixing
from vision_tutorial.data.mix import mix
from vision_tutorial.recipe.grammar import Term

CLASSES = 10
# Sides of the box that are even: on odd ones versions of timm differ by a pixel.
SHARES = np.array([1 - ((side + 0.5) / 32) ** 2 for side in (0, 2, 8, 14, 22, 30, 26, 6)])


def batch(size=8, side=32):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), generator=draw, dtype=torch.uint8)
    items = torch.stack([torch.full((size,), 3), torch.randperm(1000, generator=draw)[:size]], 1)
    return images, torch.randint(0, CLASSES, (size,), generator=draw), items


def terms(mode, **weights):
    return [Term(name, weight, {"mode": mode}) for name, weight in weights.items()]


@pytest.mark.parametrize("mode", ["elem", "pair"])
@pytest.mark.parametrize("cuts", [True, False])
def test_images_are_timms(monkeypatch, mode, cuts):
    images, target, items = batch()
    shares = SHARES if mode == "elem" else np.concatenate([SHARES[:4], SHARES[:4][::-1]])
    centres = np.array([[16, 16], [0, 31], [5, 27], [9, 1], [31, 31], [12, 20], [3, 3], [8, 30]])
    if mode == "pair":
        centres = np.concatenate([centres[:4], centres[:4][::-1]])
    timm = timm_mixup.FastCollateMixup(
        1.0, 1.0, mode=mode, label_smoothing=0.0, num_classes=CLASSES
    )
    count = len(images) if mode == "elem" else len(images) // 2
    flags = np.full(count, cuts)
    timm._params_per_elem = lambda n: (shares[:count].astype(np.float32), flags)
    script = iter(centres[:count].ravel().tolist())
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: next(script))
    pairs = [
        (image, int(label)) for image, label in zip(images.clone().numpy(), target, strict=True)
    ]
    pixels, labels = timm(pairs)

    monkeypatch.setattr(mixing, "beta", lambda draws, alpha: shares.copy())
    numbers = np.stack([np.zeros(8), np.zeros(8), *(centres.T + 0.5) / 32], 1)
    monkeypatch.setattr(mixing.RandomStream, "__call__", lambda self, count, block=0: numbers)
    ours = mix(terms(mode, **{"cutmix" if cuts else "mixup": 1.0}))
    mixed, class_map = ours(images, target, CLASSES, 0, 0, items)
    assert torch.equal(mixed, pixels)
    assert (class_map - labels).abs().max() <= 2**-23


@pytest.mark.parametrize("mode", ["elem", "pair"])
def test_parts_are_mixed_as_the_whole(mode):
    from vision_tutorial.data.loader import RawBatch

    images, target, items = batch(16)
    ours = mix(terms(mode, cutmix=1.0, mixup=1.0))
    whole = ours(images, target, CLASSES, 5, 0, items)
    for parts in (2, 4):
        pieces = RawBatch(images, target, items).parts(parts)
        made = [ours(p.images, p.target, CLASSES, 5, 7, p.items) for p in pieces]
        order = [items.tolist().index(row) for p in pieces for row in p.items.tolist()]
        for i in (0, 1):
            assert torch.equal(torch.cat([m[i] for m in made]), whole[i][order])


def test_mirrors_share_in_pairs_only():
    images, target, items = batch(16)
    for mode, alike in (("pair", True), ("elem", False)):
        _, labels = mix(terms(mode, mixup=1.0))(images, torch.arange(16), 16, 5, 0, items)
        own = labels.diagonal()
        assert torch.equal(own, own.flip(0)) == alike
        assert len(own.unique()) == (8 if alike else 16)


def test_each_mixer_gets_its_share_of_the_images():
    images = torch.zeros(4000, 1, 4, 4, dtype=torch.uint8)
    images[2000:] = 200
    items = torch.from_numpy(draws(4000).items)
    ours = mix(
        [Term("cutmix", 1.0, {"mode": "elem", "p": 0.5}), Term("mixup", 3.0, {"mode": "elem"})]
    )
    mixed, _ = ours(images, torch.zeros(4000, dtype=torch.int64), 2, 1, 0, items)
    blended = ((mixed != 0) & (mixed != 200)).flatten(1).any(1).float().mean()
    assert abs(blended - 0.75) < 0.03  # a blend that rounds to one of the two is rare


@pytest.mark.parametrize("mode", ["elem", "pair"])
def test_masks_are_mixed_where_the_pixels_are(mode):
    images, _, items = batch()
    masks = torch.randint(0, CLASSES, (8, 32, 32), generator=torch.Generator().manual_seed(1))
    masks[:, 5] = -100
    mixed, target = mix(terms(mode, cutmix=1.0))(images, masks, CLASSES, 2, 0, items)
    mirror = (mixed == images.flip(0)).all(1) & (mixed != images).any(1)
    own = (mixed == images).all(1) & (mixed != images.flip(0)).any(1)
    assert mirror.any() and own.any() and target.dtype == torch.int64
    assert torch.equal(target[mirror], masks.flip(0)[mirror])
    assert torch.equal(target[own], masks[own])


def test_masks_become_maps_beside_mixup():
    images, _, items = batch()
    masks = torch.randint(0, CLASSES, (8, 32, 32), generator=torch.Generator().manual_seed(1))
    mixed, class_map = mix(terms("elem", cutmix=1.0, mixup=1.0))(
        images, masks, CLASSES, 2, 0, items
    )
    assert class_map.shape == (8, CLASSES, 32, 32)
    assert torch.allclose(class_map.sum(1), torch.ones(8, 32, 32))
    mirror = (mixed == images.flip(0)).all(1) & (mixed != images).any(1)
    cut = mirror & (class_map.amax(1) == 1) & (class_map.argmax(1) != masks)
    assert cut.any() and torch.equal(class_map.argmax(1)[cut], masks.flip(0)[cut])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_beta_is_numpys(alpha):
    ours = mixing.beta(draws(20_000), np.full(20_000, alpha))
    theirs = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    assert same_distribution(ours, theirs)
    assert abs(np.corrcoef(ours[:-1], ours[1:])[0, 1]) < 5 / math.sqrt(20_000)


def test_modes_do_not_go_together():
    with pytest.raises(UserError, match="mix: modes elem and pair do not go together"):
        mix([Term("cutmix", 1.0, {"mode": "elem"}), Term("mixup", 1.0, {"mode": "pair"})])
    with pytest.raises(UserError, match="no mode of cutmix called 'element'; did you mean 'elem'"):
        mix([Term("cutmix", 1.0, {"mode": "element"})])

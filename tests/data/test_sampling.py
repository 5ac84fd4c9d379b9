"""What the batched path draws: timm's distributions, timm's images, and nothing but addresses."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from data.oracle import (
    ORIGINAL,
    chi2_fits,
    drawn,
    entry,
    happens,
    same_distribution,
)
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as tv

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments
from vision_tutorial.data.augmentation.operation import Op, RandomStream, batched_form, operation
from vision_tutorial.data.executors import cpu

MANY = 20_000


def draws(count, key=1, epoch=0):
    return RandomStream(np.stack([np.full(count, epoch), np.arange(count)], 1), key)


def sampler(name, **options):
    """Samples the entry's operations, or the boxes that it erases."""
    made = operation(entry(name, **options))
    return None if made.single else made.sample


def carried_out(images, slots):
    return cpu.apply(images, np.arange(len(images)), slots)


def test_every_other_entry_has_a_batched_form():
    without = {"aug_mix", "gaussian_blur", "random_scale", "equalize_luma", "clahe"}
    assert {name for name in augments if not sampler(name)} == without
    for given in (entry("color_jitter", strength=[0.1] * 4), entry("auto_augment", policy="3a")):
        with pytest.raises(UserError, match=f"augment: {given.name} .* has no batched form. Use"):
            batched_form([given], seed=0)


# --- draws are functions of addresses ----------------------------------------------------------

CHAIN = [
    entry("random_resized_crop", size=24),
    *map(entry, ("hflip", "color_jitter", "auto_augment", "rand_augment", "trivial_augment")),
]


def whole_chain(seed=3):
    return batched_form(CHAIN, seed)


def test_an_image_is_the_same_in_any_company():
    images = drawn(np.random.default_rng(0), 60, 32, 32)
    items = np.stack([np.full(60, 4), np.arange(60)], 1)

    def made(chosen, items=items, seed=3):
        return cpu.apply(images, chosen, whole_chain(seed).ops(items[chosen], (32, 32)))

    together = made(np.arange(60))
    some = np.random.default_rng(1).permutation(60)
    assert np.array_equal(made(some), together[some])
    assert np.array_equal(made(some[:1]), together[some[:1]])
    assert not np.array_equal(made(np.arange(60), items + [1, 0]), together)
    assert not np.array_equal(made(np.arange(60), seed=4), together)


# --- distributions -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (9, 300)])
def test_crops_are_timms(size):
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    (slot,) = sampler("random_resized_crop")(draws(MANY), size)
    ours = slot.args[:, :4]
    random.seed(0)
    image = Image.new("RGB", size[::-1])
    get = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([get(image, scale, ratio) for _ in range(MANY)], float)
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all() and (ours[:, 1] + ours[:, 3] <= size[1]).all()
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2],
    ):
        assert same_distribution(measure(ours), measure(theirs))
    assert chi2_fits(np.bincount(slot.args[:, 4].astype(int), minlength=3)[1:], [1, 1])


def test_crops_of_a_pixel_and_of_every_place():
    (slot,) = sampler("random_resized_crop", scale=[1e-6, 1e-5])(draws(50), (8, 8))
    assert (slot.args[:, 2:4] == 1).all()
    (slot,) = sampler("random_crop")(draws(MANY), (32, 32))
    for axis in (0, 1):
        assert chi2_fits(np.bincount(slot.args[:, axis].astype(int), minlength=9), np.ones(9))


def test_operations_of_the_original_policy_are_as_frequent_as_the_policy_says():
    slots = sampler("auto_augment")(draws(MANY), (32, 32))
    counts = Counter(np.concatenate([slot.codes for slot in slots]).tolist())
    assert set(counts) == set(map(int, ORIGINAL)) | {Op.NONE}
    chi2 = sum((counts[op] - MANY * p) ** 2 / (MANY * p) for op, p in ORIGINAL.items())
    assert chi2 < 9 + 5 * math.sqrt(18)
    assert happens(np.all([slot.codes == Op.NONE for slot in slots], 0), 0.15)
    turned = np.concatenate([slot.args[(slot.codes == Op.AFFINE)] for slot in slots])
    assert chi2_fits(np.bincount(turned[:, 6].astype(int), minlength=3)[1:], [1, 1])
    assert chi2_fits(np.bincount((turned[:, 1] > 0).astype(int)), [1, 1])


@pytest.mark.parametrize("policy", ["v0", "cifar10"])
def test_every_pair_of_a_policy_is_equally_likely(policy):
    """Counted by what happens: the first operation of each pair, over all pairs that have it."""
    if policy == "cifar10":
        pairs = tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10).policies
    else:
        made = timm_policies.auto_augment_policy(policy, {})
        pairs = [[(op.name, op.prob) for op in pair] for pair in made]
    slots = sampler("auto_augment", policy=policy)(draws(MANY), (32, 32))
    for place, slot in enumerate(slots):
        expected, found = Counter(), Counter(slot.codes.tolist())
        for pair in pairs:
            name, p, *_ = pair[place]
            expected[code_of(name)] += p / len(pairs)
            expected[Op.NONE] += (1 - p) / len(pairs)
        expected = {code: p for code, p in expected.items() if p > 0}
        assert set(found) <= set(map(int, expected))
        assert chi2_fits([found[code] for code in expected], list(expected.values()))


def code_of(name):
    for start, code in {
        "Posterize": Op.POSTERIZE,
        "SolarizeAdd": Op.SOLARIZE_ADD,
        "Solarize": Op.SOLARIZE,
        "Shear": Op.AFFINE,
        "Translate": Op.AFFINE,
        "Rotate": Op.AFFINE,
        "Invert": Op.SOLARIZE,
    }.items():
        if name.startswith(start):
            return code
    return Op[name.upper()]


def test_rand_augment_chooses_evenly_and_spreads_as_timm_does():
    slots = sampler("rand_augment", p=1.0, interpolation="bilinear")(draws(MANY), (32, 32))
    names = timm_policies.rand_augment_choices("all", True)
    expected = Counter(code_of(name.removesuffix("Increasing")) for name in names)
    for slot in slots:
        found = Counter(slot.codes.tolist())
        assert chi2_fits([found[code] for code in expected], list(expected.values()))
        assert (slot.args[slot.codes == Op.AFFINE, 6] == 1).all()
    ours = slots[0].args[slots[0].codes == Op.SOLARIZE_ADD, 0]
    random.seed(0)
    level = timm_policies._solarize_add_level_to_arg
    theirs = [level(max(0.0, min(random.gauss(9, 0.5), 10)), None) for _ in range(MANY)]
    theirs = [value[0] if isinstance(value, tuple) else value for value in theirs]
    assert same_distribution(ours, theirs, bins=10)


def test_an_infinite_spread_is_uniform():
    options = {"p": 1.0, "magnitude": 8, "magnitude_std": None}
    slots = sampler("rand_augment", **options)(draws(MANY), (32, 32))
    added = np.concatenate([s.args[s.codes == Op.SOLARIZE_ADD, 0] for s in slots])
    assert chi2_fits(np.histogram(added, [0, 22, 44, 66, 88])[0], np.ones(4))


def test_weighted_operations_do_not_repeat():
    options = {"operations": "weights", "p": 1.0, "num_ops": 3}
    slots = sampler("rand_augment", **options)(draws(MANY), (32, 32))
    weights = timm_policies.rand_augment_choices("weights")
    expected = Counter()
    for name, weight in weights.items():
        expected[code_of(name.removesuffix("Increasing"))] += weight / sum(weights.values())
    assert happens(slots[0].codes == Op.AFFINE, expected[Op.AFFINE])
    assert np.sum([slot.codes == Op.EQUALIZE for slot in slots], 0).max() == 1


def test_trivial_augment_is_even():
    (slot,) = sampler("trivial_augment")(draws(MANY), (32, 32))
    found = Counter(slot.codes.tolist())
    space = tv.TrivialAugmentWide()._augmentation_space(31)
    expected = Counter(Op.NONE if name == "Identity" else code_of(name) for name in space)
    assert chi2_fits([found[code] for code in expected], list(expected.values()))
    bits = slot.args[slot.codes == Op.POSTERIZE, 0]
    wanted = Counter(space["Posterize"][0].tolist())
    assert chi2_fits([(bits == b).sum() for b in wanted], list(wanted.values()))
    assert (slot.args[slot.codes == Op.AFFINE, 6] == 0).all()


def test_jitter_has_each_factor_once_in_every_order():
    slots = sampler("color_jitter", strength=[0.2, 0.3, 2.0])(draws(MANY), (32, 32))
    orders = Counter(zip(*(slot.codes.tolist() for slot in slots), strict=True))
    assert len(orders) == 6 and chi2_fits(list(orders.values()), np.ones(6))
    spans = {Op.BRIGHTNESS: (0.8, 1.2), Op.CONTRAST: (0.7, 1.3), Op.COLOR: (0.0, 3.0)}
    for op, (low, high) in spans.items():
        values = np.concatenate([slot.args[slot.codes == op, 0] for slot in slots])
        assert chi2_fits(np.histogram(values, 20, (low, high))[0], np.ones(20))
    seldom = sampler("color_jitter", p=0.3)(draws(MANY), (32, 32))
    assert happens(seldom[0].codes > 0, 0.3)


@pytest.mark.parametrize("name", ["hflip", "vflip", "grayscale"])
def test_coins(name):
    for p in (0.0, 0.7, 1.0):
        (slot,) = sampler(name, p=p)(draws(MANY), (4, 4))
        assert happens(slot.codes > 0, p)


def test_turns_are_even_and_as_frequent_as_p_says():
    (slot,) = sampler("rotate", limit=25, p=0.3)(draws(MANY), (20, 30))
    turned = slot.codes == Op.AFFINE
    assert happens(turned, 0.3)
    angles = np.degrees(np.arcsin(slot.args[turned, 1]))
    assert chi2_fits(np.histogram(angles, 20, (-25, 25))[0], np.ones(20))
    assert set(slot.args[:, 6]) == {1.0} and slot.fill == (124, 116, 104)


# --- images: the whole way against timm's own, with the same outcome of every draw -----------


@pytest.mark.parametrize("size", [(32, 32), (47, 33), (20, 61), (30, 20)])
@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
def test_evaluation_images_are_torchvisions(name, size):
    images, mode = drawn(np.random.default_rng(3), 12, *size), tv.InterpolationMode(name)
    theirs = tv.Compose([tv.Resize(36, mode), tv.CenterCrop(32)])
    chain = [entry("resize", size=36, interpolation=name), entry("center_crop", size=32)]
    found = carried_out(images, batched_form(chain, 0).ops(draws(12).items, size))
    for image, ours in zip(images, found, strict=True):
        assert np.array_equal(ours, theirs(Image.fromarray(image)))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("size", [(32, 32), (18, 25), (40, 20)])
def test_padded_crops_are_torchvisions(mode, size):
    images = drawn(np.random.default_rng(4), 12, *size)
    (slot,) = sampler("random_crop", fill=[1, 2, 3], mode=mode)(draws(12), size)
    for image, ours, args in zip(images, carried_out(images, [slot]), slot.args, strict=True):
        fill = (1, 2, 3) if mode == "constant" else 0
        crop = tv.RandomCrop(32, 4, pad_if_needed=True, fill=fill, padding_mode=mode)
        crop.get_params = lambda *_, args=args: (int(args[0]), int(args[1]), 32, 32)
        assert np.array_equal(ours, crop(Image.fromarray(image)))


# --- erasing -----------------------------------------------------------------------------------


def erased(name, count=4000, **options):
    """Which values were overwritten, and with what, of images full of a value nobody draws."""
    images = torch.full((count, 3, 32, 32), 99.0)
    made = batched_form([entry(name, **options)], seed=5)
    made.erase(images, torch.from_numpy(draws(count).items))
    return images != 99, images


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_boxes_are_timms(mode):
    options = {"p": 0.6, "mode": mode, "area": [0.02, 0.4], "aspect": [0.3, 3.0]}
    where, images = erased("random_erasing", **options)
    assert (where == where[:, :1]).all()  # all channels alike
    hit = where[:, 0].flatten(1).any(1)
    assert happens(hit.numpy(), 0.6)
    theirs = RandomErasing(0.6, 0.02, 0.4, 0.3, 3.0, mode, device="cpu")
    random.seed(1)
    other = torch.stack([theirs(torch.full((3, 32, 32), 99.0)) for _ in range(4000)]) != 99
    for measure in (
        sides_down,
        lambda where: where[:, 0].any(1).sum(1),
        lambda where: where[:, 0].any(2).int().argmax(1),
    ):
        assert same_distribution(measure(where[hit]), measure(other[other[:, 0].flatten(1).any(1)]))
    values = images[where]
    if mode == "const":
        assert (values == 0).all()
    else:
        assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.05
    colours = [len(image[mask].unique()) for image, mask in zip(images[:50], where, strict=False)]
    assert max(colours) > 100 if mode == "pixel" else max(colours) <= (3 if mode == "rand" else 1)


def sides_down(where):
    return where[:, 0].any(2).sum(1)


def test_erasing_is_the_same_in_any_company():
    made = batched_form([entry("random_erasing", p=0.9, count=2)], seed=5)
    items = torch.from_numpy(draws(40).items)
    together = made.erase(torch.zeros(40, 3, 16, 16), items)
    order = torch.randperm(40)
    assert torch.equal(made.erase(torch.zeros(40, 3, 16, 16), items[order]), together[order])
    last = torch.zeros(40, 3, 16, 16).to(memory_format=torch.channels_last)
    assert torch.equal(made.erase(last, items), together)


def test_holes_are_square_and_cut_off_at_the_border():
    where, images = erased("cutout", holes=1, size=8)
    assert (images[where] == 0).all()
    heights = sides_down(where)
    # Row 0 … 31 for the centre: 4 from the border are cut to 4 … 7 rows, one more at the bottom.
    wanted = Counter(min(y + 4, 32) - max(y - 4, 0) for y in range(32))
    found = Counter(heights.tolist())
    assert set(found) == set(wanted)
    assert chi2_fits([found[h] for h in wanted], list(wanted.values()))

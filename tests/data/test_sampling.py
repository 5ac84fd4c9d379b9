"""What the batched path draws: timm's distributions, timm's images, and nothing but addresses."""

import inspect
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from data.oracle import NEW_PILLOW, OLD, ORIGINAL
from data.test_compiled import channels_last
from data.test_magnitudes import FILL
from data.test_tensors import drawn
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as tv

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments
from vision_tutorial.data.augmentation.operation import Op, RandomStream, batched_form
from vision_tutorial.data.executors import compiled
from vision_tutorial.recipe.grammar import Choice

NO_BATCHED_FORM = {"aug_mix", "gaussian_blur", "random_scale", "equalize_luma", "clahe"}
MANY = 20_000


def draws(count, key=1, epoch=0):
    return RandomStream(np.stack([np.full(count, epoch), np.arange(count)], 1), key)


def options_of(name, **changed):
    """The entry's own defaults, and what the test changes."""
    parameters = inspect.signature(augments.entries[name]).parameters
    return {p.name: p.default for p in parameters.values()} | changed


def drawer(name, **changed):
    made = augments.entries[name](**options_of(name, **changed))
    return made.sample or made.sample_boxes


def program(chain, seed):
    return batched_form([Choice(name, options) for name, options in chain], seed)


def chi2_fits(found, wanted):
    """Counts against expected ones: within five deviations of chi-square's mean."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    wanted = wanted * found.sum() / wanted.sum()
    freedom = len(found) - 1
    chi2 = ((found - wanted) ** 2 / wanted).sum()
    return abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def same_distribution(ours, theirs, bins=25):
    """Two samples of one number each: a two-sample chi-square over the second's quantiles."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    inner = np.unique(np.quantile(theirs, np.linspace(0, 1, bins + 1)))[1:-1]
    edges = [-np.inf, *inner, np.inf]
    a, b = np.histogram(ours, edges)[0], np.histogram(theirs, edges)[0]
    share = math.sqrt(len(theirs) / len(ours))
    chi2 = ((a * share - b / share) ** 2 / np.maximum(a + b, 1)).sum()
    return chi2 < len(a) + 5 * math.sqrt(2 * len(a))


def test_every_other_entry_has_a_batched_form():
    assert {name for name in augments if not drawer(name)} == NO_BATCHED_FORM


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("color_jitter", {"strength": [0.1, 0.1, 0.1, 0.1]}),
        ("auto_augment", {"policy": "3a"}),
        ("rand_augment", {"operations": "3a"}),
        ("rand_augment", {"operations": "3aw"}),
        ("aug_mix", {}),
    ],
)
def test_what_has_no_batched_form_says_so(name, options):
    with pytest.raises(UserError, match=f"augment: {name} .* has no batched form. Use data.path"):
        program([(name, options_of(name, **options))], seed=0)


# --- draws are functions of addresses ----------------------------------------------------------

CHAIN = [
    ("random_resized_crop", {"size": 24}),
    ("hflip", {}),
    ("color_jitter", {}),
    ("auto_augment", {}),
    ("rand_augment", {}),
    ("trivial_augment", {}),
]


def whole_chain(seed=3):
    return program([(name, options_of(name, **changed)) for name, changed in CHAIN], seed)


def test_a_image_is_the_same_in_any_company():
    images = channels_last(drawn(np.random.default_rng(0), 60, 32, 32))
    made, items = whole_chain(), np.stack([np.full(60, 4), np.arange(60)], 1)

    def pictures(chosen):
        return compiled.apply(images, chosen, made.ops(items[chosen], (32, 32)))

    together = pictures(np.arange(60))
    some = np.random.default_rng(1).permutation(60)
    assert np.array_equal(pictures(some), together[some])
    assert np.array_equal(pictures(some[:1]), together[some[:1]])
    later = made.ops(items + [1, 0], (32, 32))
    assert not np.array_equal(compiled.apply(images, np.arange(60), later), together)
    other = whole_chain(seed=4).ops(items, (32, 32))
    assert not np.array_equal(compiled.apply(images, np.arange(60), other), together)


def test_the_same_entry_twice_draws_twice():
    twice = program([("hflip", options_of("hflip"))] * 2, seed=0)
    first, second = twice.ops(draws(400).items, (8, 8))
    both = Counter(zip(first.codes > 0, second.codes > 0, strict=True))
    assert min(both.values()) > 60


# --- distributions -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (9, 300)])
def test_crops_are_timms(size):
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    (slot,) = drawer("random_resized_crop")(draws(MANY), size)
    ours = slot.args[:, :4]
    random.seed(0)
    picture = Image.new("RGB", size[::-1])
    get = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([get(picture, scale, ratio) for _ in range(MANY)], float)
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


def test_a_pixel_is_the_smallest_crop():
    (slot,) = drawer("random_resized_crop", scale=[1e-6, 1e-5])(draws(50), (8, 8))
    assert (slot.args[:, 2:4] == 1).all()


def test_random_crop_takes_every_place_equally():
    (slot,) = drawer("random_crop")(draws(MANY), (32, 32))
    for axis in (0, 1):
        assert chi2_fits(np.bincount(slot.args[:, axis].astype(int), minlength=9), np.ones(9))


def test_operations_of_the_original_policy_are_as_frequent_as_the_policy_says():
    slots = drawer("auto_augment")(draws(MANY), (32, 32))
    counts = Counter(np.concatenate([slot.codes for slot in slots]).tolist())
    expected = {op: MANY * share for op, share in ORIGINAL.items()}
    assert set(counts) == set(map(int, ORIGINAL)) | {Op.NONE}
    chi2 = sum((counts[op] - n) ** 2 / n for op, n in expected.items())
    assert chi2 < 9 + 5 * math.sqrt(18)
    untouched = np.mean([(slot.codes == Op.NONE) for slot in slots], 0) == 1
    assert abs(untouched.mean() - 0.150) < 5 * math.sqrt(0.15 * 0.85 / MANY)
    turned = np.concatenate([slot.args[(slot.codes == Op.AFFINE)] for slot in slots])
    assert chi2_fits(np.bincount(turned[:, 6].astype(int), minlength=3)[1:], [1, 1])
    assert chi2_fits(np.bincount((turned[:, 1] > 0).astype(int)), [1, 1])


@pytest.mark.parametrize("policy", ["originalr", "v0", "v0r", "cifar10"])
def test_every_pair_of_a_policy_is_equally_likely(policy):
    """Counted by what happens: the first operation of each pair, over all pairs that have it."""
    slots = drawer("auto_augment", policy=policy)(draws(MANY), (32, 32))
    counts = [Counter(slot.codes.tolist()) for slot in slots]
    if policy == "cifar10":
        pairs = tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10).policies
        pairs = [[(name, p) for name, p, _ in pair] for pair in pairs]
    else:
        made = timm_policies.auto_augment_policy(policy, {})
        pairs = [[(op.name, op.prob) for op in pair] for pair in made]
    for place, found in enumerate(counts):
        expected = Counter()
        for pair in pairs:
            name, p = pair[place]
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
    }.items():
        if name.startswith(start):
            return code
    return Op[name.upper()]


def test_rand_augment_chooses_evenly_and_spreads_as_timm_does():
    slots = drawer("rand_augment", p=1.0, interpolation="bilinear")(draws(MANY), (32, 32))
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
    slots = drawer("rand_augment", **options)(draws(MANY), (32, 32))
    added = np.concatenate([s.args[s.codes == Op.SOLARIZE_ADD, 0] for s in slots])
    assert chi2_fits(np.histogram(added, [0, 22, 44, 66, 88])[0], np.ones(4))


def test_weighted_operations_do_not_repeat():
    options = {"operations": "weights", "p": 1.0, "num_ops": 3}
    slots = drawer("rand_augment", **options)(draws(MANY), (32, 32))
    weights = timm_policies.rand_augment_choices("weights")
    total = sum(weights.values())
    geometric = (
        sum(
            w
            for name, w in weights.items()
            if code_of(name.removesuffix("Increasing")) == Op.AFFINE
        )
        / total
    )
    share = (slots[0].codes == Op.AFFINE).mean()
    assert abs(share - geometric) < 5 * math.sqrt(geometric * (1 - geometric) / MANY)
    plain = [np.where(s.codes == Op.EQUALIZE, 1, 0) for s in slots]
    assert np.sum(plain, 0).max() == 1


def test_trivial_augment_is_even():
    (slot,) = drawer("trivial_augment")(draws(MANY), (32, 32))
    found = Counter(slot.codes.tolist())
    space = tv.TrivialAugmentWide()._augmentation_space(31)
    expected = Counter(Op.NONE if name == "Identity" else code_of(name) for name in space)
    assert chi2_fits([found[code] for code in expected], list(expected.values()))
    bits = slot.args[slot.codes == Op.POSTERIZE, 0]
    wanted = Counter(space["Posterize"][0].tolist())
    assert chi2_fits([(bits == b).sum() for b in wanted], list(wanted.values()))
    assert (slot.args[slot.codes == Op.AFFINE, 6] == 0).all()


def test_jitter_has_each_factor_once_in_every_order():
    slots = drawer("color_jitter", strength=[0.2, 0.3, 2.0])(draws(MANY), (32, 32))
    orders = Counter(zip(*(slot.codes.tolist() for slot in slots), strict=True))
    assert len(orders) == 6 and chi2_fits(list(orders.values()), np.ones(6))
    spans = {Op.BRIGHTNESS: (0.8, 1.2), Op.CONTRAST: (0.7, 1.3), Op.COLOR: (0.0, 3.0)}
    for op, (low, high) in spans.items():
        values = np.concatenate([slot.args[slot.codes == op, 0] for slot in slots])
        assert chi2_fits(np.histogram(values, 20, (low, high))[0], np.ones(20))
    seldom = drawer("color_jitter", p=0.3)(draws(MANY), (32, 32))
    assert abs((seldom[0].codes > 0).mean() - 0.3) < 5 * math.sqrt(0.21 / MANY)


@pytest.mark.parametrize("name", ["hflip", "vflip", "grayscale"])
def test_coins(name):
    for p in (0.0, 0.7, 1.0):
        (slot,) = drawer(name, p=p)(draws(MANY), (4, 4))
        assert abs((slot.codes > 0).mean() - p) <= 5 * math.sqrt(p * (1 - p) / MANY)


def test_turns_are_even_and_as_frequent_as_p_says():
    (slot,) = drawer("rotate", limit=25, p=0.3)(draws(MANY), (20, 30))
    turned = slot.codes == Op.AFFINE
    assert abs(turned.mean() - 0.3) < 5 * math.sqrt(0.21 / MANY)
    angles = np.degrees(np.arcsin(slot.args[turned, 1]))
    assert chi2_fits(np.histogram(angles, 20, (-25, 25))[0], np.ones(20))
    assert set(slot.args[:, 6]) == {1.0} and slot.fill == (124, 116, 104)


def test_brightness_and_contrast_are_even_and_apart():
    (slot,) = drawer("brightness_contrast", limit=0.2, p=0.5)(draws(MANY), (4, 4))
    changed = slot.codes == Op.LINEAR
    assert abs(changed.mean() - 0.5) < 5 * math.sqrt(0.25 / MANY)
    factor, shift = slot.args[changed, :2].T
    assert chi2_fits(np.histogram(factor, 20, (0.8, 1.2))[0], np.ones(20))
    assert chi2_fits(np.histogram(shift, 20, (-51, 51))[0], np.ones(20))
    assert abs(np.corrcoef(factor, shift)[0, 1]) < 5 / math.sqrt(changed.sum())


# --- images: the whole way against timm's own, with the same outcome of every draw -----------


class Outcomes:
    """Stands in for addressed draws: the same numbers for each image, by block."""

    def __init__(self, count, *blocks):
        self.count, self.blocks = count, blocks

    def __len__(self):
        return self.count

    def __call__(self, count, block=0):
        flat = [u for numbers in self.blocks[block:] for u in numbers]
        return np.tile(np.array(flat[:count]), (self.count, 1))


class Script:
    """Stands in for Python's `random` inside timm: applies, signs and filters by a script."""

    def __init__(self, minus, kind):
        self.minus, self.kind, self.asked = minus, kind, 0

    def random(self):
        return 0.999 if self.minus else 0.0

    def choice(self, options):
        return options[self.kind]


@pytest.mark.parametrize("policy", ["original", "originalr", "v0", "v0r"])
def test_composed_pairs_are_timms_images(monkeypatch, policy):
    images = channels_last(drawn(np.random.default_rng(2), 12, 32, 32))
    pairs = timm_policies.auto_augment_policy(policy, {"img_mean": FILL})
    for number, pair in enumerate(pairs):
        for minus, kind in [(False, 0), (True, 1)]:
            block = [0.0, 0.0 if minus else 0.999, 0.999 * kind, 0, 0, 0, 0, 0]
            choice = [(number + 0.5) / len(pairs), 0, 0, 0]
            outcome = Outcomes(12, choice, *[block[:4], block[4:]] * 2)
            slots = drawer("auto_augment", policy=policy)(outcome, (32, 32))
            found = compiled.apply(images, np.arange(12), slots)
            monkeypatch.setattr(timm_policies, "random", Script(minus, kind))
            happening = [op for op in pair if op.prob > 0]
            for op in happening:
                op.prob = 1.0
            for image, picture in zip(images, found, strict=True):
                wanted = Image.fromarray(image)
                for op in happening:
                    black = "Posterize" in op.name and op.level_fn(op.magnitude, {})[0] == 0
                    wanted = Image.new("RGB", wanted.size) if black else op(wanted)
                assert np.array_equal(picture, wanted), (number, minus, kind)


@pytest.mark.parametrize("size", [(32, 32), (47, 33), (20, 61), (30, 20)])
def test_evaluation_images_are_torchvisions(size):
    images = channels_last(drawn(np.random.default_rng(3), 12, *size))
    for name in ("bilinear", "bicubic", "nearest"):
        mode = tv.InterpolationMode(name)
        theirs = tv.Compose([tv.Resize(36, mode), tv.CenterCrop(32)])
        chain = [("resize", {"size": 36, "interpolation": name}), ("center_crop", {"size": 32})]
        slots = program(chain, 0).ops(draws(12).items, size)
        found = compiled.apply(images, np.arange(12), slots)
        for image, picture in zip(images, found, strict=True):
            assert np.array_equal(picture, theirs(Image.fromarray(image)))


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (47, 33)])
def test_turned_images_are_pillows(name, size):
    images = channels_last(drawn(np.random.default_rng(3), 12, *size))
    (slot,) = drawer("rotate", limit=180, p=1, interpolation=name)(draws(12), size)
    found = compiled.apply(images, np.arange(12), [slot])
    angles = 180 * (2 * draws(12)(2)[:, 1] - 1)
    mode = Image.Resampling[name.upper()]
    for image, picture, angle in zip(images, found, angles, strict=True):
        wanted = Image.fromarray(image).rotate(angle, mode, fillcolor=FILL)
        assert np.array_equal(picture, wanted)


@pytest.mark.skipif(OLD, reason=NEW_PILLOW)
def test_a_size_of_two_numbers_is_both_sides():
    images = channels_last(drawn(np.random.default_rng(3), 4, 40, 30))
    (slot,) = drawer("resize", size=(20, 50))(draws(4), (40, 30))
    found = compiled.apply(images, np.arange(4), [slot])
    singly = augments.build("resize", size=(20, 50))()
    for image, picture in zip(images, found, strict=True):
        wanted = Image.fromarray(image).resize((50, 20), Image.Resampling.BICUBIC)
        assert np.array_equal(picture, wanted)
        assert np.array_equal(picture, singly(Image.fromarray(image)))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("size", [(32, 32), (18, 25), (40, 20)])
def test_padded_crops_are_torchvisions(mode, size):
    images = channels_last(drawn(np.random.default_rng(4), 12, *size))
    options = {"size": 32, "padding": 4, "fill": [1, 2, 3], "mode": mode}
    (slot,) = drawer("random_crop", **options)(draws(12), size)
    found = compiled.apply(images, np.arange(12), [slot])
    for image, picture, args in zip(images, found, slot.args, strict=True):
        fill = (1, 2, 3) if mode == "constant" else 0
        crop = tv.RandomCrop(32, 4, pad_if_needed=True, fill=fill, padding_mode=mode)
        crop.get_params = lambda *_, args=args: (int(args[0]), int(args[1]), 32, 32)
        assert np.array_equal(picture, crop(Image.fromarray(image)))


# --- erasing -----------------------------------------------------------------------------------


def erased(name, count=4000, **options):
    """Which values were overwritten, and with what, of images full of a value nobody draws."""
    images = torch.full((count, 3, 32, 32), 99.0)
    made = program([(name, options_of(name, **options))], seed=5)
    made.erase(images, torch.from_numpy(draws(count).items))
    return images != 99, images


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_boxes_are_timms(mode):
    options = {"p": 0.6, "mode": mode, "area": [0.02, 0.4], "aspect": [0.3, 3.0]}
    where, images = erased("random_erasing", **options)
    assert (where == where[:, :1]).all()  # all channels alike
    hit = where[:, 0].flatten(1).any(1)
    assert abs(hit.float().mean() - 0.6) < 5 * math.sqrt(0.24 / 4000)
    theirs = RandomErasing(0.6, 0.02, 0.4, 0.3, 3.0, mode, device="cpu")
    random.seed(1)
    other = torch.stack([theirs(torch.full((3, 32, 32), 99.0)) for _ in range(4000)]) != 99
    for measure in (sides_down, sides_across, first_row):
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


def sides_across(where):
    return where[:, 0].any(1).sum(1)


def first_row(where):
    return where[:, 0].any(2).int().argmax(1)


def test_several_boxes_share_the_area():
    options = {"p": 1.0, "mode": "const", "area": [0.2, 0.2], "aspect": [1.0, 1.0], "count": 3}
    where, _ = erased("random_erasing", **options)
    share = where[:, 0].flatten(1).float().mean(1)
    assert share.max() <= 0.23 and share.mean() > 0.15  # boxes may overlap


def test_erasing_is_the_same_in_any_company():
    made = program([("random_erasing", options_of("random_erasing", p=0.9, count=2))], seed=5)
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

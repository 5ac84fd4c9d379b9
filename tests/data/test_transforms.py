"""Augmentations against timm's and torchvision's own, bit for bit under the same seeds."""

import copy
import os
import pickle
import random
from collections import Counter
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torchvision import transforms as tv

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def drawn(count, width=32, height=32):
    """Half noise (every op has something to do), half gradients (bands and flat parts)."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        noise = rng.integers(0, 256, (height, width, 3))
        ramp = np.add.outer(np.arange(height) * (i % 7), np.arange(width) * (i % 5))
        ramp = ramp[..., None] * rng.random(3) + rng.integers(0, 100, 3)
        images.append(Image.fromarray((noise if i % 2 else ramp.clip(0, 255)).astype(np.uint8)))
    return images


@pytest.fixture(scope="module", params=["drawn", "cifar100"])
def images(request):
    if request.param == "drawn":
        return drawn(80)
    root = os.environ.get("VISION_TUTORIAL_DATA")
    if not root:
        pytest.skip("VISION_TUTORIAL_DATA is not set")
    data = pickle.loads((Path(root) / "cifar-100-python" / "test").read_bytes(), encoding="latin1")
    images = data["data"][:300].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return [Image.fromarray(image) for image in np.ascontiguousarray(images)]


def build(*names, **options):
    """A chain of entries; options by entry name."""
    return [augments.build(name, **options.get(name, {}))().reference for name in names]


def apply(chain, image, number):
    seed(number)
    for transform in chain:
        image = transform(image)
    return image


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# --- the same images as timm.data.create_transform -----------------------------------------

START = ("random_resized_crop", "hflip")
PLAIN = {"color_jitter": None}
RECIPES = ("r0 and r1", "r2 to r5")
BLACK = ("Posterize", 0.8)  # magnitude 2: int(0.8) bits
CHAINS = {
    "r0 and r1": (
        build(*START, "color_jitter", hflip={"p": 0.7}, color_jitter={"strength": 0.2}),
        {"hflip": 0.7, "color_jitter": 0.2},
    ),
    "r2 to r5": (
        build(*START, "auto_augment", hflip={"p": 0.7}),
        {"hflip": 0.7, "color_jitter": 0.2, "auto_augment": "original"},
    ),
    "other crop, fixed interpolation, vflip": (
        build(
            *START,
            "vflip",
            "auto_augment",
            random_resized_crop={"size": 24, "scale": [0.3, 0.9], "ratio": [0.5, 1.5]}
            | {"interpolation": "bicubic"},
            auto_augment={"interpolation": "bicubic"},
        ),
        {
            "input_size": 24,
            "scale": (0.3, 0.9),
            "ratio": (0.5, 1.5),
            "interpolation": "bicubic",
            "vflip": 0.5,
            "auto_augment": "original",
        },
    ),
    "jitter with hue, sometimes": (
        build(*START, "color_jitter", color_jitter={"strength": [0.4, 0.3, 0.2, 0.1], "p": 0.6}),
        {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.6},
    ),
    "grayscale and blur": (
        build(*START, "grayscale", "gaussian_blur", grayscale={"p": 0.3}, gaussian_blur={"p": 0.4}),
        PLAIN | {"grayscale_prob": 0.3, "gaussian_blur_prob": 0.4},
    ),
    "3a keeps the jitter": (
        build(*START, "auto_augment", "color_jitter", auto_augment={"policy": "3a"}),
        {"auto_augment": "3a", "color_jitter": 0.4},
    ),
    **{
        f"auto_augment {policy}": (
            build(*START, "auto_augment", auto_augment={"policy": policy}),
            {"auto_augment": policy},
        )
        for policy in ("originalr", "v0", "v0r")
    },
    "auto_augment with spread": (
        build(*START, "auto_augment", auto_augment={"magnitude_std": 0.7}),
        {"auto_augment": "original-mstd0.7"},
    ),
    "rand_augment": (build(*START, "rand_augment"), {"auto_augment": "rand-m9-mstd0.5-inc1"}),
    **{  # timm keeps its colour jitter on next to anything with 3a in its name
        name: (build(*START, "rand_augment", rand_augment=options), PLAIN | {"auto_augment": name})
        for name, options in {
            "rand-m7-n3-p0.8-inc0": {"magnitude": 7, "num_ops": 3, "p": 0.8}
            | {"increasing": False, "magnitude_std": 0.0},
            "rand-m12-mmax15-mstd101-inc1": {"magnitude": 12, "magnitude_max": 15}
            | {"magnitude_std": None},
            "rand-m5-mstd1-tweights": {"magnitude": 5, "magnitude_std": 1, "operations": "weights"},
            "rand-m6-mstd0.5-t3a": {"magnitude": 6, "operations": "3a"},
            "rand-m6-mstd0.5-t3aw": {"magnitude": 6, "operations": "3aw"},
        }.items()
    },
    "augmix-m3-w3": (build(*START, "aug_mix"), {"auto_augment": "augmix-m3-w3"}),
    "augmix-m5-w2-d2-a0.5-mstd1": (
        build(
            *START,
            "aug_mix",
            aug_mix={"magnitude": 5, "width": 2, "depth": 2, "alpha": 0.5, "magnitude_std": 1},
        ),
        {"auto_augment": "augmix-m5-w2-d2-a0.5-mstd1"},
    ),
}


def lenient(image, bits):
    """Pillow's posterize before version 13, which takes bits <= 0 for black."""
    return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3)


@pytest.mark.parametrize("name", CHAINS)
def test_images_are_timms(monkeypatch, name, images):
    chain, options = CHAINS[name]
    options = {"input_size": 32, "scale": (0.08, 1), "interpolation": "random"} | options
    theirs = create_transform(is_training=True, use_prefetcher=True, **options)
    some = images if name in RECIPES else images[:60]
    with monkeypatch.context() as patch:
        patch.setattr(ImageOps, "posterize", lenient)
        expected = [apply([theirs], image, i) for i, image in enumerate(some)]
    found = [pixels(apply(chain, image, i)) for i, image in enumerate(some)]
    assert [
        i for i, pair in enumerate(zip(found, expected, strict=True)) if not torch.equal(*pair)
    ] == []
    # the crop alone gives other images: the rest of the chain did something
    cropped = [pixels(apply(chain[:1], image, i)) for i, image in enumerate(some)]
    assert (
        sum(not torch.equal(*pair) for pair in zip(cropped, expected, strict=True)) > len(some) / 4
    )


def test_posterize_to_no_bits_is_black():
    (transform,) = build("auto_augment", auto_augment={"policy": "v0"})
    (op,) = {op for pair in transform.policy for op in pair if (op.name, op.prob) == BLACK}
    op.prob = 1.0
    assert apply([op], drawn(2)[1], 0).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("size", [(32, 32), (47, 33), (20, 61)])
def test_eval_image_is_timms(size, images):
    chain = build("resize", "center_crop")
    theirs = create_transform(32, crop_pct=0.875, interpolation="bicubic", use_prefetcher=True)
    for image in images[:40]:
        image = image.resize(size)
        assert torch.equal(pixels(apply(chain, image, 0)), apply([theirs], image, 0))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erased_tensor_is_timms(mode, images):
    chain = build(*START, "auto_augment", "random_erasing", random_erasing={"p": 0.6, "mode": mode})
    theirs = create_transform(
        32,
        is_training=True,
        auto_augment="original",
        interpolation="random",
        re_prob=0.6,
        re_mode=mode,
    )
    finish = tv.Compose(
        [tv.ToTensor(), tv.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), chain.pop()]
    )
    for i, image in enumerate(images[:80]):
        assert torch.equal(apply([*chain, finish], image, i), apply([theirs], image, i))


def test_random_erasing_options_are_timms():
    options = {"p": 1.0, "area": [0.1, 0.2], "aspect": [0.5, 4.0], "count": 3, "mode": "rand"}
    (ours,) = build("random_erasing", random_erasing=options)
    theirs = RandomErasing(1.0, 0.1, 0.2, 0.5, 4.0, "rand", max_count=3, device="cpu")
    for i in range(50):
        image = torch.arange(3 * 32 * 32.0).view(3, 32, 32)
        expected = apply([theirs], image.clone(), i)
        assert not torch.equal(expected, image)
        assert torch.equal(apply([ours], image, i), expected)


# --- torchvision's ---------------------------------------------------------------------------

TORCHVISION = {
    "cifar10, nearest": (
        {"auto_augment": {"policy": "cifar10", "interpolation": "nearest", "fill": [0, 0, 0]}},
        tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10),
    ),
    "cifar10, bicubic, filled": (
        {"auto_augment": {"policy": "cifar10", "interpolation": "bicubic"}},
        tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, tv.InterpolationMode.BICUBIC, [124, 116, 104]),
    ),
    "trivial_augment": ({"trivial_augment": {}}, tv.TrivialAugmentWide()),
    "random_crop": ({"random_crop": {}}, tv.RandomCrop(32, padding=4)),
    "random_crop, reflect": (
        {"random_crop": {"size": 28, "padding": 2, "mode": "reflect"}},
        tv.RandomCrop(28, padding=2, padding_mode="reflect"),
    ),
    "random_crop, filled": (
        {"random_crop": {"fill": [1, 2, 3]}},
        tv.RandomCrop(32, padding=4, fill=(1, 2, 3)),
    ),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_images_are_torchvisions(name, images):
    options, theirs = TORCHVISION[name]
    ours = build(*options, **options)
    some = enumerate(images[:80])
    results = [(apply(ours, p, i), apply([theirs], p, i), p) for i, p in some]
    assert all(mine.tobytes() == expected.tobytes() for mine, expected, _ in results)
    assert sum(mine.tobytes() != p.tobytes() for mine, _, p in results) > len(results) / 4


def test_cifar10_policy_draws_its_interpolation():
    """`random` is one of torchvision's two smooth ones, and each of them turns up."""
    mean = [124, 116, 104]
    modes = [tv.InterpolationMode.BILINEAR, tv.InterpolationMode.BICUBIC]
    smooth = [tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, mode, mean) for mode in modes]
    (ours,) = build("auto_augment", auto_augment={"policy": "cifar10"})
    only = Counter()
    for i, image in enumerate(drawn(150)):
        result = apply([ours], image, i).tobytes()
        same = [apply([theirs], image, i).tobytes() == result for theirs in smooth]
        assert any(same)
        only[tuple(same)] += 1
    assert only[True, False] and only[False, True]


def test_cutout_is_the_papers():
    """Against DeVries' mask, written out: centre anywhere, clipped, `holes` times."""
    (ours,) = build("cutout", cutout={"holes": 2, "size": 11})
    assert ours.stage == "tensor"
    for i in range(100):
        image = torch.rand(3, 20, 30) + 1
        seed(i)
        mask = torch.ones(20, 30)
        for _ in range(2):
            y, x = np.random.randint(20), np.random.randint(30)
            for row in range(20):
                for column in range(30):
                    if y - 5 <= row < y + 5 and x - 5 <= column < x + 5:
                        mask[row, column] = 0
        assert torch.equal(apply([ours], image.clone(), i), image * mask)


# --- the distribution of timm's original policy ----------------------------------------------

# The table of the specification: (op p m), p in tenths of which the leading "0" is left out.
POLICY = """P.4·8+Rot.6·9 | Sol.6·5+AC.6·5 (×2) | Eq.8·8+Eq.6·3 (×2) | P.6·7+P.6·6 |
Eq.4·7+Sol.2·4 (×2) | Eq.4·4+Rot.8·8 | Sol.6·3+Eq.6·7 | P.8·5+Eq1·2 | Rot.2·3+Sol.6·8 |
Eq.6·8+P.4·6 | Rot.8·8+Col.4·0 | Rot.4·9+Eq.6·2 | Eq0·7+Eq.8·8 | Inv.6·4+Eq1·8 (×2) |
Col.6·4+Con1·8 (×2) | Rot.8·8+Col1·2 | Col.8·8+Sol.8·7 | Shp.4·7+Inv.6·8 | ShX.6·5+Eq1·9 |
Col.4·0+Eq.6·3"""
NAMES = {
    "P": "PosterizeOriginal",
    "Rot": "Rotate",
    "Sol": "Solarize",
    "AC": "AutoContrast",
    "Eq": "Equalize",
    "Inv": "Invert",
    "Col": "Color",
    "Con": "Contrast",
    "Shp": "Sharpness",
    "ShX": "ShearX",
}
PER_PICTURE = {"Equalize": 0.448, "Color": 0.152, "Rotate": 0.144, "Solarize": 0.144} | {
    "PosterizeOriginal": 0.112,
    "Contrast": 0.080,
    "Invert": 0.072,
    "AutoContrast": 0.048,
    "ShearX": 0.024,
    "Sharpness": 0.016,
}


def expected_outcomes():
    """{operations applied, with their magnitudes: probability}."""
    outcomes = Counter()
    for entry in POLICY.split("|"):
        pair, _, twice = entry.strip().partition(" ")
        ops = []
        for op in pair.split("+"):
            text, magnitude = op.split("·")
            name = text.rstrip("0123456789.")
            ops.append(((NAMES[name], int(magnitude)), float(text.removeprefix(name))))
        (first, p), (second, q) = ops
        weight = (2 if twice else 1) / 25
        for applied, chance in {
            (): (1 - p) * (1 - q),
            (first,): p * (1 - q),
            (second,): (1 - p) * q,
            (first, second): p * q,
        }.items():
            outcomes[applied] += weight * chance
    return {applied: chance for applied, chance in outcomes.items() if chance > 0}


def test_original_policy_draws_what_it_should():
    draws, trace = 20_000, []

    def record(mark, image, *_, **__):
        trace.append(mark)
        return image

    policy = build("auto_augment")[0]
    for op in (op for pair in policy.policy for op in pair):
        op.aug_fn = partial(record, (op.name, op.magnitude))
    seed(0)
    seen = Counter()
    for _ in range(draws):
        trace.clear()
        policy(None)
        seen[tuple(trace)] += 1
    expected = expected_outcomes()
    assert sum(expected.values()) == pytest.approx(1)
    assert seen.keys() <= expected.keys()
    statistic = sum(
        (seen[applied] - draws * chance) ** 2 / (draws * chance)
        for applied, chance in expected.items()
    )
    freedom = len(expected) - 1
    assert min(expected.values()) * draws > 5
    assert statistic < freedom + 4 * sqrt(2 * freedom)
    # and the means that the specification states, op by op
    for name, rate in PER_PICTURE.items():
        stated = sum(chance * sum(op == name for op, _ in ops) for ops, chance in expected.items())
        assert stated == pytest.approx(rate, abs=5e-4)
        count = sum(n * sum(op == name for op, _ in ops) for ops, n in seen.items())
        assert abs(count / draws - rate) < 5 * sqrt(rate / draws)
    assert expected[()] == pytest.approx(0.150, abs=5e-4)


# --- every entry -----------------------------------------------------------------------------

SIZES = {"random_resized_crop": (32, 32), "random_crop": (32, 32), "center_crop": (32, 32)} | {
    "resize": (56, 36)
}
ANY_SIZE = {"random_scale"}
FIXED = {"resize", "center_crop"}
LIKELY = {"grayscale": {"p": 0.5}, "gaussian_blur": {"p": 0.5}, "random_erasing": {"p": 0.5}}
MINE = sorted(set(augments) - {"brightness_contrast", "equalize_luma", "clahe"})  # test_colour


def written(result):
    return result.numpy().tobytes() if isinstance(result, torch.Tensor) else result.tobytes()


@pytest.mark.parametrize("name", MINE)
def test_every_entry(name):
    (transform,) = build(name, **LIKELY)
    image = drawn(2, 70, 45)[1]
    if augments.entries[name]().stage == "tensor":
        image = torch.rand(3, 45, 70) + 1
        form = (torch.Tensor, (3, 45, 70))
    else:
        form = ("RGB", SIZES.get(name, (70, 45)))
    before = pickle.dumps(transform)
    results = [apply([transform], copy.deepcopy(image), i) for i in range(40)]
    for result in results:
        tensor = isinstance(result, torch.Tensor)
        found = (torch.Tensor, tuple(result.shape)) if tensor else (result.mode, result.size)
        assert found == form or (name in ANY_SIZE and found[0] == "RGB")
    raw = [written(result) for result in results]
    assert (len(set(raw)) == 1) == (name in FIXED)
    # nothing is remembered: the same object after 40 calls, and the same images again
    assert pickle.dumps(transform) == before
    again = pickle.loads(before)
    assert [written(apply([again], copy.deepcopy(image), i)) for i in range(40)] == raw


@pytest.mark.parametrize("operations", ["all", "weights", "3a", "3aw"])
@pytest.mark.parametrize("increasing", [True, False])
def test_strongest_operations_raise_nothing(operations, increasing):
    """No Pillow may refuse an argument that a magnitude within the limits leads to."""
    options = {"operations": operations, "increasing": increasing, "p": 1.0}
    image = drawn(2)[1]
    for magnitude in (0, 100):
        strength = {"magnitude": magnitude, "magnitude_max": 100, "magnitude_std": 0.0}
        (transform,) = build("rand_augment", rand_augment=options | strength)
        for op in transform.ops:
            assert op(image).size == image.size
    (transform,) = build("aug_mix", aug_mix={"magnitude": 10, "magnitude_std": 0.0})
    assert all(op(image).size == image.size for op in transform.ops)


@pytest.mark.parametrize("entry", ["hflip", "vflip"])
def test_flips_by_probability(entry):
    image = drawn(2)[1]
    flipped = np.array(image)[:, ::-1] if entry == "hflip" else np.array(image)[::-1]
    for p in (0.0, 1.0):
        (transform,) = build(entry, **{entry: {"p": p}})
        expected = flipped if p else np.array(image)
        assert all(np.array_equal(apply([transform], image, i), expected) for i in range(5))


def test_turns_are_pillows_within_the_limit():
    image = drawn(2)[1]
    (transform,) = build("rotate", rotate={"limit": 20, "p": 1.0})
    for i in range(20):
        seed(i)
        _, angle = torch.rand(1), torch.empty(1).uniform_(-20, 20).item()
        wanted = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(124, 116, 104))
        assert apply([transform], image, i).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("entry", ["rotate", "brightness_contrast", "cutout"])
def test_p_is_how_often(entry):
    image = drawn(2, 33, 21)[1]
    if entry == "cutout":
        image = torch.ones(3, 21, 33)
    for p in (0.0, 0.3, 1.0):
        options = {"p": p} | ({"size": 9} if entry == "cutout" else {})
        (transform,) = build(entry, **{entry: options})
        results = [apply([transform], copy.deepcopy(image), i) for i in range(300)]
        changed = np.mean([written(result) != written(image) for result in results])
        assert changed == p if p in (0, 1) else abs(changed - p) < 5 * sqrt(0.21 / 300)


def test_random_scale_keeps_the_aspect_ratio_and_covers_its_range():
    image = drawn(1, 80, 40)[0]
    (transform,) = build("random_scale", random_scale={"scale": [0.5, 2.0]})
    sizes = np.array([apply([transform], image, i).size for i in range(300)])
    assert (abs(sizes[:, 0] / 2 - sizes[:, 1]) <= 0.75).all()
    assert 40 <= sizes[:, 0].min() < 45 and 155 < sizes[:, 0].max() <= 160
    (tiny,) = build("random_scale", random_scale={"scale": [0.001, 0.001]})
    assert apply([tiny], image, 0).size == (1, 1)


def test_small_image_is_padded_for_a_random_crop():
    image = Image.new("RGB", (10, 12), (9, 9, 9))
    assert apply(build("random_crop"), image, 0).size == (32, 32)


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ("random_resized_crop", {"size": 0}, "size is 0; use 1 to 8192"),
        ("random_resized_crop", {"scale": [-0.1, 1.0]}, "scale is .* above 0 and up to 1"),
        ("random_resized_crop", {"scale": [0.9, 0.1]}, "smallest, largest"),
        ("random_resized_crop", {"ratio": [1.0]}, "ratio is"),
        ("random_resized_crop", {"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ("random_crop", {"padding": -1}, "padding is -1"),
        ("random_crop", {"size": 9000}, "size is 9000"),
        ("random_crop", {"fill": [0, 0]}, "fill is .* use .red, green, blue."),
        ("random_crop", {"mode": "reflekt"}, "did you mean 'reflect'"),
        ("hflip", {"p": 1.5}, "hflip: p is 1.5; use 0 to 1"),
        ("hflip", {"p": float("nan")}, "hflip: p is nan"),
        ("vflip", {"p": -0.1}, "vflip: p is -0.1"),
        ("color_jitter", {"strength": -0.2}, "strength is -0.2"),
        ("color_jitter", {"strength": [0.1, 0.1]}, "3 or 4"),
        ("color_jitter", {"strength": [0.1, 0.1, 0.1, 0.6]}, "strength is 0.6; use 0 to 0.5"),
        ("color_jitter", {"p": 2}, "p is 2"),
        ("auto_augment", {"policy": "orignal"}, "did you mean 'original'.* 3a, cifar10"),
        ("auto_augment", {"policy": "cifar10", "magnitude_std": 0.5}, "leave magnitude_std at 0"),
        ("auto_augment", {"policy": "cifar10", "fill": [1, 2]}, "fill is"),
        ("auto_augment", {"fill": [0, 0, 256]}, "fill is"),
        ("auto_augment", {"magnitude_std": -1}, "magnitude_std is -1"),
        ("auto_augment", {"interpolation": "lanczos"}, "no interpolation called 'lanczos'"),
        ("rand_augment", {"magnitude": 11}, "magnitude is 11; use 0 to 10"),
        ("rand_augment", {"magnitude_max": 0}, "magnitude_max is 0"),
        ("rand_augment", {"num_ops": 0}, "num_ops is 0"),
        ("rand_augment", {"p": 1.1}, "p is 1.1"),
        ("rand_augment", {"operations": "some"}, "no set of operations called 'some'"),
        ("aug_mix", {"width": 0}, "width is 0"),
        ("aug_mix", {"depth": 0}, "depth is 0"),
        ("aug_mix", {"alpha": 0}, "alpha is 0"),
        ("aug_mix", {"magnitude": 12}, "magnitude is 12"),
        ("trivial_augment", {"bins": 1}, "bins is 1"),
        ("trivial_augment", {"interpolation": "random"}, "no interpolation called 'random'"),
        ("grayscale", {"p": 7}, "p is 7"),
        ("gaussian_blur", {"kernel": 4}, "kernel is 4; use an odd"),
        ("gaussian_blur", {"sigma": [0, 1]}, "sigma is"),
        ("resize", {"size": -3}, "size is -3"),
        ("resize", {"interpolation": "random"}, "no interpolation called 'random'"),
        ("center_crop", {"size": 0}, "size is 0"),
        ("random_erasing", {"p": -1}, "p is -1"),
        ("random_erasing", {"mode": "pixels"}, "did you mean 'pixel'"),
        ("random_erasing", {"area": [0.5, 1.5]}, "area is"),
        ("random_erasing", {"aspect": [0, 1]}, "aspect is"),
        ("random_erasing", {"count": 0}, "count is 0"),
        ("resize", {"size": [256]}, r"size is .*; use one number, or .height, width."),
        ("resize", {"size": [256, 0]}, "size is 0; use 1 to 8192"),
        ("rotate", {"limit": 181}, "limit is 181; use 0 to 180"),
        ("rotate", {"p": -1}, "p is -1"),
        ("rotate", {"fill": [0]}, "fill is"),
        ("rotate", {"interpolation": "random"}, "no interpolation called 'random'"),
        ("random_scale", {"scale": [0, 1]}, "scale is .* above 0 and up to 10"),
        ("random_scale", {"interpolation": "bilinar"}, "did you mean 'bilinear'"),
        ("cutout", {"p": 2}, "cutout: p is 2"),
        ("cutout", {"holes": 0}, "holes is 0"),
        ("cutout", {"size": 0}, "size is 0"),
    ],
)
def test_bad_options_answer_in_one_line(entry, options, message):
    with pytest.raises(UserError, match=message) as caught:
        augments.build(entry, **options)()
    assert "\n" not in str(caught.value)

"""Augmentations against timm's and torchvision's own, bit for bit under the same seeds."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from data.oracle import happens
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


@pytest.fixture(scope="module")
def images(data_root):
    """Drawn and real ones."""
    data = pickle.loads((data_root / "cifar-100-python" / "test").read_bytes(), encoding="latin1")
    real = data["data"][:50].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return drawn(40) + [Image.fromarray(image) for image in np.ascontiguousarray(real)]


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

PLAIN = {"color_jitter": None}
CHAINS = {  # ours after the crop, and timm's options
    "r0 and r1": (
        {"hflip": {"p": 0.7}, "color_jitter": {"strength": 0.2}},
        {"hflip": 0.7, "color_jitter": 0.2},
    ),
    "r2 to r5": (
        {"hflip": {"p": 0.7}, "auto_augment": {}},
        {"hflip": 0.7, "color_jitter": 0.2, "auto_augment": "original"},
    ),
    "jitter with hue, sometimes": (
        {"hflip": {}, "color_jitter": {"strength": [0.4, 0.3, 0.2, 0.1], "p": 0.6}},
        {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.6},
    ),
    "grayscale and blur": (
        {"hflip": {}, "grayscale": {"p": 0.3}, "gaussian_blur": {"p": 0.4}},
        PLAIN | {"grayscale_prob": 0.3, "gaussian_blur_prob": 0.4},
    ),
    **{  # timm keeps its colour jitter on next to anything with 3a in its name
        name: ({"hflip": {}, **ours}, PLAIN | {"auto_augment": name})
        for name, ours in {
            "3a": {"auto_augment": {"policy": "3a"}},
            "v0-mstd0.7": {"auto_augment": {"policy": "v0", "magnitude_std": 0.7}},
            "rand-m9-mstd0.5-inc1": {"rand_augment": {}},
            "rand-m12-mmax15-n3-p0.8-mstd101-inc0": {
                "rand_augment": {"magnitude": 12, "magnitude_max": 15, "num_ops": 3, "p": 0.8}
                | {"magnitude_std": None, "increasing": False}
            },
            "rand-m5-mstd1-tweights": {
                "rand_augment": {"magnitude": 5, "magnitude_std": 1, "operations": "weights"}
            },
            "augmix-m3-w3": {"aug_mix": {}},
        }.items()
    },
}


def lenient(image, bits):
    """Pillow's posterize before version 13, which takes bits <= 0 for black."""
    return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3)


@pytest.mark.parametrize("name", CHAINS)
def test_images_are_timms(monkeypatch, name, images):
    ours, options = CHAINS[name]
    options = {"input_size": 24, "scale": (0.1, 0.9), "interpolation": "random"} | options
    crop = {"size": 24, "scale": [0.1, 0.9], "interpolation": options["interpolation"]}
    chain = build("random_resized_crop", *ours, random_resized_crop=crop, **ours)
    theirs = create_transform(is_training=True, use_prefetcher=True, **options)
    with monkeypatch.context() as patch:
        patch.setattr(ImageOps, "posterize", lenient)
        expected = [apply([theirs], image, i) for i, image in enumerate(images)]
    found = [pixels(apply(chain, image, i)) for i, image in enumerate(images)]
    assert all(map(torch.equal, found, expected))
    # the crop alone gives other images: the rest of the chain did something
    cropped = [pixels(apply(chain[:1], image, i)) for i, image in enumerate(images)]
    assert sum(map(torch.equal, cropped, expected)) < 0.75 * len(images)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erased_tensor_is_timms(mode):
    start = ("random_resized_crop", "hflip", "auto_augment", "random_erasing")
    *chain, erase = build(*start, random_erasing={"p": 0.6, "mode": mode})
    options = {"auto_augment": "original", "interpolation": "random"}
    theirs = create_transform(32, is_training=True, re_prob=0.6, re_mode=mode, **options)
    normalize = tv.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    chain += [tv.ToTensor(), normalize, erase]
    for i, image in enumerate(drawn(60)):
        assert torch.equal(apply(chain, image, i), apply([theirs], image, i))
    options = {"p": 1.0, "area": [0.1, 0.2], "aspect": [0.5, 4.0], "count": 3, "mode": mode}
    (ours,) = build("random_erasing", random_erasing=options)
    theirs = RandomErasing(1.0, 0.1, 0.2, 0.5, 4.0, mode, max_count=3, device="cpu")
    for i in range(30):
        image = torch.arange(3 * 32 * 32.0).view(3, 32, 32)
        assert torch.equal(apply([ours], image.clone(), i), apply([theirs], image, i))


# --- torchvision's ---------------------------------------------------------------------------

CIFAR10 = tv.AutoAugmentPolicy.CIFAR10
TORCHVISION = {
    "cifar10, bicubic, filled": (
        {"auto_augment": {"policy": "cifar10", "interpolation": "bicubic"}},
        tv.AutoAugment(CIFAR10, tv.InterpolationMode.BICUBIC, [124, 116, 104]),
    ),
    "trivial_augment": ({"trivial_augment": {}}, tv.TrivialAugmentWide()),
    "random_crop, filled": (
        {"random_crop": {"fill": [1, 2, 3]}},
        tv.RandomCrop(32, padding=4, fill=(1, 2, 3)),
    ),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_images_are_torchvisions(name, images):
    options, theirs = TORCHVISION[name]
    ours = build(*options, **options)
    results = [(apply(ours, p, i), apply([theirs], p, i), p) for i, p in enumerate(images)]
    assert all(mine.tobytes() == expected.tobytes() for mine, expected, _ in results)
    assert sum(mine.tobytes() != p.tobytes() for mine, _, p in results) > len(results) / 4


def test_cutout_is_the_papers():
    """Against DeVries' mask, written out: centre anywhere, clipped, `holes` times."""
    (ours,) = build("cutout", cutout={"holes": 2, "size": 11})
    for i in range(50):
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


# --- every entry -----------------------------------------------------------------------------

SIZES = {"random_resized_crop": (32, 32), "random_crop": (32, 32), "center_crop": (32, 32)} | {
    "resize": (56, 36)
}
FIXED = {"resize", "center_crop", "equalize_luma"}
LIKELY = {"grayscale": {"p": 0.5}, "gaussian_blur": {"p": 0.5}, "random_erasing": {"p": 0.5}}


def written(result):
    return result.numpy().tobytes() if isinstance(result, torch.Tensor) else result.tobytes()


@pytest.mark.parametrize("name", sorted(augments))
def test_every_entry(name):
    (transform,) = build(name, **LIKELY)
    image, form = drawn(2, 70, 45)[1], ("RGB", SIZES.get(name, (70, 45)))
    if augments.entries[name]().stage == "tensor":
        image, form = torch.rand(3, 45, 70) + 1, (torch.Tensor, (3, 45, 70))
    results = [apply([transform], copy.deepcopy(image), i) for i in range(20)]
    for result in results:
        tensor = isinstance(result, torch.Tensor)
        found = (torch.Tensor, tuple(result.shape)) if tensor else (result.mode, result.size)
        assert found == form or (name == "random_scale" and found[0] == "RGB")
    raw = [written(result) for result in results]
    assert (len(set(raw)) == 1) == (name in FIXED)
    again = [written(apply([transform], copy.deepcopy(image), i)) for i in range(20)]
    assert again == raw  # nothing is remembered


def test_strongest_operations_raise_nothing():
    """No Pillow may refuse an argument that a magnitude within the limits leads to."""
    image = drawn(2)[1]
    for increasing in (True, False):
        options = {"magnitude": 100, "magnitude_max": 100, "magnitude_std": 0.0, "p": 1.0}
        (transform,) = build("rand_augment", rand_augment=options | {"increasing": increasing})
        assert all(op(image).size == image.size for op in transform.ops)


PROBABLE = ["rotate", "brightness_contrast", "cutout", "hflip", "vflip", "clahe", "equalize_luma"]


@pytest.mark.parametrize("entry", PROBABLE)
def test_p_is_how_often(entry):
    image = torch.ones(3, 21, 33) if entry == "cutout" else drawn(2, 33, 21)[1]
    for p, count in ((0.0, 20), (0.3, 100), (1.0, 20)):
        (transform,) = build(entry, **{entry: {"p": p}})
        results = [apply([transform], copy.deepcopy(image), i) for i in range(count)]
        assert happens([written(result) != written(image) for result in results], p)


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ("random_resized_crop", {"size": 0}, r"size is 0; a number in \[1, 8192\]"),
        ("random_resized_crop", {"scale": [0.9, 0.1]}, "use .smallest, largest."),
        ("random_crop", {"fill": (0, 0, 256)}, r"fill is .*256.*; a number in \[0, 255\]"),
        ("vflip", {"p": float("nan")}, "vflip: p is nan"),
        ("color_jitter", {"strength": [0.1, 0.1]}, "3 or 4"),
        (
            "color_jitter",
            {"strength": [0.1, 0.1, 0.1, 0.6]},
            r"hue is .0.6.; a number in \[0, 0.5\]",
        ),
        ("auto_augment", {"policy": "cifar10", "magnitude_std": 0.5}, "leave magnitude_std at 0"),
        ("rand_augment", {"magnitude": 11}, r"magnitude is 11; a number in \[0, 10\]"),
        ("gaussian_blur", {"kernel": 4}, "kernel is 4; use an odd"),
        ("resize", {"size": [256, 0]}, r"size is .*0.; a number in \[1, 8192\]"),
    ],
)
def test_bad_options_are_refused(entry, options, message):
    with pytest.raises(UserError, match=message):
        augments.build(entry, **options)()

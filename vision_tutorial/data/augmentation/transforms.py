"""Augmentations with timm's meaning, built from timm's and torchvision's own transforms.

A transform takes an RGB image and returns one; it draws from the global generators of Python,
NumPy and torch, which the loader seeds for each sample, and remembers nothing between two calls.
One with `stage = "colour"` leaves every pixel in its place, so that a mask need not follow; one
with `stage = "tensor"` takes the normalised float tensor (C, H, W) instead, and writes into it.
A recipe's chain is applied in its order and nothing is skipped silently (timm drops colour jitter
next to AutoAugment; here one leaves it out).
"""
# ruff: noqa: B006 - an option's default must be the literal a recipe would hold; none is written to

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import (
    RandomResizedCropAndInterpolation,
    str_to_interp_mode,
    str_to_pil_interp,
)
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode

from ...core.errors import UserError
from ...core.registry import augments
from .validation import MOST_PIXELS, check, check_colour, check_name, check_size, check_span

# Entries that place and cut an image; AugMix's copies (the jsd loss) share what these did.
FRAMING = {
    *("random_resized_crop", "random_crop", "center_crop", "resize", "random_scale"),
    *("hflip", "vflip"),
}
Transform = Callable[[Any], Any]

RESAMPLING = ("random", "nearest", "bilinear", "bicubic")
TIMM_POLICIES = ("original", "originalr", "v0", "v0r", "3a")


@augments.register
def random_resized_crop(
    *,
    size: int = 32,
    scale: list[float] = [0.08, 1.0],
    ratio: list[float] = [0.75, 1.3333333333333333],
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Transform:
    """A random share `scale` of the area at a random aspect ratio, resized to `size` (Inception).

    interpolation: `random` draws bilinear or bicubic for each image; both are antialiased.
    """
    check("random_resized_crop", "size", size, 1, MOST_PIXELS)
    check_span("random_resized_crop", "scale", scale, 1.0)
    check_span("random_resized_crop", "ratio", ratio, 100.0)
    check_name("interpolation", interpolation, RESAMPLING)
    return RandomResizedCropAndInterpolation(size, tuple(scale), tuple(ratio), interpolation)


@augments.register
def random_crop(
    *,
    size: int = 32,
    padding: int = 4,
    fill: list[int] = [0, 0, 0],
    mode: Literal["constant", "reflect"] = "constant",
) -> Transform:
    """A random `size` x `size` window of the image padded by `padding` pixels (CIFAR's classic).

    An image that is still too small is padded further.
    """
    check("random_crop", "size", size, 1, MOST_PIXELS)
    check("random_crop", "padding", padding, 0, MOST_PIXELS)
    check_name("padding mode", mode, ("constant", "reflect"))
    colour = check_colour("random_crop", fill)
    return tv.RandomCrop(size, padding, pad_if_needed=True, fill=colour, padding_mode=mode)


@augments.register
def hflip(*, p: float = 0.5) -> Transform:
    """Mirror left and right with probability p."""
    check("hflip", "p", p, 0, 1)
    return tv.RandomHorizontalFlip(p)


@augments.register
def vflip(*, p: float = 0.5) -> Transform:
    """Mirror top and bottom with probability p."""
    check("vflip", "p", p, 0, 1)
    return tv.RandomVerticalFlip(p)


@augments.register
def rotate(
    *,
    limit: float = 30.0,
    p: float = 0.5,
    fill: list[int] = [124, 116, 104],
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Transform:
    """Turn about the middle by -limit to limit degrees, with probability p; the size stays.

    fill: the colour that moves in from outside; the default is ImageNet's mean.
    """
    check("rotate", "limit", limit, 0, 180)
    check("rotate", "p", p, 0, 1)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    colour, mode = check_colour("rotate", fill), str_to_interp_mode(interpolation)
    return tv.RandomApply([tv.RandomRotation((-limit, limit), mode, fill=colour)], p)


@augments.register
def random_scale(
    *,
    scale: list[float] = [0.5, 2.0],
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
) -> Transform:
    """Resize both sides by one random factor of `scale`, antialiased; crop to one size after it."""
    check_span("random_scale", "scale", scale, 10.0)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    mode = str_to_interp_mode(interpolation)
    return partial(rescale, scale=tuple(scale), mode=mode)


def rescale(image: Image.Image, scale: tuple[float, float], mode: InterpolationMode) -> Any:
    """The image, both sides times one factor from scale[0] to scale[1], each at least a pixel."""
    factor = random.uniform(*scale)
    size = [max(1, round(factor * side)) for side in (image.height, image.width)]
    return tv.functional.resize(image, size, mode)


@augments.register
def color_jitter(*, strength: float | list[float] = 0.4, p: float = 1.0) -> Transform:
    """Brightness, contrast and saturation by factors in 1 ± strength, in random order (timm).

    strength: one number for the three, or a list [brightness, contrast, saturation] or
    [brightness, contrast, saturation, hue], hue at most 0.5.
    """
    check("color_jitter", "p", p, 0, 1)
    parts = list(strength) if isinstance(strength, Sequence) else [strength] * 3
    if len(parts) not in (3, 4):
        raise UserError(f"color_jitter: strength is {strength}; use a number, or 3 or 4 of them.")
    for part, limit in zip(parts, (10, 10, 10, 0.5), strict=False):
        check("color_jitter", "strength", part, 0, limit)
    jitter = tv.ColorJitter(*parts)
    # As in timm, where p = 1 makes no draw.
    return coloured(jitter if p == 1 else tv.RandomApply([jitter], p))


@augments.register
def auto_augment(
    *,
    policy: Literal["original", "originalr", "v0", "v0r", "3a", "cifar10"] = "original",
    magnitude_std: float | None = 0.0,
    fill: list[int] = [124, 116, 104],
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Transform:
    """A learned policy: one of its pairs of operations per image (Cubuk et al. 2019).

    policy: timm's, or torchvision's `cifar10`. fill: the colour that moves in from outside; the
    default is ImageNet's mean. interpolation: `random` draws bilinear or bicubic for each geometric
    operation (cifar10: for each image). magnitude_std: see `rand_augment`; not for cifar10.
    """
    check_name("policy of auto_augment", policy, (*TIMM_POLICIES, "cifar10"))
    hparams = timm_hparams("auto_augment", magnitude_std, fill, interpolation)
    if policy != "cifar10":
        pairs = timm_policies.auto_augment_policy(policy, hparams)
        return timm_policies.AutoAugment([mended(pair) for pair in pairs])
    if magnitude_std != 0:
        raise UserError("auto_augment: cifar10 has fixed magnitudes; leave magnitude_std at 0.")
    names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
    policies = [
        tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, str_to_interp_mode(name), list(fill))
        for name in names
    ]
    return policies[0] if len(policies) == 1 else tv.RandomChoice(policies)


@augments.register
def rand_augment(
    *,
    magnitude: float = 9.0,
    num_ops: int = 2,
    p: float = 0.5,
    magnitude_std: float | None = 0.5,
    magnitude_max: int | None = None,
    increasing: bool = True,
    operations: Literal["all", "weights", "3a", "3aw"] = "all",
    fill: list[int] = [124, 116, 104],
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Transform:
    """`num_ops` random operations, each with probability p (Cubuk et al. 2020).

    The defaults are timm's `rand-m9-n2-p0.5-mstd0.5-inc1`. magnitude_std: spread of a normal
    around `magnitude`; null (timm's `mstd101`): uniform from 0 to it. magnitude_max: timm's `mmax`;
    null is 10. increasing: operations that grow with the magnitude. operations: timm's `t`.
    """
    check("rand_augment", "p", p, 0, 1)
    check("rand_augment", "num_ops", num_ops, 1, 10)
    top = 10 if magnitude_max is None else magnitude_max
    check("rand_augment", "magnitude_max", top, 1, 100)
    check("rand_augment", "magnitude", magnitude, 0, top)
    check_name("set of operations", operations, ("all", "weights", "3a", "3aw"))
    hparams = timm_hparams("rand_augment", magnitude_std, fill, interpolation)
    hparams["magnitude_max"] = magnitude_max
    chosen, weights = timm_policies.rand_augment_choices(operations, increasing), None
    if isinstance(chosen, dict):
        weights = np.array(list(chosen.values()))
        weights = weights / weights.sum()
    ops = timm_policies.rand_augment_ops(magnitude, p, hparams, list(chosen))
    return timm_policies.RandAugment(mended(ops), num_ops, weights)


@augments.register
def aug_mix(
    *,
    magnitude: float = 3.0,
    width: int = 3,
    depth: int | None = None,
    alpha: float = 1.0,
    magnitude_std: float | None = None,
    fill: list[int] = [124, 116, 104],
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Transform:
    """`width` chains of operations blended with the image (Hendrycks et al. 2020).

    The defaults are timm's `augmix-m3-w3`. depth: operations in a chain; null draws 1 to 3.
    alpha: of the Dirichlet and Beta weights. magnitude_std: see `rand_augment`.
    """
    check("aug_mix", "magnitude", magnitude, 0, 10)
    check("aug_mix", "width", width, 1, 10)
    check("aug_mix", "depth", 1 if depth is None else depth, 1, 10)
    check("aug_mix", "alpha", alpha, 0.01, 100)
    hparams = timm_hparams("aug_mix", magnitude_std, fill, interpolation)
    hparams["translate_pct"] = 0.3
    ops = timm_policies.augmix_ops(magnitude, hparams)
    return timm_policies.AugMixAugment(mended(ops), alpha, width, depth or -1)


@augments.register
def trivial_augment(
    *,
    bins: int = 31,
    fill: list[int] = [0, 0, 0],
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest",
) -> Transform:
    """One random operation at a random one of `bins` magnitudes (TrivialAugmentWide, 2021)."""
    check("trivial_augment", "bins", bins, 2, 1000)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    colour = check_colour("trivial_augment", fill)
    return tv.TrivialAugmentWide(bins, str_to_interp_mode(interpolation), list(colour))


@augments.register
def grayscale(*, p: float = 0.1) -> Transform:
    """Take the colour away with probability p; still three channels."""
    check("grayscale", "p", p, 0, 1)
    return coloured(tv.RandomGrayscale(p))


@augments.register
def gaussian_blur(
    *, p: float = 0.1, kernel: int = 23, sigma: list[float] = [0.1, 2.0]
) -> Transform:
    """Blur with probability p, by a random standard deviation of `sigma` pixels (SimCLR)."""
    check("gaussian_blur", "p", p, 0, 1)
    check("gaussian_blur", "kernel", kernel, 1, 99)
    if kernel % 2 == 0:
        raise UserError(f"gaussian_blur: kernel is {kernel}; use an odd number of pixels.")
    check_span("gaussian_blur", "sigma", sigma, 100.0)
    return coloured(tv.RandomApply([tv.GaussianBlur(kernel, tuple(sigma))], p))


@augments.register
def resize(
    *,
    size: int | list[int] = 36,
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
) -> Transform:
    """Make the shorter side `size` pixels, antialiased, or the image [height, width].

    With one number the aspect ratio stays.
    """
    check_size("resize", size)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    return tv.Resize(size, str_to_interp_mode(interpolation))


@augments.register
def center_crop(*, size: int = 32) -> Transform:
    """The middle `size` x `size` pixels; a smaller image is padded with black."""
    check("center_crop", "size", size, 1, MOST_PIXELS)
    return tv.CenterCrop(size)


@augments.register
def random_erasing(
    *,
    p: float = 0.25,
    mode: Literal["const", "rand", "pixel"] = "pixel",
    area: list[float] = [0.02, 0.3333333333333333],
    aspect: list[float] = [0.3, 3.3333333333333335],
    count: int = 1,
) -> Transform:
    """Overwrite random boxes of the normalised image, with probability p (Zhong et al. 2020).

    mode: zero (the mean colour), one normal colour a box, or a normal draw a pixel. area: share of
    the image that all boxes cover. count: at most so many boxes.
    """
    check("random_erasing", "p", p, 0, 1)
    check_name("mode of random_erasing", mode, ("const", "rand", "pixel"))
    check_span("random_erasing", "area", area, 1.0)
    check_span("random_erasing", "aspect", aspect, 100.0)
    check("random_erasing", "count", count, 1, 100)
    # Drawn on the CPU wherever the image is, so that every device erases the same.
    erase = RandomErasing(p, *area, *aspect, mode, max_count=count, device="cpu")
    return on_tensor(erase)


@augments.register
def cutout(*, holes: int = 1, size: int = 16, p: float = 1.0) -> Transform:
    """Set square holes of the normalised image to zero, its mean colour (DeVries & Taylor 2017).

    A hole's centre is any pixel, so it may reach over the border. p: how often there are any. A
    mask keeps its labels under a hole, as in mmsegmentation and albumentations.
    """
    check("cutout", "holes", holes, 1, 100)
    check("cutout", "size", size, 1, MOST_PIXELS)
    check("cutout", "p", p, 0, 1)
    cut = partial(cut_holes, holes=holes, size=size)
    # At p = 1 nothing is drawn for it, so that the holes lie where they lay before there was a p.
    return on_tensor(cut if p == 1 else tv.RandomApply([cut], p))


def cut_holes(image: Tensor, holes: int, size: int) -> Tensor:
    """Zero `holes` squares of 2 * (size // 2) pixels in image (C, H, W), in place."""
    height, width = image.shape[-2:]
    for _ in range(holes):
        y, x = np.random.randint(height), np.random.randint(width)
        half = size // 2
        image[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return image


def on_tensor(transform: Transform) -> Transform:
    """Mark a transform as one that takes the normalised tensor."""
    transform.stage = "tensor"
    return transform


def coloured(transform: Transform) -> Transform:
    """Mark a transform as one that leaves every pixel in its place."""
    transform.stage = "colour"
    return transform


def timm_hparams(
    entry: str, magnitude_std: float | None, fill: Sequence[int], interpolation: str
) -> dict[str, Any]:
    """What timm's policies take beside their name."""
    check_name("interpolation", interpolation, RESAMPLING)
    check(entry, "magnitude_std", 0 if magnitude_std is None else magnitude_std, 0, 100)
    spread = float("inf") if magnitude_std is None else magnitude_std  # timm's word for uniform
    hparams = {"img_mean": check_colour(entry, fill), "magnitude_std": spread}
    if interpolation != "random":
        hparams["interpolation"] = str_to_pil_interp(interpolation)
    return hparams


def mended(ops: list[timm_policies.AugmentOp]) -> list[timm_policies.AugmentOp]:
    """timm's operations, with a posterize that no Pillow refuses."""
    for op in ops:
        if op.aug_fn is timm_policies.posterize:
            op.aug_fn = posterize
    return ops


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Keep the highest `bits` of each value; black where none are kept, as in policy v0.

    Earlier Pillows gave black themselves; 13 raises an error, in the middle of a training.
    """
    if bits > 0:
        return timm_policies.posterize(image, bits, **options)
    return Image.new(image.mode, image.size)


RANDOM = set(augments) - {"resize", "center_crop"}  # of the entries above

"""AutoAugment, RandAugment, TrivialAugment, AugMix: the tables are timm's and torchvision's.

What a named operation of theirs means in numbers stands at the end.
"""
# ruff: noqa: B006 - an option's default must be the literal a recipe would hold; none is written to

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.transforms import str_to_interp_mode, str_to_pil_interp
from torchvision import transforms as tv
from torchvision.transforms.functional import _get_inverse_affine_matrix

from ...core.errors import UserError
from ...core.registry import augments
from .geometry import RESAMPLING, rotation
from .operation import (
    ARGUMENTS,
    BatchedOp,
    Op,
    Operation,
    RandomStream,
    Rows,
    Sampler,
    Size,
    check,
    check_colour,
    check_name,
    filters,
    pick,
    rows,
)

TIMM_POLICIES = ("original", "originalr", "v0", "v0r", "3a")


@augments.register
def auto_augment(
    *,
    policy: Literal["original", "originalr", "v0", "v0r", "3a", "cifar10"] = "original",
    magnitude_std: float | None = 0.0,
    fill: list[int] = [124, 116, 104],
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Operation:
    """A learned policy: one of its pairs of operations per image (Cubuk et al. 2019).

    policy: timm's, or torchvision's `cifar10`. fill: the colour that moves in from outside; the
    default is ImageNet's mean. interpolation: `random` draws bilinear or bicubic for each geometric
    operation (cifar10: for each image). magnitude_std: see `rand_augment`; not for cifar10.
    """
    check_name("policy of auto_augment", policy, (*TIMM_POLICIES, "cifar10"))
    hparams = _timm_hparams("auto_augment", magnitude_std, fill, interpolation)
    if policy != "cifar10":
        return _timm_pairs(policy, hparams, tuple(fill), interpolation)
    if magnitude_std != 0:
        raise UserError("auto_augment: cifar10 has fixed magnitudes; leave magnitude_std at 0.")
    names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
    policies = [
        tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, str_to_interp_mode(name), list(fill))
        for name in names
    ]
    reference = policies[0] if len(policies) == 1 else tv.RandomChoice(policies)
    return Operation(reference, sample=_torchvision_pairs(tuple(fill), interpolation))


def _timm_pairs(
    policy: str, hparams: dict[str, Any], fill: tuple[int, ...], interpolation: str
) -> Operation:
    """One of a policy's pairs of operations for each image."""
    pairs = timm_policies.auto_augment_policy(policy, hparams)
    spread = hparams["magnitude_std"]
    layers = [_Layer(ops, spread, 10.0, fill, interpolation) for ops in zip(*pairs, strict=True)]

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        which = pick(stream(1)[:, 0], len(pairs))
        return [layer.sample(stream, 1 + 2 * i, which, source) for i, layer in enumerate(layers)]

    reference = timm_policies.AutoAugment([_mended(pair) for pair in pairs])
    batched = all(layer.known for layer in layers)  # 3a blurs
    return Operation(reference, sample=sample if batched else None)


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
) -> Operation:
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
    hparams = _timm_hparams("rand_augment", magnitude_std, fill, interpolation)
    hparams["magnitude_max"] = magnitude_max
    chosen, weights = timm_policies.rand_augment_choices(operations, increasing), None
    if isinstance(chosen, dict):
        weights = np.array(list(chosen.values()))
    ops = timm_policies.rand_augment_ops(magnitude, p, hparams, list(chosen))
    spread = hparams["magnitude_std"]
    layer = _Layer(ops, spread, magnitude_max or 10.0, tuple(fill), interpolation)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(num_ops)
        choices = pick(u, len(ops)) if weights is None else _distinct(u, weights)
        first = -(-num_ops // 4)
        return [
            layer.sample(stream, first + 2 * i, which, source) for i, which in enumerate(choices.T)
        ]

    shares = None if weights is None else weights / weights.sum()
    reference = timm_policies.RandAugment(_mended(ops), num_ops, shares)
    return Operation(reference, sample=sample if layer.known else None)  # 3a and 3aw blur


def _distinct(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted choices without repetition, in order. numbers (B, k) -> whole numbers (B, k)."""
    left = np.tile(weights, (len(numbers), 1))
    chosen = []
    for u in numbers.T:
        sums = left.cumsum(1)
        which = (u[:, None] * sums[:, -1:] >= sums).sum(1).clip(max=len(weights) - 1)
        left[np.arange(len(left)), which] = 0
        chosen.append(which)
    return np.stack(chosen, 1)


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
) -> Operation:
    """`width` chains of operations blended with the image (Hendrycks et al. 2020).

    The defaults are timm's `augmix-m3-w3`. depth: operations in a chain; null draws 1 to 3.
    alpha: of the Dirichlet and Beta weights. magnitude_std: see `rand_augment`.
    """
    check("aug_mix", "magnitude", magnitude, 0, 10)
    check("aug_mix", "width", width, 1, 10)
    check("aug_mix", "depth", 1 if depth is None else depth, 1, 10)
    check("aug_mix", "alpha", alpha, 0.01, 100)
    hparams = _timm_hparams("aug_mix", magnitude_std, fill, interpolation)
    hparams["translate_pct"] = 0.3
    ops = timm_policies.augmix_ops(magnitude, hparams)
    return Operation(timm_policies.AugMixAugment(_mended(ops), alpha, width, depth or -1))


@augments.register
def trivial_augment(
    *,
    bins: int = 31,
    fill: list[int] = [0, 0, 0],
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest",
) -> Operation:
    """One random operation at a random one of `bins` magnitudes (TrivialAugmentWide, 2021)."""
    check("trivial_augment", "bins", bins, 2, 1000)
    check_name("interpolation", interpolation, RESAMPLING[1:])
    colour = check_colour("trivial_augment", fill)
    space = tv.TrivialAugmentWide(bins)._augmentation_space(bins)

    @lru_cache(maxsize=4)
    def outcomes(source: Size) -> Rows:
        places = [(name, place) for name in space for place in range(bins)]
        return _outcomes(space, places, (len(space), bins), source)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(3).T
        which, place, minus = pick(u[0], len(space)), pick(u[1], bins), pick(u[2], 2)
        codes, args = (table[which, place, minus] for table in outcomes(source))
        _set_filter(codes, args, filters(u[0], interpolation))
        return [BatchedOp(codes, args, source, colour)]

    mode = str_to_interp_mode(interpolation)
    return Operation(tv.TrivialAugmentWide(bins, mode, list(colour)), sample=sample)


def _timm_hparams(
    entry: str, magnitude_std: float | None, fill: Sequence[int], interpolation: str
) -> dict[str, Any]:
    check_name("interpolation", interpolation, RESAMPLING)
    check(entry, "magnitude_std", 0 if magnitude_std is None else magnitude_std, 0, 100)
    spread = float("inf") if magnitude_std is None else magnitude_std  # timm's word for uniform
    hparams = {"img_mean": check_colour(entry, fill), "magnitude_std": spread}
    if interpolation != "random":
        hparams["interpolation"] = str_to_pil_interp(interpolation)
    return hparams


def _mended(ops: list[timm_policies.AugmentOp]) -> list[timm_policies.AugmentOp]:
    for op in ops:
        if op.aug_fn is timm_policies.posterize:
            op.aug_fn = posterize
    return ops


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Keep the highest `bits` of each value; black where none are kept: Pillow 13 refuses."""
    if bits > 0:
        return timm_policies.posterize(image, bits, **options)
    return Image.new(image.mode, image.size)


class _Layer:
    """timm's operations, one of which happens to each image, with its probability and level."""

    def __init__(
        self,
        ops: Sequence[timm_policies.AugmentOp],
        spread: float,
        most: float,
        fill: tuple[int, ...],
        interpolation: str,
    ):
        """spread: of a normal around an operation's level; infinite: uniform up to the level."""
        self.spread, self.most, self.fill, self.interpolation = spread, most, fill, interpolation
        self.chances = np.array([op.prob for op in ops])
        self.levels = np.array([op.magnitude for op in ops], np.float64)
        self.names = list(dict.fromkeys(op.name for op in ops))
        self.kinds = np.array([self.names.index(op.name) for op in ops])

    @property
    def known(self) -> bool:
        level, minus = np.zeros(1), np.zeros(1, bool)
        return all(timm_operation(name, level, minus, (1, 1)) for name in self.names)

    def sample(
        self, stream: RandomStream, block: int, which: np.ndarray, source: Size
    ) -> BatchedOp:
        """Operation number `which` (B,) for each image. Takes two blocks of stream."""
        happens, minus, filtering, first, *more = stream(5 if self.spread else 4, block).T
        happening = np.flatnonzero(happens < self.chances[which])
        levels = self.levels[which]
        if self.spread == math.inf:
            levels = levels * first
        elif self.spread > 0:  # a normal, after Box and Muller
            size = np.sqrt(-2 * np.log1p(-first))
            levels = levels + self.spread * (size * np.cos(2 * np.pi * more[0]))
        levels = np.clip(levels, 0.0, self.most)
        codes, args = rows(len(which), Op.NONE)
        kinds = self.kinds[which[happening]]
        for number, name in enumerate(self.names):
            some = happening[kinds == number]
            if len(some):
                made = timm_operation(name, levels[some], minus[some] < 0.5, source)
                codes[some], args[some] = made
        _set_filter(codes, args, filters(filtering, self.interpolation))
        return BatchedOp(codes, args, source, self.fill)


def _set_filter(codes: np.ndarray, args: np.ndarray, kinds: np.ndarray | int) -> None:
    args[:, 6] = np.where(codes == Op.AFFINE, kinds, 0)


# -- torchvision's: every outcome is known beforehand ----------------------------------------------


def _outcomes(
    space: dict,
    places: Sequence[tuple[str, int | None]],
    shape: tuple[int, int],
    source: Size,
) -> Rows:
    """All that can happen: codes int64 (*shape, 2), args float64 (*shape, 2, ARGUMENTS)."""
    made = [row for name, place in places for row in signed(space, name, place, source)]
    codes, args = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return codes.reshape(*shape, 2), args.reshape(*shape, 2, ARGUMENTS)


def signed(space: dict, name: str, place: int | None, source: Size) -> list[Rows]:
    """An operation at a place of torchvision's table of magnitudes: positive, then negative."""
    magnitudes, has_sign = space[name]
    value = float(magnitudes[place]) if magnitudes.ndim and place is not None else 0.0
    return [
        torchvision_operation(name, value, source),
        torchvision_operation(name, -value if has_sign else value, source),
    ]


def _torchvision_pairs(fill: tuple[int, ...], interpolation: str) -> Sampler:
    """torchvision's AutoAugment policy for CIFAR-10; `random` draws one filter an image."""
    policy = tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10)
    chances = np.array([[p for _, p, _ in pair] for pair in policy.policies])

    @lru_cache(maxsize=4)
    def outcomes(source: Size) -> Rows:
        space = policy._augmentation_space(10, source)
        places = [(name, place) for pair in policy.policies for name, _, place in pair]
        return _outcomes(space, places, (len(policy.policies), 2), source)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(6)
        which, kinds = pick(u[:, 0], len(chances)), filters(u[:, 1], interpolation)
        codes, args = outcomes(source)
        slots = []
        for place in range(2):
            minus = pick(u[:, 2 + place], 2)
            happens = u[:, 4 + place] < chances[which, place]
            drawn = np.where(happens, codes[which, place, minus], Op.NONE)
            numbers = args[which, place, minus]
            _set_filter(drawn, numbers, kinds)
            slots.append(BatchedOp(drawn, numbers, source, fill))
        return slots

    return sample


# -- named operations as numbers, for many images at once ------------------------------------------

_PLAIN = {name: Op[name.upper()] for name in ("AutoContrast", "Equalize", "Invert")}
_ENHANCING = ("Color", "Contrast", "Brightness", "Sharpness")
_TIMM_TABLES: dict[str, tuple[int, Callable]] = {
    "Posterize": (Op.POSTERIZE, lambda part: np.trunc(part * 4)),
    "PosterizeIncreasing": (Op.POSTERIZE, lambda part: 4 - np.trunc(part * 4)),
    "PosterizeOriginal": (Op.POSTERIZE, lambda part: np.trunc(part * 4) + 4),
    "Solarize": (Op.SOLARIZE, lambda part: np.minimum(256, np.trunc(part * 256))),
    "SolarizeIncreasing": (Op.SOLARIZE, lambda part: 256 - np.minimum(256, np.trunc(part * 256))),
    "SolarizeAdd": (Op.SOLARIZE_ADD, lambda part: np.minimum(128, np.trunc(part * 110))),
    "Desaturate": (Op.COLOR, lambda part: 1.0 - np.clip(0.5 + 0.5 * part, 0.5, 1.0)),
}
_TIMM_AFFINE: dict[str, Callable] = {
    "Rotate": lambda part, sign, h, w: rotation(sign * (part * 30.0), h, w),
    "ShearX": lambda part, sign, h, w: (1, sign * (part * 0.3), 0, 0, 1, 0),
    "ShearY": lambda part, sign, h, w: (1, 0, 0, sign * (part * 0.3), 1, 0),
    "TranslateXRel": lambda part, sign, h, w: (1, 0, sign * (part * 0.45) * w, 0, 1, 0),
    "TranslateYRel": lambda part, sign, h, w: (1, 0, 0, 0, 1, sign * (part * 0.45) * h),
    "TranslateX": lambda part, sign, h, w: (1, 0, sign * (part * 250.0), 0, 1, 0),
    "TranslateY": lambda part, sign, h, w: (1, 0, 0, 0, 1, sign * (part * 250.0)),
}


def timm_operation(
    name: str, level: np.ndarray, minus: np.ndarray, size: tuple[int, int]
) -> Rows | None:
    """timm's operation at `level` (n,), negated where `minus` (n,); None: it has no batched form.

    The filter's place in affine rows is left at 0.
    """
    n, part = len(level), level / 10.0  # timm's levels go from 0 to 10
    sign = np.where(minus, -1.0, 1.0)
    base = name.removesuffix("Increasing")
    if name in _PLAIN:
        return rows(n, _PLAIN[name])
    if base in _ENHANCING:
        grows = name != base
        factor = np.maximum(0.1, 1.0 + sign * (part * 0.9)) if grows else part * 1.8 + 0.1
        return rows(n, Op[base.upper()], factor)
    if name in _TIMM_TABLES:
        code, argument = _TIMM_TABLES[name]
        return rows(n, code, argument(part))
    if name in _TIMM_AFFINE:
        return rows(n, Op.AFFINE, *_TIMM_AFFINE[name](part, sign, *size))
    return None


def torchvision_operation(name: str, magnitude: float, size: tuple[int, int]) -> Rows:
    """One row of torchvision's operation; `magnitude` has its sign."""
    if name == "Identity" or name in _PLAIN:
        return rows(1, _PLAIN.get(name, Op.NONE))
    if name in _ENHANCING:
        return rows(1, Op[name.upper()], 1.0 + magnitude)
    if name == "Posterize":
        return rows(1, Op.POSTERIZE, int(magnitude))
    if name == "Solarize":
        return rows(1, Op.SOLARIZE, magnitude)
    if name == "Rotate":
        return rows(1, Op.AFFINE, *rotation(np.array([magnitude]), *size))
    lean, middle = math.degrees(math.atan(magnitude)), [size[1] * 0.5, size[0] * 0.5]
    centre, move, shear = {
        "ShearX": ([0, 0], [0, 0], [lean, 0.0]),
        "ShearY": ([0, 0], [0, 0], [0.0, lean]),
        "TranslateX": (middle, [int(magnitude), 0], [0.0, 0.0]),
        "TranslateY": (middle, [0, int(magnitude)], [0.0, 0.0]),
    }[name]
    return rows(1, Op.AFFINE, *_get_inverse_affine_matrix(centre, 0.0, move, 1.0, shear))

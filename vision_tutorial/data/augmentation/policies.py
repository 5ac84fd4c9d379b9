"""AutoAugment, RandAugment, TrivialAugment, AugMix: the tables are timm's and torchvision's.

What a named operation of theirs means in numbers stands at the end.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.transforms import str_to_interp_mode, str_to_pil_interp
from torchvision import transforms as tv

from ...core.errors import UserError, check_range
from ...core.registry import augments
from .geometry import rotation
from .operation import (
    BatchedOp,
    Op,
    Operation,
    RandomStream,
    Rows,
    Size,
    filters,
    pick,
    rows,
)

Layer = Callable[[RandomStream, int, np.ndarray, Size], BatchedOp]


@augments.register
def auto_augment(
    *,
    policy: Literal["original", "originalr", "v0", "v0r", "3a", "cifar10"] = "original",
    magnitude_std: float | None = 0.0,
    fill: tuple[int, int, int] = (124, 116, 104),
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Operation:
    """A learned policy: one of its pairs of operations per image (Cubuk et al. 2019).

    policy: timm's, or torchvision's `cifar10`. fill: the colour that moves in from outside; the
    default is ImageNet's mean. interpolation: `random` draws bilinear or bicubic for each geometric
    operation (cifar10: for each image). magnitude_std: see `rand_augment`; not for cifar10.
    """
    hparams = _timm_hparams("auto_augment", magnitude_std, fill, interpolation)
    if policy == "cifar10":
        if magnitude_std != 0:
            raise UserError("auto_augment: cifar10 has fixed magnitudes; leave magnitude_std at 0.")
        return _cifar10(fill, interpolation)
    pairs = timm_policies.auto_augment_policy(policy, hparams)
    layers = [_layer(ops, hparams, interpolation) for ops in zip(*pairs, strict=True)]

    def sample(stream, source):
        which = pick(stream(1)[:, 0], len(pairs))
        return [layer(stream, 1 + 2 * i, which, source) for i, layer in enumerate(layers)]

    reference = timm_policies.AutoAugment([_mended(pair) for pair in pairs])
    return Operation(reference, sample=sample if all(layers) else None)


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
    fill: tuple[int, int, int] = (124, 116, 104),
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Operation:
    """`num_ops` random operations, each with probability p (Cubuk et al. 2020).

    The defaults are timm's `rand-m9-n2-p0.5-mstd0.5-inc1`. magnitude_std: spread of a normal
    around `magnitude`; null (timm's `mstd101`): uniform from 0 to it. magnitude_max: timm's `mmax`;
    null is 10. increasing: operations that grow with the magnitude. operations: timm's `t`.
    """
    top = 10 if magnitude_max is None else magnitude_max
    check_range("rand_augment", "[0, 1]", p=p)
    check_range("rand_augment", "[1, 100]", num_ops=num_ops, magnitude_max=top)
    check_range("rand_augment", f"[0, {top}]", magnitude=magnitude)
    hparams = _timm_hparams("rand_augment", magnitude_std, fill, interpolation)
    hparams["magnitude_max"] = magnitude_max
    chosen, weights = timm_policies.rand_augment_choices(operations, increasing), None
    if isinstance(chosen, dict):
        weights = np.array(list(chosen.values()))
    ops = timm_policies.rand_augment_ops(magnitude, p, hparams, list(chosen))
    layer = _layer(ops, hparams, interpolation)

    def sample(stream, source):
        u = stream(num_ops)
        choices = pick(u, len(ops)) if weights is None else _distinct(u, weights)
        first = -(-num_ops // 4)
        return [layer(stream, first + 2 * i, which, source) for i, which in enumerate(choices.T)]

    shares = None if weights is None else weights / weights.sum()
    reference = timm_policies.RandAugment(_mended(ops), num_ops, shares)
    return Operation(reference, sample=sample if layer else None)


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
    fill: tuple[int, int, int] = (124, 116, 104),
    interpolation: Literal["random", "nearest", "bilinear", "bicubic"] = "random",
) -> Operation:
    """`width` chains of operations blended with the image (Hendrycks et al. 2020).

    The defaults are timm's `augmix-m3-w3`. depth: operations in a chain; null draws 1 to 3.
    alpha: of the Dirichlet and Beta weights. magnitude_std: see `rand_augment`.
    """
    check_range("aug_mix", "[0, 10]", magnitude=magnitude)
    check_range("aug_mix", "[1, 10]", width=width, depth=1 if depth is None else depth)
    check_range("aug_mix", "[0.01, 100]", alpha=alpha)
    hparams = _timm_hparams("aug_mix", magnitude_std, fill, interpolation)
    hparams["translate_pct"] = 0.3
    ops = timm_policies.augmix_ops(magnitude, hparams)
    return Operation(timm_policies.AugMixAugment(_mended(ops), alpha, width, depth or -1))


@augments.register
def trivial_augment(
    *,
    bins: int = 31,
    fill: tuple[int, int, int] = (0, 0, 0),
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest",
) -> Operation:
    """One random operation at a random one of `bins` magnitudes (TrivialAugmentWide, 2021)."""
    check_range("trivial_augment", "[2, 1000]", bins=bins)
    check_range("trivial_augment", "[0, 255]", fill=fill)
    reference = tv.TrivialAugmentWide(bins, str_to_interp_mode(interpolation), list(fill))
    space = reference._augmentation_space(bins)
    outcomes = _outcomes(lambda _: space, [(name, i) for name in space for i in range(bins)])

    def sample(stream, source):
        u = stream(3).T
        row, minus = pick(u[0], len(space)) * bins + pick(u[1], bins), pick(u[2], 2)
        codes, args = (table[row, minus] for table in outcomes(source))
        args[:, 6] = filters(interpolation)
        return [BatchedOp(codes, args, source, fill)]

    return Operation(reference, sample=sample)


# -- timm's ----------------------------------------------------------------------------------------


def _timm_hparams(
    entry: str, magnitude_std: float | None, fill: tuple[int, int, int], interpolation: str
) -> dict[str, Any]:
    spread = 0 if magnitude_std is None else magnitude_std
    check_range(entry, "[0, 100]", magnitude_std=spread)
    check_range(entry, "[0, 255]", fill=fill)
    spread = math.inf if magnitude_std is None else magnitude_std  # timm's word for uniform
    hparams = {"img_mean": fill, "magnitude_std": spread}
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


def _layer(
    ops: Sequence[timm_policies.AugmentOp], hparams: dict[str, Any], interpolation: str
) -> Layer | None:
    """Samples one of timm's operations for each image, with its probability, level and sign.

    (stream, block, which (B,) of `ops`, source) -> its numbers; takes two blocks of the stream.
    None where an operation has no batched form: those with 3a in their name blur.
    """
    names = list(dict.fromkeys(op.name for op in ops))
    if not set(names) <= set(_TIMM_VALUES):
        return None
    kinds = np.array([names.index(op.name) for op in ops])
    chances = np.array([op.prob for op in ops])
    nominal = np.array([op.magnitude for op in ops], np.float64)
    spread, most = hparams["magnitude_std"], hparams.get("magnitude_max") or 10.0

    def sample(stream, block, which, source):
        happens, sign, filtering, first, *more = stream(5 if spread else 4, block).T
        levels = nominal[which]
        if spread == math.inf:  # uniform up to the level
            levels = levels * first
        elif spread > 0:  # a normal around it, after Box and Muller
            size = np.sqrt(-2 * np.log1p(-first))
            levels = levels + spread * (size * np.cos(2 * np.pi * more[0]))
        levels, minus = np.clip(levels, 0.0, most), sign < 0.5
        codes, args = rows(len(which), Op.NONE)
        happening = np.flatnonzero(happens < chances[which])
        drawn = kinds[which[happening]]
        for number, name in enumerate(names):
            some = happening[drawn == number]
            if len(some):
                codes[some], args[some] = timm_rows(name, levels[some], minus[some], source)
        args[:, 6] = filters(interpolation, filtering)
        return BatchedOp(codes, args, source, hparams["img_mean"])

    return sample


# -- torchvision's: every outcome is known beforehand ----------------------------------------------


def _outcomes(
    space_of: Callable[[Size], dict], places: Sequence[tuple[str, int | None]]
) -> Callable[[Size], Rows]:
    """A source's size -> all that can happen: codes int64 (P, 2), args float64 (P, 2, ARGUMENTS).

    (P, 0) are the operations at their places of torchvision's table, (P, 1) the same negated.
    """

    @lru_cache(maxsize=4)
    def outcomes(source: Size) -> Rows:
        space = space_of(source)
        made = [torchvision_rows(space, name, place, source) for name, place in places]
        codes, args = (np.stack(parts) for parts in zip(*made, strict=True))
        return codes, args

    return outcomes


def _cifar10(fill: tuple[int, int, int], interpolation: str) -> Operation:
    """torchvision's AutoAugment policy for CIFAR-10; `random` draws one filter an image."""
    names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
    policies = [
        tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, str_to_interp_mode(name), list(fill))
        for name in names
    ]
    pairs = policies[0].policies
    chances = np.array([p for pair in pairs for _, p, _ in pair])
    outcomes = _outcomes(
        lambda source: policies[0]._augmentation_space(10, source),
        [(name, place) for pair in pairs for name, _, place in pair],
    )

    def sample(stream, source):
        u, made = stream(6).T, []
        for place in range(2):
            row, minus = 2 * pick(u[0], len(pairs)) + place, pick(u[2 + place], 2)
            codes, args = (table[row, minus] for table in outcomes(source))
            codes[u[4 + place] >= chances[row]] = Op.NONE
            args[:, 6] = filters(interpolation, u[1])
            made.append(BatchedOp(codes, args, source, fill))
        return made

    reference = policies[0] if len(policies) == 1 else tv.RandomChoice(policies)
    return Operation(reference, sample=sample)


# -- named operations as numbers -------------------------------------------------------------------

_MATRICES: dict[str, Callable] = {  # of a value (n,), for an image of this height and width
    "Rotate": rotation,
    "ShearX": lambda value, *size: (1, value, 0, 0, 1, 0),
    "ShearY": lambda value, *size: (1, 0, 0, value, 1, 0),
    "TranslateX": lambda value, *size: (1, 0, value, 0, 1, 0),
    "TranslateY": lambda value, *size: (1, 0, 0, 0, 1, value),
}
_CODES = {"Identity": Op.NONE, "Invert": Op.SOLARIZE}
_CODES |= {"SolarizeAdd": Op.SOLARIZE_ADD, "Desaturate": Op.COLOR}
_TIMM_VALUES: dict[str, Callable] = {  # of a share of timm's highest level, and a sign
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), lambda part, *_: 0),
    "Rotate": lambda part, sign, size: sign * (part * 30.0),
    **dict.fromkeys(("ShearX", "ShearY"), lambda part, sign, size: sign * (part * 0.3)),
    **dict.fromkeys(("TranslateX", "TranslateY"), lambda part, sign, size: sign * (part * 250.0)),
    "TranslateXRel": lambda part, sign, size: sign * (part * 0.45) * size[1],
    "TranslateYRel": lambda part, sign, size: sign * (part * 0.45) * size[0],
    "Posterize": lambda part, *_: np.trunc(part * 4),
    "PosterizeIncreasing": lambda part, *_: 4 - np.trunc(part * 4),
    "PosterizeOriginal": lambda part, *_: np.trunc(part * 4) + 4,
    "Solarize": lambda part, *_: np.minimum(256, np.trunc(part * 256)),
    "SolarizeIncreasing": lambda part, *_: 256 - np.minimum(256, np.trunc(part * 256)),
    "SolarizeAdd": lambda part, *_: np.minimum(128, np.trunc(part * 110)),
    "Desaturate": lambda part, *_: 1.0 - np.clip(0.5 + 0.5 * part, 0.5, 1.0),
}
_FACTORS = ("Color", "Contrast", "Brightness", "Sharpness")
for _name in _FACTORS:
    _TIMM_VALUES[_name] = lambda part, *_: part * 1.8 + 0.1
    _TIMM_VALUES[f"{_name}Increasing"] = lambda part, sign, size: np.maximum(
        0.1, 1.0 + sign * (part * 0.9)
    )
_TORCHVISION_VALUES: dict[str, Callable] = {  # of a magnitude with its sign; else the magnitude
    **dict.fromkeys(
        ("ShearX", "ShearY"),
        lambda value: math.tan(math.radians(math.degrees(math.atan(value)))),
    ),
    **dict.fromkeys(("TranslateX", "TranslateY"), lambda value: -int(value)),
    **dict.fromkeys(_FACTORS, lambda value: 1.0 + value),
    "Posterize": int,
}


def timm_rows(name: str, level: np.ndarray, minus: np.ndarray, size: Size) -> Rows:
    """timm's operation at `level` (n,), negated where `minus` (n,); the filter is left at 0."""
    sign, base = np.where(minus, -1.0, 1.0), re.sub("Increasing|Original|Rel", "", name)
    value = _TIMM_VALUES[name](level / 10.0, sign, size)  # timm's levels go from 0 to 10
    return _rows(len(level), base, value, size)


def torchvision_rows(space: dict, name: str, place: int | None, size: Size) -> Rows:
    """Two rows: an operation at a place of torchvision's table of magnitudes, and it negated."""
    magnitudes, has_sign = space[name]
    value = float(magnitudes[place]) if magnitudes.ndim else 0.0
    values = [value, -value if has_sign else value]
    return _rows(2, name, np.array([_TORCHVISION_VALUES.get(name, float)(v) for v in values]), size)


def _rows(count: int, name: str, value: np.ndarray, size: Size) -> Rows:
    if name in _MATRICES:
        return rows(count, Op.AFFINE, *_MATRICES[name](value, *size))
    return rows(count, _CODES[name] if name in _CODES else Op[name.upper()], value)

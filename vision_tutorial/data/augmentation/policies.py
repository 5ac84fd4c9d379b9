"""AutoAugment, RandAugment, TrivialAugment, AugMix: the tables are timm's and torchvision's.

What their operations mean in numbers stands in `magnitudes.py`.
"""
# ruff: noqa: B006 - an option's default must be the literal a recipe would hold; none is written to

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.transforms import str_to_interp_mode, str_to_pil_interp
from torchvision import transforms as tv

from ...core.errors import UserError
from ...core.registry import augments
from .geometry import RESAMPLING
from .magnitudes import timm_operation, torchvision_operation
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

FILTER = 6  # the filter's place among the arguments of AFFINE
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
    hparams = timm_hparams("auto_augment", magnitude_std, fill, interpolation)
    if policy != "cifar10":
        pairs = timm_policies.auto_augment_policy(policy, hparams)
        reference = timm_policies.AutoAugment([mended(pair) for pair in pairs])
        return Operation(reference, sample=timm_pairs(policy, hparams, fill, interpolation))
    if magnitude_std != 0:
        raise UserError("auto_augment: cifar10 has fixed magnitudes; leave magnitude_std at 0.")
    names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
    policies = [
        tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, str_to_interp_mode(name), list(fill))
        for name in names
    ]
    reference = policies[0] if len(policies) == 1 else tv.RandomChoice(policies)
    return Operation(reference, sample=torchvision_pairs(tuple(fill), interpolation))


def timm_pairs(
    policy: str, hparams: dict[str, Any], fill: Sequence[int], interpolation: str
) -> Sampler | None:
    """One of a policy's pairs of operations for each image; None where one has no batched form."""
    spread = hparams["magnitude_std"]
    pairs = timm_policies.auto_augment_policy(policy, {"magnitude_std": spread})
    layers = [
        Layer(ops, spread, 10.0, tuple(fill), interpolation) for ops in zip(*pairs, strict=True)
    ]

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        which = pick(stream(1)[:, 0], len(pairs))
        return [layer.sample(stream, 1 + 2 * i, which, source) for i, layer in enumerate(layers)]

    return sample if all(layer.known for layer in layers) else None  # 3a blurs


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
    hparams = timm_hparams("rand_augment", magnitude_std, fill, interpolation)
    hparams["magnitude_max"] = magnitude_max
    chosen, weights = timm_policies.rand_augment_choices(operations, increasing), None
    if isinstance(chosen, dict):
        weights = np.array(list(chosen.values()))
    ops = timm_policies.rand_augment_ops(magnitude, p, hparams, list(chosen))
    spread = hparams["magnitude_std"]
    layer = Layer(ops, spread, magnitude_max or 10.0, tuple(fill), interpolation)

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(num_ops)
        choices = pick(u, len(ops)) if weights is None else distinct(u, weights)
        first = -(-num_ops // 4)
        return [
            layer.sample(stream, first + 2 * i, which, source) for i, which in enumerate(choices.T)
        ]

    shares = None if weights is None else weights / weights.sum()
    reference = timm_policies.RandAugment(mended(ops), num_ops, shares)
    return Operation(reference, sample=sample if layer.known else None)  # 3a and 3aw blur


def distinct(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
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

    The defaults are timm's `augmix-m3-w3`. depth: operations in a chain; null stream 1 to 3.
    alpha: of the Dirichlet and Beta weights. magnitude_std: see `rand_augment`.
    """
    check("aug_mix", "magnitude", magnitude, 0, 10)
    check("aug_mix", "width", width, 1, 10)
    check("aug_mix", "depth", 1 if depth is None else depth, 1, 10)
    check("aug_mix", "alpha", alpha, 0.01, 100)
    hparams = timm_hparams("aug_mix", magnitude_std, fill, interpolation)
    hparams["translate_pct"] = 0.3
    ops = timm_policies.augmix_ops(magnitude, hparams)
    return Operation(timm_policies.AugMixAugment(mended(ops), alpha, width, depth or -1))


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
    def outcomes(source: Size) -> Outcomes:
        made = [
            row for name in space for b in range(bins) for row in signed(space, name, b, source)
        ]
        return Outcomes.of(made, (len(space), bins, 2))

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(3).T
        which, place, minus = pick(u[0], len(space)), pick(u[1], bins), pick(u[2], 2)
        table = outcomes(source)
        codes, args = table.codes[which, place, minus], table.args[which, place, minus]
        set_filter(codes, args, filters(u[0], interpolation))
        return [BatchedOp(codes, args, source, colour)]

    mode = str_to_interp_mode(interpolation)
    return Operation(tv.TrivialAugmentWide(bins, mode, list(colour)), sample=sample)


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


class Layer:
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
        """Whether all of its operations have a batched form."""
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
        set_filter(codes, args, filters(filtering, self.interpolation))
        return BatchedOp(codes, args, source, self.fill)


def set_filter(codes: np.ndarray, args: np.ndarray, kinds: np.ndarray | int) -> None:
    """Write the filter (a number, or one an image) into the rows that have one."""
    args[:, FILTER] = np.where(codes == Op.AFFINE, kinds, 0)


# -- torchvision's: every outcome is known beforehand ----------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """All that can happen: codes int64 (…), args float64 (…, ARGUMENTS)."""

    codes: np.ndarray
    args: np.ndarray

    @classmethod
    def of(cls, made: Sequence[Rows], shape: tuple[int, ...]) -> "Outcomes":
        """From rows of one operation each, in the order of `shape`."""
        codes, args = (np.concatenate(parts) for parts in zip(*made, strict=True))
        return cls(codes.reshape(shape), args.reshape(*shape, ARGUMENTS))


def signed(space: dict, name: str, place: int | None, source: Size) -> list[Rows]:
    """An operation at a place of torchvision's table of magnitudes: positive, then negative."""
    magnitudes, has_sign = space[name]
    value = float(magnitudes[place]) if magnitudes.ndim and place is not None else 0.0
    return [
        torchvision_operation(name, value, source),
        torchvision_operation(name, -value if has_sign else value, source),
    ]


def torchvision_pairs(fill: tuple[int, ...], interpolation: str) -> Sampler:
    """torchvision's AutoAugment policy for CIFAR-10; `random` draws one filter an image."""
    policy = tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10)
    chances = np.array([[p for _, p, _ in pair] for pair in policy.policies])

    @lru_cache(maxsize=4)
    def outcomes(source: Size) -> Outcomes:
        space = policy._augmentation_space(10, source)
        made = [
            row
            for pair in policy.policies
            for name, _, place in pair
            for row in signed(space, name, place, source)
        ]
        return Outcomes.of(made, (len(policy.policies), 2, 2))

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        u = stream(6)
        which, kinds = pick(u[:, 0], len(chances)), filters(u[:, 1], interpolation)
        table = outcomes(source)
        slots = []
        for place in range(2):
            minus = pick(u[:, 2 + place], 2)
            happens = u[:, 4 + place] < chances[which, place]
            codes = np.where(happens, table.codes[which, place, minus], Op.NONE)
            args = table.args[which, place, minus]
            set_filter(codes, args, kinds)
            slots.append(BatchedOp(codes, args, source, fill))
        return slots

    return sample

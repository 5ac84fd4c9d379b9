"""AutoAugment, RandAugment and TrivialAugment as the batched path draws them.

The policies' tables are read from timm and torchvision; what their operations mean in numbers
stands in `levels.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from timm.data import auto_augment as timm_policies
from torchvision import transforms as tv

from .batched_ops import ARGUMENTS, Op, Rows, Slot, rows
from .magnitudes import timm_operation, torchvision_operation
from .sampling import Drawer, Draws, Size, batched, filters, pick

FILTER = 6  # the filter's place among the arguments of AFFINE


@batched
def auto_augment(
    *, policy: str, magnitude_std: float | None, fill: Sequence[int], interpolation: str
) -> Drawer | None:
    """One of a policy's pairs of operations for each image."""
    if policy == "cifar10":
        return torchvision_pairs(tuple(fill), interpolation)
    spread = math.inf if magnitude_std is None else magnitude_std
    pairs = timm_policies.auto_augment_policy(policy, {"magnitude_std": spread})
    layers = [
        Layer(ops, spread, 10.0, tuple(fill), interpolation) for ops in zip(*pairs, strict=True)
    ]
    if not all(layer.known for layer in layers):
        return None  # 3a blurs

    def draw(draws: Draws, source: Size) -> list[Slot]:
        which = pick(draws(1)[:, 0], len(pairs))
        return [layer.draw(draws, 1 + 2 * i, which, source) for i, layer in enumerate(layers)]

    return draw


@batched
def rand_augment(
    *,
    magnitude: float,
    num_ops: int,
    p: float,
    magnitude_std: float | None,
    magnitude_max: int | None,
    increasing: bool,
    operations: str,
    fill: Sequence[int],
    interpolation: str,
) -> Drawer | None:
    """`num_ops` operations, each with probability p."""
    options = timm_policies.rand_augment_choices(operations, increasing)
    weights = np.array(list(options.values())) if isinstance(options, dict) else None
    ops = timm_policies.rand_augment_ops(magnitude, p, {"img_mean": fill}, list(options))
    spread = math.inf if magnitude_std is None else magnitude_std
    layer = Layer(ops, spread, magnitude_max or 10.0, tuple(fill), interpolation)
    if not layer.known:
        return None  # 3a and 3aw blur

    def draw(draws: Draws, source: Size) -> list[Slot]:
        u = draws(num_ops)
        choices = pick(u, len(ops)) if weights is None else distinct(u, weights)
        first = -(-num_ops // 4)
        return [
            layer.draw(draws, first + 2 * i, which, source) for i, which in enumerate(choices.T)
        ]

    return draw


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

    def draw(self, draws: Draws, block: int, which: np.ndarray, source: Size) -> Slot:
        """Operation number `which` (B,) for each image. Takes two blocks of draws."""
        happens, minus, filtering, first, *more = draws(5 if self.spread else 4, block).T
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
        return Slot(codes, args, source, self.fill)


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


def torchvision_pairs(fill: tuple[int, ...], interpolation: str) -> Drawer:
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

    def draw(draws: Draws, source: Size) -> list[Slot]:
        u = draws(6)
        which, kinds = pick(u[:, 0], len(chances)), filters(u[:, 1], interpolation)
        table = outcomes(source)
        slots = []
        for place in range(2):
            minus = pick(u[:, 2 + place], 2)
            happens = u[:, 4 + place] < chances[which, place]
            codes = np.where(happens, table.codes[which, place, minus], Op.NONE)
            args = table.args[which, place, minus]
            set_filter(codes, args, kinds)
            slots.append(Slot(codes, args, source, fill))
        return slots

    return draw


@batched
def trivial_augment(*, bins: int, fill: Sequence[int], interpolation: str) -> Drawer:
    """torchvision's TrivialAugmentWide: one operation, any magnitude."""
    space = tv.TrivialAugmentWide(bins)._augmentation_space(bins)
    colour = tuple(fill)

    @lru_cache(maxsize=4)
    def outcomes(source: Size) -> Outcomes:
        made = [
            row for name in space for b in range(bins) for row in signed(space, name, b, source)
        ]
        return Outcomes.of(made, (len(space), bins, 2))

    def draw(draws: Draws, source: Size) -> list[Slot]:
        u = draws(3).T
        which, place, minus = pick(u[0], len(space)), pick(u[1], bins), pick(u[2], 2)
        table = outcomes(source)
        codes, args = table.codes[which, place, minus], table.args[which, place, minus]
        set_filter(codes, args, filters(u[0], interpolation))
        return [Slot(codes, args, source, colour)]

    return draw

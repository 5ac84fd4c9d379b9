"""What the batched path draws: for each entry of the `augments` registry, slots for many images.

The functions here have the names and options of the entries in `augment.py`, which check them. Each
returns a drawer: (draws, size) -> slots, with the distribution that timm's or torchvision's
transform has; `draws` are uniform numbers by address. An entry that is missing here, or returns
None for its options, has no batched form, and its recipe takes the path of single images.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.randomness import address, uniforms
from .batched_ops import Filter, Op, Slot, slot
from .magnitudes import rotation

Size = tuple[int, int]  # height, width
ATTEMPTS = 10  # of a random crop or box, as in timm
FILTERS = {"nearest": Filter.NEAREST, "bilinear": Filter.BILINEAR, "bicubic": Filter.BICUBIC}


@dataclass(frozen=True)
class Draws:
    """Uniform numbers of one entry for a batch of images. items int64 (B, 2): epoch, index."""

    items: np.ndarray
    key: int

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, count: int, block: int | np.ndarray = 0) -> np.ndarray:
        """`count` numbers an image, from `block` (of four) on; float64 (B, count)."""
        return uniforms(self.key, self.items, count, block)

    def of(self, rows: np.ndarray) -> "Draws":
        """The draws of some of the images, or of some several times."""
        return Draws(self.items[rows], self.key)


@dataclass(frozen=True)
class Patch:
    """At most one box an image, and what it is filled with.

    positions (in the batch), rows, columns int64 (n,): the pixels that are overwritten;
    values float32 (n, C): with what.
    """

    positions: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def lay(self, images: Tensor) -> None:
        """Overwrite in images float (B, C, H, W)."""
        device = images.device
        where = tuple(
            torch.from_numpy(part).to(device, non_blocking=True)
            for part in (self.positions, self.rows, self.columns)
        )
        values = torch.from_numpy(self.values).to(device, images.dtype, non_blocking=True)
        images.permute(0, 2, 3, 1)[where] = values


Drawer = Callable[[Draws, Size], list[Slot]]
Eraser = Callable[[Draws, Size], list[Patch]]
DRAWERS: dict[str, Callable[..., Drawer | Eraser | None]] = {}
ERASING = ("random_erasing", "cutout")  # the entries that draw patches


def batched(function: Callable) -> Callable:
    """Let `function` draw for the entry of the same name."""
    DRAWERS[function.__name__] = function
    return function


@dataclass(frozen=True)
class Program:
    """A chain of entries in batched form: what draws slots, and what draws boxes to erase.

    Each has the key of its draws: it depends on the seed, the entry, and its place in the chain.
    """

    drawers: tuple[tuple[int, Drawer], ...]
    erasers: tuple[tuple[int, Eraser], ...]

    def slots(self, items: np.ndarray, size: Size) -> list[Slot]:
        """All that happens to the images `items` int64 (B, 2) of `size` (height, width)."""
        made: list[Slot] = []
        for key, drawer in self.drawers:
            made += drawer(Draws(items, key), made[-1].size if made else size)
        return made

    def erase(self, images: Tensor, items: Tensor) -> Tensor:
        """Overwrite boxes of normalised images float (B, C, H, W), in place. items (B, 2)."""
        for key, eraser in self.erasers:
            for patch in eraser(Draws(items.numpy(), key), tuple(images.shape[-2:])):
                patch.lay(images)
        return images


def program(chain: Iterable[tuple[str, dict[str, Any]]], seed: int) -> Program:
    """The batched form of a chain of (entry, options). UserError names the one that has none."""
    drawers: dict[bool, list] = {True: [], False: []}
    for place, (name, options) in enumerate(chain):
        drawer = DRAWERS[name](**options) if name in DRAWERS else None
        if drawer is None:
            shown = ", ".join(f"{key}: {value}" for key, value in options.items())
            raise UserError(
                f"augment: {name} ({shown}) has no batched form. Use data.path=auto or "
                "data.path=timm, or leave it out."
            )
        drawers[name in ERASING].append((address(seed, place, name, "pictures"), drawer))
    return Program(tuple(drawers[False]), tuple(drawers[True]))


def pick(numbers: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers -> whole ones from 0 to count - 1."""
    return (numbers * count).astype(np.int64)


def filters(numbers: np.ndarray, interpolation: str) -> np.ndarray | int:
    """The named filter, or bilinear or bicubic by coin."""
    if interpolation == "random":
        return np.where(numbers < 0.5, int(Filter.BILINEAR), int(Filter.BICUBIC))
    return int(FILTERS[interpolation])


# -- framing ---------------------------------------------------------------------------------------


@batched
def random_resized_crop(
    *, size: int, scale: Sequence[float], ratio: Sequence[float], interpolation: str
) -> Drawer:
    """timm's RandomResizedCropAndInterpolation: ten attempts at a box, else the middle."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        boxes = crops(draws, source, scale, ratio)
        kinds = filters(draws(1, block=ATTEMPTS)[:, 0], interpolation)
        return [slot(len(draws), Op.RESAMPLE, (size, size), *boxes.T, kinds)]

    return draw


def crops(draws: Draws, source: Size, scale: Sequence[float], ratio: Sequence[float]) -> np.ndarray:
    """Boxes (B, 4): top, left, height, width. Attempt k takes block k of the draws."""
    height, width = source
    boxes = np.tile(np.array(middle(source, ratio), np.float64), (len(draws), 1))
    left = np.arange(len(draws))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        u = draws.of(left)(4, block=attempt)
        area = (scale[0] + (scale[1] - scale[0]) * u[:, 0]) * (width * height)
        aspect = np.exp(low + (high - low) * u[:, 1])
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        w, h = np.maximum(w, 1), np.maximum(h, 1)  # a very small part is one pixel
        fits = (w <= width) & (h <= height)
        w, h, u = w[fits], h[fits], u[fits]
        top, start = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        boxes[left[fits]] = np.stack([top, start, h, w], 1)
        left = left[~fits]
        if not len(left):
            break
    return boxes


def middle(source: Size, ratio: Sequence[float]) -> tuple[int, int, int, int]:
    """The largest box in the middle whose aspect ratio is allowed."""
    height, width = source
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@batched
def random_crop(*, size: int, padding: int, fill: Sequence[int], mode: str) -> Drawer:
    """torchvision's RandomCrop with padding, and more of it where the image is too small."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        lines = [padded(length, size, padding, mode) for length in source]
        starts = [pick(u, len(line) - size + 1) for u, line in zip(draws(2).T, lines, strict=True)]
        return [
            slot(
                len(draws),
                Op.WINDOW,
                (size, size),
                *starts,
                fill=tuple(fill),
                rows=lines[0],
                columns=lines[1],
            )
        ]

    return draw


def padded(length: int, size: int, padding: int, mode: str) -> np.ndarray:
    """Which row of `length` each row of the padded image shows; -1: none."""
    line = np.arange(length)
    extra = max(0, size - length - 2 * padding)
    for pad in (padding, extra):
        if mode == "reflect":
            line = np.pad(line, pad, mode="reflect")
        else:
            line = np.pad(line, pad, constant_values=-1)
    return line


@batched
def resize(*, size: int | Sequence[int], interpolation: str) -> Drawer:
    """torchvision's Resize: the shorter side becomes `size`, or the image [height, width]."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        height, width = source
        if isinstance(size, int):
            short = min(source)
            target = (int(size * height / short), int(size * width / short))
        else:
            target = tuple(size)
        kind = int(FILTERS[interpolation])
        return [slot(len(draws), Op.RESAMPLE, target, 0, 0, height, width, kind)]

    return draw


@batched
def center_crop(*, size: int) -> Drawer:
    """torchvision's CenterCrop: black beside an image that is smaller."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        lines, starts = [], []
        for length in source:
            short = max(0, size - length)
            pads = (short // 2, (short + 1) // 2)
            lines.append(np.pad(np.arange(length), pads, constant_values=-1))
            starts.append(0 if short else round((length - size) / 2.0))
        return [slot(len(draws), Op.WINDOW, (size, size), *starts, rows=lines[0], columns=lines[1])]

    return draw


@batched
def hflip(*, p: float) -> Drawer:
    """Mirrored left and right with probability p."""
    return chosen(Op.HFLIP, p)


@batched
def vflip(*, p: float) -> Drawer:
    """Mirrored top and bottom with probability p."""
    return chosen(Op.VFLIP, p)


@batched
def rotate(*, limit: float, p: float, fill: Sequence[int], interpolation: str) -> Drawer:
    """Turned by up to `limit` degrees with probability p."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        u = draws(2)
        codes = np.where(u[:, 0] < p, Op.AFFINE, Op.NONE)
        matrix = rotation(around(0, limit, u[:, 1]), *source)
        kind = int(FILTERS[interpolation])
        return [slot(len(draws), codes, source, *matrix, kind, fill=tuple(fill))]

    return draw


def around(centre: float, reach: float, numbers: np.ndarray) -> np.ndarray:
    """Uniform numbers -> uniform ones in centre ± reach."""
    return centre + reach * (2 * numbers - 1)


@batched
def grayscale(*, p: float) -> Drawer:
    """Without colour with probability p."""
    return chosen(Op.GRAYSCALE, p)


def chosen(code: int, p: float) -> Drawer:
    """An operation without arguments, with probability p."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        codes = np.where(draws(1)[:, 0] < p, code, Op.NONE)
        return [slot(len(draws), codes, source)]

    return draw


# -- colour ----------------------------------------------------------------------------------------


@batched
def color_jitter(*, strength: float | Sequence[float], p: float) -> Drawer | None:
    """torchvision's ColorJitter: each factor in 1 ± strength, in random order; not with hue."""
    parts = list(strength) if isinstance(strength, Sequence) else [strength] * 3
    if len(parts) == 4 and parts[3]:
        return None
    kinds = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR)
    used = [(int(kind), part) for kind, part in zip(kinds, parts[:3], strict=True) if part]
    orders = np.array(list(permutations(range(len(used)))))

    def draw(draws: Draws, source: Size) -> list[Slot]:
        if not used:
            return []
        u = draws(8)
        order = orders[pick(u[:, 1], len(orders))]  # (B, operations)
        happens = u[:, 0] < p
        low = np.array([max(0.0, 1 - part) for _, part in used])
        high = np.array([1 + part for _, part in used])
        factors = low + (high - low) * u[:, 4 : 4 + len(used)]
        codes = np.array([code for code, _ in used])
        return [
            slot(
                len(draws),
                np.where(happens, codes[which], Op.NONE),
                source,
                take(factors, which),
            )
            for which in order.T
        ]

    return draw


@batched
def brightness_contrast(*, limit: float, p: float) -> Drawer:
    """Values times 1 ± limit, plus 255 times ± limit, with probability p."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        happens, contrast, brightness = draws(3).T
        codes = np.where(happens < p, Op.LINEAR, Op.NONE)
        factor, shift = around(1, limit, contrast), 255 * around(0, limit, brightness)
        return [slot(len(draws), codes, source, factor, shift)]

    return draw


def take(table: np.ndarray, which: np.ndarray) -> np.ndarray:
    """table (B, n, …), which (B,) -> the chosen entry of each row."""
    return table[np.arange(len(which)), which]

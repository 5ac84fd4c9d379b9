"""What an operation is: its reference on one image, how its parameters are drawn, its batched form.

An entry of the `augments` registry is one function that checks its options and returns an
`Operation`. Parameters are drawn by address: an image's depend on the seed, the entry, its place in
the chain, and the image's (epoch, index). What is drawn are batched ops, which the executors carry
out. An operation without a batched form is done image by image.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError, unknown
from ...core.randomness import address, uniforms
from ...core.registry import augments
from ...recipe.grammar import Choice

Size = tuple[int, int]  # height, width
ARGUMENTS = 8  # numbers an image, at most
Rows = tuple[np.ndarray, np.ndarray]  # codes int64 (n,), args float64 (n, ARGUMENTS)
ATTEMPTS = 10  # of a random crop or box, as in timm
MOST_PIXELS = 8192  # along one side of a result


class Filter(IntEnum):
    """How values between pixels are found; not Pillow's own numbers."""

    NEAREST = 0
    BILINEAR = 1
    BICUBIC = 2


FILTERS = {"nearest": Filter.NEAREST, "bilinear": Filter.BILINEAR, "bicubic": Filter.BICUBIC}


class Op(IntEnum):
    """What happens to one image, with its arguments. f is a factor: 1 changes nothing."""

    NONE = 0
    RESAMPLE = 1  # top, left, height, width, filter: crop, then an antialiased resize to slot.size
    WINDOW = 2  # top, left: a window of slot.size into the image padded by slot.rows, .columns
    HFLIP = 3
    VFLIP = 4
    AFFINE = 5  # a, b, c, d, e, f, filter: output (x, y) is input (ax + by + c, dx + ey + f)
    POSTERIZE = 6  # bits that are kept, 0 to 8
    SOLARIZE = 7  # threshold: values from it on are inverted
    SOLARIZE_ADD = 8  # what is added to values below 128, clipped at 255
    INVERT = 9
    BRIGHTNESS = 10  # f, away from black
    LINEAR = 11  # f, shift: each value times f, plus shift, rounded (half goes up)
    CONTRAST = 12  # f, away from the mean grey
    AUTOCONTRAST = 13
    EQUALIZE = 14
    COLOR = 15  # f, away from grey
    SHARPNESS = 16  # f, away from the smoothed image
    GRAYSCALE = 17


@dataclass(frozen=True)
class BatchedOp:
    """codes int64 (B,); args float64 (B, ARGUMENTS); `size` (height, width) of every result.

    fill: the colour that comes from outside (AFFINE, WINDOW). rows, columns: for WINDOW, the source
    row or column of each one of the padded image; -1 where there is only `fill`.
    """

    codes: np.ndarray
    args: np.ndarray
    size: tuple[int, int]
    fill: tuple[int, int, int] = (0, 0, 0)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    columns: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def rows(count: int, code: int | np.ndarray, *args: object) -> Rows:
    """Operations for `count` images; the code and each argument one number or (count,)."""
    table = np.zeros((count, ARGUMENTS))
    for column, values in enumerate(args):
        table[:, column] = values
    return np.full(count, code, np.int64), table


def batched_op(
    count: int, code: int | np.ndarray, size: tuple[int, int], *args: object, **more: object
) -> BatchedOp:
    """`rows` as one op whose results have `size`."""
    return BatchedOp(*rows(count, code, *args), size, **more)


@dataclass(frozen=True)
class RandomStream:
    """Uniform numbers of one entry for a batch of images. items int64 (B, 2): epoch, index."""

    items: np.ndarray
    key: int

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, count: int, block: int | np.ndarray = 0) -> np.ndarray:
        """`count` numbers an image, from `block` (of four) on; float64 (B, count)."""
        return uniforms(self.key, self.items, count, block)

    def of(self, rows: np.ndarray) -> "RandomStream":
        """The stream of some of the images, or of some several times."""
        return RandomStream(self.items[rows], self.key)


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


Sampler = Callable[[RandomStream, Size], list[BatchedOp]]
BoxSampler = Callable[[RandomStream, Size], list[Patch]]


@dataclass(frozen=True)
class Operation:
    """All forms of an entry. Calling it applies the reference.

    reference: defines it on one image, by timm, torchvision or Pillow; it draws from the global
    generators, which the loader seeds. stage: "colour" where every pixel keeps its place, so that a
    mask need not follow; "tensor" where it changes the normalised tensor (C, H, W), in place.
    sample: draws the ops of many images; None without a batched form. sample_one: the same where
    each image gets a size of its own. sample_boxes: draws what is erased after normalising.
    framing: it places or cuts the image; AugMix's copies (the jsd loss) share what it did. random:
    whether it may treat an image in more ways than one.
    """

    reference: Callable[[Any], Any]
    stage: Literal["image", "colour", "tensor"] = "image"
    sample: Sampler | None = None
    sample_one: Sampler | None = None
    sample_boxes: BoxSampler | None = None
    framing: bool = False
    random: bool = True

    def __call__(self, image: Any) -> Any:
        """The reference on one image."""
        return self.reference(image)


def operation(choice: Choice) -> Operation:
    """The operation of a recipe's entry; UserError for a bad option.

    An entry of a student's own may return a plain transform, with `stage` as an attribute.
    """
    made = augments.build(choice.name, **choice.options)()
    if isinstance(made, Operation):
        return made
    return Operation(made, getattr(made, "stage", "image"), random=False)


def in_words(choice: Choice) -> str:
    """An entry with its options, for messages."""
    options = ", ".join(f"{key}: {value}" for key, value in choice.options.items())
    return f"augment: {choice.name} ({options})"


@dataclass(frozen=True)
class AugmentationPlan:
    """A chain of entries in batched form: samplers of ops, and of boxes to erase.

    Each has the key of its random stream: it depends on the seed, the entry, and its place.
    """

    samplers: tuple[tuple[int, Sampler], ...]
    erasers: tuple[tuple[int, BoxSampler], ...] = ()

    def ops(self, items: np.ndarray, size: Size) -> list[BatchedOp]:
        """All that happens to the images `items` int64 (B, 2) of `size` (height, width)."""
        made: list[BatchedOp] = []
        for key, sample in self.samplers:
            made += sample(RandomStream(items, key), made[-1].size if made else size)
        return made

    def erase(self, images: Tensor, items: Tensor) -> Tensor:
        """Overwrite boxes of normalised images float (B, C, H, W), in place. items (B, 2)."""
        for key, sample in self.erasers:
            for patch in sample(RandomStream(items.numpy(), key), tuple(images.shape[-2:])):
                patch.lay(images)
        return images


def stream_key(seed: int, place: int, name: str) -> int:
    """The key of an entry's random stream, at its place in the chain."""
    return address(seed, place, name, "pictures")


def batched_form(chain: Iterable[Choice], seed: int) -> AugmentationPlan:
    """The batched form of a chain. UserError names the entry that has none."""
    samplers, erasers = [], []
    for place, choice in enumerate(chain):
        made, key = operation(choice), stream_key(seed, place, choice.name)
        if made.sample:
            samplers.append((key, made.sample))
        elif made.sample_boxes:
            erasers.append((key, made.sample_boxes))
        else:
            raise UserError(
                f"{in_words(choice)} has no batched form. Use data.path=auto or "
                "data.path=timm, or leave it out."
            )
    return AugmentationPlan(tuple(samplers), tuple(erasers))


# -- what samplers share ---------------------------------------------------------------------------


def pick(numbers: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers -> whole ones from 0 to count - 1."""
    return (numbers * count).astype(np.int64)


def filters(numbers: np.ndarray, interpolation: str) -> np.ndarray | int:
    """The named filter, or bilinear or bicubic by coin."""
    if interpolation == "random":
        return np.where(numbers < 0.5, int(Filter.BILINEAR), int(Filter.BICUBIC))
    return int(FILTERS[interpolation])


def around(centre: float, reach: float, numbers: np.ndarray) -> np.ndarray:
    """Uniform numbers -> uniform ones in centre ± reach."""
    return centre + reach * (2 * numbers - 1)


def sometimes(code: int, p: float) -> Sampler:
    """Samples an operation without arguments, with probability p."""

    def sample(stream: RandomStream, source: Size) -> list[BatchedOp]:
        codes = np.where(stream(1)[:, 0] < p, code, Op.NONE)
        return [batched_op(len(stream), codes, source)]

    return sample


# -- checks of options -----------------------------------------------------------------------------


def check(entry: str, option: str, value: float, low: float, high: float) -> None:
    """UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"{entry}: {option} is {value}; use {low} to {high}.")


def check_size(entry: str, size: int | Sequence[int]) -> None:
    """UserError unless size is one number of pixels, or [height, width]."""
    if isinstance(size, Sequence) and len(size) != 2:
        raise UserError(f"{entry}: size is {size}; use one number, or [height, width].")
    for side in size if isinstance(size, Sequence) else [size]:
        check(entry, "size", side, 1, MOST_PIXELS)


def check_span(entry: str, option: str, value: Sequence[float], high: float) -> None:
    """UserError unless value is [smallest, largest], above 0 and up to `high`."""
    if len(value) != 2 or not 0 < value[0] <= value[1] <= high:
        raise UserError(
            f"{entry}: {option} is {value}; use [smallest, largest], above 0 and up to {high:g}."
        )


def check_name(kind: str, name: str, known: Sequence[str]) -> None:
    """UserError with the nearest name unless `name` is known."""
    if name not in known:
        raise UserError(unknown(kind, name, known))


def check_colour(entry: str, fill: Sequence[int]) -> tuple[int, ...]:
    """Red, green, blue from 0 to 255 as a tuple."""
    if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
        raise UserError(f"{entry}: fill is {fill}; use [red, green, blue], each 0 to 255.")
    return tuple(fill)

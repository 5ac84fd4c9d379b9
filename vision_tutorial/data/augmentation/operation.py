"""What an operation is: its reference on one image, how its parameters are drawn, its batched form.

An entry of the `augments` registry is one function that checks its options (a recipe's loader has
checked their types) and returns an `Operation`. Parameters are drawn by address: an image's depend
on the seed, the entry, its place in the chain, and the image's (epoch, index). What is drawn are
batched ops, which the executors carry out. An operation without them is done image by image.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ...core.errors import UserError, check_range
from ...core.randomness import address
from ...core.registry import augments
from ...core.task import to_device
from ...recipe.grammar import Choice

Size = tuple[int, int]  # height, width
ARGUMENTS = 8  # numbers an image, at most
Rows = tuple[np.ndarray, np.ndarray]  # codes int64 (n,), args float64 (n, ARGUMENTS)
Word = int | np.ndarray
WORD = 0xFFFFFFFF
PIXELS = "[1, 8192]"  # along one side of a result


class Filter(IntEnum):
    """How values between pixels are found; not Pillow's own numbers."""

    NEAREST = 0
    BILINEAR = 1
    BICUBIC = 2


class Op(IntEnum):
    """What happens to one image, with its arguments. f is a factor: 1 changes nothing."""

    NONE = 0
    RESAMPLE = 1  # top, left, height, width, filter: crop, then an antialiased resize to slot.size
    WINDOW = 2  # top, left: a window of slot.size into the image padded by slot.rows, .columns
    HFLIP = 3
    VFLIP = 4
    AFFINE = 5  # a, b, c, d, e, f, filter: output (x, y) is input (ax + by + c, dx + ey + f)
    POSTERIZE = 6  # bits that are kept, 0 to 8
    SOLARIZE = 7  # threshold: values from it on are inverted; 0 inverts all
    SOLARIZE_ADD = 8  # what is added to values below 128, clipped at 255
    BRIGHTNESS = 9  # f, away from black
    LINEAR = 10  # f, shift: each value times f, plus shift, rounded (half goes up)
    CONTRAST = 11  # f, away from the mean grey
    AUTOCONTRAST = 12
    EQUALIZE = 13
    COLOR = 14  # f, away from grey; 0 leaves no colour
    SHARPNESS = 15  # f, away from the smoothed image


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


def uniforms(key: int, items: np.ndarray, count: int, block: int | np.ndarray = 0) -> np.ndarray:
    """Draws for many images at once: uniform in [0, 1), steps of 2**-32; float64 (B, count).

    key: 64 bits, an `address`. items: whole numbers (B, 2), (epoch, index) of each image, epoch
    below 2**32. block: one number or (B,), in units of four draws: where in each image's stream
    to begin. An image's draws depend on its item and on nothing else; they come from
    Philox4x32-10 (Salmon et al. 2011).
    """
    blocks = -(-count // 4)
    if len(items) == 1:  # in Python's own numbers, ten times as fast as arrays of one
        ((epoch, index),) = items.tolist()
        first, index = int(np.ravel(block)[0]), (index & WORD, index >> 32)
        words = [philox((first + i, *index, epoch), key) for i in range(blocks)]
        return np.array(words).reshape(1, -1)[:, :count] * 2.0**-32
    epoch, index = items.astype(np.uint64).T
    counters = np.empty((4, len(items), blocks), np.uint64)
    counters[0] = np.asarray(block).reshape(-1, 1) + np.arange(blocks)
    counters[1] = (index & WORD)[:, None]
    counters[2] = (index >> 32)[:, None]
    counters[3] = epoch[:, None]
    words = np.stack(philox(counters, key))
    return words.transpose(1, 2, 0).reshape(len(items), -1)[:, :count] * 2.0**-32


def philox(counters: Sequence[Word], key: int) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 of each counter: four whole numbers of 32 bits, or arrays uint64 of them."""
    a, b, c, d = counters
    first, second = key & WORD, key >> 32
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, c = (right >> 32) ^ b ^ first, (left >> 32) ^ d ^ second
        b, d = right & WORD, left & WORD
        first, second = (first + 0x9E3779B9) & WORD, (second + 0xBB67AE85) & WORD
    return a, b, c, d


# A box to overwrite, pixel by pixel: image in the batch, row, column, each int64 (n,); and with
# which values, float32 (n, C).
Patch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Sampler = Callable[[RandomStream, Size], list[Any]]


@dataclass(frozen=True)
class Operation:
    """All forms of an entry.

    reference: defines it on one image, by timm, torchvision or Pillow; it draws from the global
    generators, which the loader seeds. stage: "colour" where every pixel keeps its place, so that a
    mask need not follow; "tensor" where it changes the normalised tensor (C, H, W), in place.
    sample: draws the batched ops of many images, or the patches of a "tensor" operation; None
    without a batched form. single: each image gets a size of its own, so that it is sampled alone.
    framing: it places or cuts the image; AugMix's copies (the jsd loss) share what it did. random:
    whether it may treat an image in more ways than one.
    """

    reference: Callable[[Any], Any]
    stage: Literal["image", "colour", "tensor"] = "image"
    sample: Sampler | None = None
    single: bool = False
    framing: bool = False
    random: bool = True


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


def keyed(chain: Iterable[Choice], seed: int) -> Iterator[tuple[int, Choice, Operation]]:
    """Each entry with the key of its random stream: by the seed, its place and its name."""
    for place, choice in enumerate(chain):
        yield address(seed, place, choice.name, "pictures"), choice, operation(choice)


@dataclass(frozen=True)
class AugmentationPlan:
    """A chain in batched form: samplers of ops, and of boxes to erase, each with its key."""

    samplers: tuple[tuple[int, Sampler], ...]
    erasers: tuple[tuple[int, Sampler], ...] = ()

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
                *where, values = (to_device(part, images.device) for part in patch)
                images.permute(0, 2, 3, 1)[tuple(where)] = values.to(images.dtype)
        return images


def batched_form(chain: Iterable[Choice], seed: int) -> AugmentationPlan:
    """The batched form of a chain. UserError names the entry that has none."""
    samplers, erasers = [], []
    for key, choice, made in keyed(chain, seed):
        if not made.sample or made.single:
            raise UserError(
                f"{in_words(choice)} has no batched form. Use data.path=auto or "
                "data.path=timm, or leave it out."
            )
        (erasers if made.stage == "tensor" else samplers).append((key, made.sample))
    return AugmentationPlan(tuple(samplers), tuple(erasers))


# -- what samplers share ---------------------------------------------------------------------------


def pick(numbers: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers -> whole ones from 0 to count - 1."""
    return (numbers * count).astype(np.int64)


def between(span: Sequence[float], numbers: np.ndarray) -> np.ndarray:
    """Uniform numbers -> uniform ones from span[0] to span[1]."""
    return span[0] + (span[1] - span[0]) * numbers


def around(centre: float, reach: float, numbers: np.ndarray) -> np.ndarray:
    """Uniform numbers -> uniform ones in centre ± reach."""
    return centre + reach * (2 * numbers - 1)


def filters(interpolation: str, numbers: np.ndarray | float = 0) -> np.ndarray | int:
    """The named filter; of `random`, bilinear or bicubic by uniform numbers."""
    if interpolation == "random":
        return np.where(numbers < 0.5, int(Filter.BILINEAR), int(Filter.BICUBIC))
    return int(Filter[interpolation.upper()])


def sometimes(
    code: int,
    p: float,
    numbers: int = 0,
    args: Callable = lambda source, *numbers: (),
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Sampler:
    """Samples an operation with probability p; args(source, *numbers (B,)) are its arguments."""

    def sample(stream, source):
        happens, *u = stream(1 + numbers).T
        codes = np.where(happens < p, code, Op.NONE)
        return [batched_op(len(stream), codes, source, *args(source, *u), fill=fill)]

    return sample


def check_pairs(entry: str, interval: str, **pairs: tuple[float, float]) -> None:
    """UserError unless each option is [smallest, largest], both in the interval."""
    check_range(entry, interval, **pairs)
    for option, (low, high) in pairs.items():
        if low > high:
            raise UserError(f"{entry}: {option} is [{low}, {high}]; use [smallest, largest].")

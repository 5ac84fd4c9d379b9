"""The words of the batched path: what can be done to an image, and the numbers that each takes.

A `BatchedOp` holds one operation for each image of a batch, side by side: codes and numbers, not
pixels. `drawing.py` fills slots from addressed draws; `compiled.py` (CPU) and `tensors.py` (any
device) carry them out, to the same bits as Pillow, which defines every operation here.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

ARGUMENTS = 8  # numbers an image, at most
Rows = tuple[np.ndarray, np.ndarray]  # codes int64 (n,), args float64 (n, ARGUMENTS)


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
    """`rows` as a slot whose results have `size`."""
    return BatchedOp(*rows(count, code, *args), size, **more)

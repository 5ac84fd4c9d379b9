"""What the options of the `augments` registry may be: checks that answer in one line."""

from collections.abc import Sequence

from ...core.errors import UserError, unknown

MOST_PIXELS = 8192  # along one side of a result


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

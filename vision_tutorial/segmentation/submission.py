"""The contest's CSV: a row an image, `image_id,PredictionString`, the class ids of its mask.

The ids are those of the mask at SIZE x SIZE pixels, row by row, separated by spaces.
"""

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..core.atomic import replacing
from ..core.errors import UserError

_HEADER = ("image_id", "PredictionString")
SIZE = 256  # pixels; 65,536 ids


def write(path: Path, masks: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write (name, mask uint8 (S, S)) as they come, the file whole or not at all. How many."""
    words = np.array([str(i) for i in range(256)])
    count = 0
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_HEADER)
        for name, mask in masks:
            rows.writerow((name, " ".join(words[mask.ravel()])))
            count += 1
    return count


def read(path: Path, classes: int, size: int = SIZE) -> dict[str, np.ndarray]:
    """Masks uint8 (size, size) by image. UserError names the line that is not as it should be."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    found: dict[str, np.ndarray] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if tuple(word.strip() for word in header) != _HEADER:
                given = ",".join(header)[:80]
                raise UserError(f"{path}: its first line is '{given}'; write {','.join(_HEADER)}.")
            for row in filter(None, rows):
                try:
                    found[row[0]] = _mask(row, found, classes, size)
                except UserError as error:
                    raise UserError(f"{path}, line {rows.line_num}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as a submission ({error}).") from error
    return found


def _mask(row: list[str], known: Mapping[str, np.ndarray], classes: int, size: int) -> np.ndarray:
    """The mask uint8 (size, size) of a row. UserError: what is wrong."""
    if len(row) != 2:
        raise UserError(f"{len(row)} cells; a name and the ids of its mask are expected.")
    name, text = row
    if name in known:
        raise UserError(f"'{name}' comes a second time; keep one row an image.")
    try:
        ids = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"'{name}': not whole numbers apart by spaces.") from error
    low, high = (ids.min(), ids.max()) if ids.size else (0, 0)
    if len(ids) != size * size or low < 0 or high >= classes:
        raise UserError(
            f"'{name}' has {len(ids):,} ids from {low} to {high}; {size}x{size} = {size * size:,} "
            f"from 0 to {classes - 1} are expected (--size says another size)."
        )
    return ids.astype(np.uint8).reshape(size, size)


def check_names(path: Path, found: Mapping[str, np.ndarray], wanted: Iterable[str]) -> None:
    """UserError unless the submission has exactly the images that are to be scored."""
    wanted = set(wanted)
    lacks, more = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if lacks or more:
        raise UserError(
            f"{path}: of {len(wanted)} images {len(lacks)} are missing {lacks[:3]}, and "
            f"{len(more)} are unknown here {more[:3]}. Is it of another split or data set?"
        )

"""The contest's CSV: a row an image, `image_id,PredictionString`, the class ids of its mask.

The ids are those of the mask at SIZE x SIZE pixels, row by row, separated by spaces.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..core.atomic import regular, replacing
from ..core.errors import UserError, short
from ..core.names import CSV

_HEADER = ("image_id", "PredictionString")
SIZE = 256  # pixels; 65,536 ids


def write(path: Path, masks: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write (name, mask uint8 (S, S)) as they come, the file whole or not at all. How many."""
    words = np.array([str(i) for i in range(256)])
    count = 0
    with replacing(path) as temporary, temporary.open("w", **CSV) as file:
        rows = csv.writer(file)
        rows.writerow(_HEADER)
        for name, mask in masks:
            rows.writerow((name, " ".join(words[mask.ravel()])))
            count += 1
    return count


def read(
    path: Path, classes: int, wanted: Iterable[str], size: int = SIZE
) -> dict[str, np.ndarray]:
    """Masks uint8 (size, size) of the images `wanted`, by name. UserError: which line is not as it
    should be, or which images are missing or unknown."""
    csv.field_size_limit(2**31 - 1)
    found: dict[str, np.ndarray] = {}
    try:
        with regular(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if tuple(word.strip() for word in header) != _HEADER:
                given = ",".join(header)[:80]
                raise UserError(f"{path}: its first line is '{given}'; write {','.join(_HEADER)}.")
            for name, *cells in filter(None, rows):
                ids = _ids(cells)
                low, high = ids.min(initial=0), ids.max(initial=0)
                if len(ids) != size * size or low < 0 or high >= classes or name in found:
                    raise UserError(
                        f"{path}, line {rows.line_num}: '{short(name, 80)}' has {len(ids):,} ids "
                        f"from {low} to {high}; {size}x{size} = {size * size:,} from 0 to "
                        f"{classes - 1}, apart by spaces, are expected (--size says another "
                        "size), in one row an image."
                    )
                found[name] = ids.astype(np.uint8).reshape(size, size)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as a submission ({error}).") from error
    wanted = set(wanted)
    lacks, more = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if lacks or more:
        raise UserError(
            f"{path}: of {len(wanted)} images {len(lacks)} are missing {lacks[:3]}, and "
            f"{len(more)} are unknown here {more[:3]}. Is it of another split or data set?"
        )
    return found


def _ids(cells: list[str]) -> np.ndarray:
    """The whole numbers in a row's only further cell; none where it has something else."""
    try:
        return np.array(cells[0].split() if len(cells) == 1 else [], np.int64)
    except (ValueError, OverflowError):
        return np.empty(0, np.int64)

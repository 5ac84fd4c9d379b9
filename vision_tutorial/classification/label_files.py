"""CSV files of names and labels: a submission, or what `predict` writes."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.atomic import regular
from ..core.errors import UserError, short, some

NAMES = ("image", "id", "image_id", "file", "filename", "file_name", "name", "path")
LABELS = ("label", "class", "class1", "target", "category", "prediction")


def read_labels(
    path: Path, name_column: str | None = None, label_column: str | None = None
) -> dict[str, str]:
    """The label of each name, by the columns that are named, or the usual ones. UserError for a
    file that lacks them, has no rows, or a row without name or label, or a name twice."""
    found: dict[str, str] = {}
    try:
        with regular(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            heads = {head.strip().lower(): head for head in rows.fieldnames or () if head}
            given = short(", ".join(map(str, rows.fieldnames or ())), 80)

            def column(wanted: str | None, usual: Sequence[str]) -> str:
                for head in usual if wanted is None else (wanted.strip().lower(),):
                    if head in heads:
                        return heads[head]
                expected = f"'{wanted}'" if wanted else f"one of {', '.join(usual)}"
                raise UserError(f"{path}: its columns are '{given}'; {expected} is expected.")

            name, label = column(name_column, NAMES), column(label_column, LABELS)
            for row in rows:
                if not (row[name] and row[label]) or row[name] in found:
                    said = short(str(row[name]), 80)
                    raise UserError(
                        f"{path}, line {rows.line_num}: '{said}' is there twice, or has no label."
                    )
                found[row[name]] = row[label].removeprefix("'")  # what protects a spreadsheet
            if not found:
                raise UserError(f"{path} has no rows.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as a table of labels ({error}).") from error
    return found


def top1(path: Path, classes: Sequence[str], truth: Iterable[tuple[str, int]]) -> float:
    """Top-1 in per cent of the labels in a file, by name or number of the class.

    truth: name and class id of every image. UserError where images are missing or unknown.
    """
    said = read_labels(path)
    ids = {str(number): number for number in range(len(classes))}
    ids |= {name: number for number, name in enumerate(classes)}
    expected = dict(truth)
    if unknown := sorted({label for label in said.values() if label not in ids}):
        raise UserError(f"{path}: no classes called {some(unknown)}.")
    lacks, more = sorted(expected.keys() - said.keys()), sorted(said.keys() - expected.keys())
    if lacks or more:
        raise UserError(
            f"{path}: of {len(expected)} images {len(lacks)} are missing {lacks[:3]}, and "
            f"{len(more)} are unknown here {more[:3]}. Is it of another split or data set?"
        )
    right = sum(ids[said[name]] == target for name, target in expected.items())
    return 100 * right / len(expected)

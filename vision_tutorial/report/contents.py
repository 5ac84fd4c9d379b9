"""Runs -> all that the page shows, as JSON's types. Every text from a run folder is untrusted."""

import base64
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ..core.errors import UserError, short
from ..recipe.loading import read_back
from ..recipe.notation import FORMS, Notation, duration, entries, flat, number, scalar
from ..runs.reader import Point, Run, local_time
from ..runs.reproducibility import facts
from ..runs.seed_statistics import Sample
from ..tables import labels
from ..tables.comparison import changed_in_base, rows_of
from ..tables.layouts import View, generic
from . import gallery_files
from .gallery_files import Gallery

_MOST_POINTS = 2000  # of a curve; of more epochs, every second one, or third, …
_MOST_LETTERS = 2000  # of any text
_MOST_CLASSES = 1000
PER_CENT = ("top1", "iou", "accuracy", "precision", "boundary_iou")
_NO_CURVE = ("epoch", "step")
_ELSEWHERE = ("created", "recipe")  # of the fingerprint: shown with the run

_Words = dict[str, str]


def contents(
    runs: Sequence[Run], complaints: Sequence[str], language: str, most_bytes: int
) -> dict[str, Any]:
    """Everything on the page but its title and age. most_bytes: of all embedded images."""
    words = labels.words(language, __package__)
    images: dict[str, str] = {}
    complaints, shown, room = list(complaints), [], most_bytes
    for run, label in zip(runs, run_labels(runs), strict=True):
        try:
            gallery, added = _gallery(run, images)
            size = sum(map(len, added.values()))
            if size > room:
                mib = f"{most_bytes / 2**20:g}"
                raise UserError(words["no_room"].format(run=run.folder, mib=mib))
        except UserError as error:
            complaints.append(str(error))
            gallery, added, size = None, {}, 0
        room -= size
        images |= added
        shown.append({"label": label, **_described(run, gallery, words, language)})
    return {
        "lang": language,
        "words": words,
        "runs": shown,
        "comparison": _comparison(runs, language),
        "complaints": [_cut(line) for line in complaints],
        "images": images,
    }


def _gallery(run: Run, known: Collection[str]) -> tuple[Gallery | None, dict[str, str]]:
    """A run's gallery, None without one; and its images that are not known yet, as data URIs."""
    if run.folder is None or not gallery_files.exists(run.folder):
        return None, {}
    gallery, found = gallery_files.read(run.folder), {}
    for image in gallery_files.images(gallery):
        if image.name not in known:
            data = base64.b64encode(gallery_files.image_bytes(run.folder, image)).decode()
            found[image.name] = f"data:image/{image.name.rpartition('.')[2]};base64,{data}"
    return gallery, found


def run_labels(runs: Sequence[Run]) -> list[str]:
    """The name of each run, with its folder's where others have that name; numbered if need be."""
    made = [row.label for row in rows_of(runs, each=True)]
    twice, seen = Counter(made), Counter()
    for place, label in enumerate(made):
        seen[label] += 1
        if twice[label] > 1:
            made[place] = f"{label} ({seen[label]})"
    return [short(label, 140) for label in made]


def _comparison(runs: Sequence[Run], language: str) -> dict[str, Any]:
    """`compare`'s table, with the best value in front; a row names the places of its runs."""
    places = {id(run): place for place, run in enumerate(runs)}
    view = View(rows_of(runs), language)
    table = generic(view, best_first=True)
    rows = []
    for line, values, texts in zip(view.rows, table.rows, table.texts(), strict=True):
        cells = []
        for value, text in zip(values, texts, strict=True):
            key = number(value.mean if isinstance(value, Sample) else value)  # to sort by
            if key is None and not (value is None or isinstance(value, Sample)):
                key = _cut(scalar(value))
            cells.append({"value": key, "text": _cut(text)})
        rows.append({"runs": [places[id(run)] for run in line.runs], "cells": cells})
    titles = [{"title": c.title, "number": c.kind != "text"} for c in table.columns]
    return {"columns": titles, "rows": rows, "notes": [_cut(note) for note in table.notes]}


def _described(run: Run, gallery: Gallery | None, words: _Words, language: str) -> dict[str, Any]:
    environment = facts({k: v for k, v in run.fingerprint.items() if k not in _ELSEWHERE})
    return {
        "headline": run.metric,
        "facts": [[name, _cut(value)] for name, value in _facts(run, words, language) if value],
        "notes": [[_cut(local_time(note.time)), _cut(note.text)] for note in run.notes],
        "link": run.link,
        "series": _series(run),
        "classes": _classes(run, words),
        "confusion": _confusion(run, gallery, words),
        "recipe": _recipe(run.typed),
        "base": _base(run),
        "environment": {_cut(k): _cut(scalar(v)) for k, v in environment.items() if v is not None},
        "gallery": gallery and _shown_gallery(gallery, words),
    }


def _facts(run: Run, said: _Words, language: str) -> Iterator[tuple[str, str | None]]:
    def point(found: Point | None) -> str | None:
        return found and said["point"].format(value=f"{found.value:.4g}", epoch=found.epoch)

    yield said["status"], labels.state_word(run.status, language)
    yield f"{said['best']} {run.metric or ''}", point(run.best)
    yield f"{said['last']} {run.metric or ''}", point(run.last)
    claims = (f"{name} {scalar(value)}" for name, value in run.expects.items())
    yield said["expected"], ", ".join(claims)
    yield said["chosen_on"], run.chosen_on
    yield said["epochs"], str(run.epochs)
    yield said["time"], duration(run.seconds) if run.seconds else None
    yield said["created"], run.created and local_time(run.created)
    if run.base:
        yield said["changed"].format(base=run.base), changed_in_base(run)
    yield said["folder"], str(run.folder) if run.folder else None


def _series(run: Run) -> dict[str, dict[str, list]]:
    """Every column of metrics.jsonl over epochs: {name: {x, y}}; y is None where not finite."""
    rows = [row for row in run.rows if number(row.get("epoch")) is not None]
    if len(rows) > _MOST_POINTS:
        rows = rows[-1 :: -math.ceil(len(rows) / _MOST_POINTS)][::-1]
    found: dict[str, dict[str, list]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in _NO_CURVE and (value is None or isinstance(value, int | float)):
                curve = found.setdefault(short(name, 80), {"x": [], "y": []})
                curve["x"].append(number(row["epoch"]))
                curve["y"].append(_rounded(value))
    return {name: curve for name, curve in found.items() if any(y is not None for y in curve["y"])}


def _rounded(value: Any) -> float | None:
    found = number(value)
    return None if found is None else float(f"{found:.6g}")


def _classes(run: Run, said: _Words) -> dict[str, Any] | None:
    """The table of classes.json, and the place of its headline column; None without one."""
    table = {name: column for name, column in run.classes.items() if name != "confusion"}
    names = [name for name in ("top1", "iou") if name in table]
    if "class" not in table or not names:
        return None
    counts = [name for name in ("images", "pixels") if name in table][:1]
    keys = ["class", *counts, *(name for name in PER_CENT if name in table)]
    per_cent = {"most": 100, "digits": 2}
    titles = [{"title": said[key], **(per_cent if key in PER_CENT else {})} for key in keys]
    rows = [
        [short(str(name), 80), *(_rounded(value) for value in values)]
        for name, *values in zip(*(table[key] for key in keys), strict=True)
    ]
    return {"columns": titles, "rows": rows[:_MOST_CLASSES], "headline": keys.index(names[0])}


def _confusion(run: Run, gallery: Gallery | None, said: _Words) -> dict[str, Any] | None:
    """The matrix of classes.json, else of the gallery; None without either."""
    matrix, names = run.classes.get("confusion"), run.classes.get("class")
    unit = "pixels" if "pixels" in run.classes else "images"
    if matrix is None and gallery:
        matrix, names, unit = gallery.confusion, gallery.classes, "images"
    if not matrix or not names or not 1 < len(names) <= gallery_files.MOST_CLASSES:
        return None
    square = len(matrix) == len(names) and all(
        isinstance(row, list | tuple) and len(row) == len(names) for row in matrix
    )
    counts = [[number(cell) for cell in row] for row in matrix] if square else [[None]]
    if any(cell is None or cell < 0 for row in counts for cell in row):
        return None
    counts = [[round(cell) for cell in row] for row in counts]
    return {"names": [short(str(x), 60) for x in names], "matrix": counts, "unit": said[unit]}


def _recipe(values: dict[str, Any]) -> dict[str, str]:
    """Every key of a recipe in words; of a chain, a line for each entry."""
    written = Notation([], everything=True)

    def cell(key: str, value: Any) -> str:
        if FORMS.get(key) == "list":
            return "\n".join(written.words(key, entry) for entry in entries(value))
        return scalar(written.cell(values, key))

    return {_cut(key): _cut(cell(key, x)) for key, x in flat(values).items() if key != "aux_loss"}


def _base(run: Run) -> dict[str, Any] | None:
    """What the recipe extends: its name, and in what it differs (None: it lacks the key)."""
    if run.base is None:
        return None
    mine, theirs = _recipe(run.typed), _recipe(read_back(run.base_recipe))
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    return {"name": short(run.base, 80), "recipe": {key: theirs.get(key) for key in keys}}


def _cut(text: str) -> str:
    kept = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"
    return kept.encode("utf-8", "replace").decode("utf-8")


def _shown_gallery(gallery: Gallery, said: _Words) -> dict[str, Any]:
    shown = gallery.model_dump(
        include={"right", "wrong", "worst", "masks", "palette", "microscope"}, mode="json"
    )
    values = {"images": f"{gallery.images:,}", "split": gallery.split, "weights": gallery.weights}
    return shown | {"about": said["about_gallery"].format(**values)}

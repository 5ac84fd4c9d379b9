"""A look at the data before training: how often each class is there, in both splits.

Masks whose classes are all void, or one, train on nothing and score 100 %. What cannot be meant is
refused in one line; what is odd is said, beside the shares of the classes.
"""

import hashlib
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..core.atomic import replacing
from ..core.errors import StorageError, UserError, all_at_once, counted, some
from ..core.images import VOID, check_ids
from ..core.sources import Source, base, failures, kept_at, origins
from ..recipe.grammar import Choice

COMPARED = 20_000  # images, up to which those of val are looked for in train
MOMENT = 2.0  # seconds; counting that takes longer is kept


@dataclass(frozen=True)
class ClassCounts:
    """Of one split: how many images have each class, and how many pixels are of it, int64 (C,);
    in classification both are images. void: pixels; void_images: those with nothing else."""

    classes: tuple[str, ...]
    images: np.ndarray
    pixels: np.ndarray
    void: int = 0
    void_images: int = 0


def look(train: Source, val: Source, dataset: Choice) -> list[str]:
    """A line on each split's classes, and a warning for all that is odd with them.

    UserError: what cannot be trained on, or not be scored; all files that are bad, in one.
    """
    both, problems = {}, []
    for name, source in {"train": train, "val": val}.items():
        both[name], found = count(source)
        problems += found
    if problems:
        raise all_at_once(problems, "images")
    for name, counts in both.items():
        _refuse(name, counts, dataset, train.dense)
    lines = [_shares(name, counts, train.dense) for name, counts in both.items()]
    odd = _odd(*both.values(), dataset, train.dense)
    if twice := _in_both(train, val):
        where = f"{len(twice):,} of {len(val):,} images of val are in train, too"
        odd.append(f"{where}, where they can be learned by heart: {some(twice)}")
    return lines + [f"warning: {line}" for line in odd]


# -- counting --------------------------------------------------------------------------------------


def count(source: Source) -> tuple[ClassCounts, list[str]]:
    """The counts of a source; and what is wrong with its masks, or their sizes."""
    classes = len(source.classes)
    if not source.dense:
        low, high = source.targets.min(), source.targets.max()
        if low < 0 or high >= classes:
            raise UserError(
                f"{source.name}: labels from {low} to {high}, for {classes} classes. Number them "
                "from 0 in `targets`, or name all classes."
            )
        found = np.bincount(source.targets, minlength=classes)
        return ClassCounts(source.classes, found, found), []
    table, problems = _of_each_image(source)
    pixels, void = table[:, :classes], table[:, VOID]
    counts = ((pixels > 0).sum(0), pixels.sum(0), int(void.sum()), int((pixels.sum(1) == 0).sum()))
    return ClassCounts(source.classes, *counts), problems


def _of_each_image(source: Source) -> tuple[np.ndarray, list[str]]:
    """Pixels of each id in each image, int32 (N, 256), and problems. Kept in the cache folder where
    counting takes more than a moment."""
    places, table, file = origins(source), np.zeros((len(source), 256), np.int32), None
    if getattr(base(source), "known_digest", True):  # else made here: hashed as slowly as counted
        with suppress(OSError, EOFError, ValueError):  # not there, damaged; no home
            file = Path(f"{kept_at(source, 'class_counts')}.npy")
            found = np.load(file, allow_pickle=False)
            if found.shape == table.shape:
                return found, []

    def look(index: int) -> None:
        leaf, at = places[index]
        mask = np.asarray(leaf.target(at) if hasattr(leaf, "target") else leaf[at][1])
        check_ids(mask, len(source.classes), source.key(index))
        table[index] = np.bincount(mask.ravel(), minlength=256)

    began = time.perf_counter()
    bad = failures(look, len(places), f"counting the classes of {source.name}")
    if file and not bad and time.perf_counter() - began > MOMENT:
        with suppress(OSError, StorageError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part, part.open("wb") as content:
                np.save(content, table)
    return table, list(bad.values())


def _in_both(train: Source, val: Source) -> list[str]:
    """Images of val, in files once, that are byte for byte in train; of COMPARED at most."""
    files = [(leaf, at, None) for leaf, at in origins(train)]
    files += [(leaf, at, val.key(index)) for index, (leaf, at) in enumerate(origins(val))]
    named = all(getattr(leaf, "paths", None) or getattr(leaf, "keys", None) for leaf, *_ in files)
    alike = [files] if named and len(files) <= COMPARED else []
    for mark in (_length, _middle, _digest):  # each closer than the one before, and dearer
        parts = defaultdict(list)
        for number, group in enumerate(alike):
            for leaf, at, key in group:
                parts[number, mark(leaf, at)].append((leaf, at, key))
        alike = [group for group in parts.values() if len({key is None for *_, key in group}) == 2]
    return [key for group in alike for *_, key in group if key is not None]


def _length(leaf: Source, at: int) -> int:
    return leaf.images[at].size if hasattr(leaf, "images") else leaf.paths[at].stat().st_size


def _middle(leaf: Source, at: int) -> bytes:
    if hasattr(leaf, "images"):
        return leaf.images[at][len(leaf.images[at]) // 2].tobytes()
    with leaf.paths[at].open("rb") as file:
        file.seek(_length(leaf, at) // 2)
        return file.read(1024)


def _digest(leaf: Source, at: int) -> bytes:
    content = leaf.images[at].tobytes() if hasattr(leaf, "images") else leaf.paths[at].read_bytes()
    return hashlib.sha256(content).digest()


# -- judging ---------------------------------------------------------------------------------------


def _refuse(name: str, counts: ClassCounts, dataset: Choice, dense: bool) -> None:
    """UserError for a split that teaches, or says, nothing."""
    there = np.flatnonzero(counts.images)
    what = "pixel" if dense else "image"

    def refuse(problem: str, todo: str) -> NoReturn:
        raise UserError(f"{dataset.name}, {name}: {problem}. {todo}")

    if not len(there):
        todo = "Annotate some, or choose on a part of the training images: holdout=0.1."
        refuse(f"all {what}s are void (nothing is annotated), so nothing counts", todo)
    if len(counts.classes) > 1 and (len(there) > 1 or name == "val"):
        return
    label = there[0]
    one = f"'{counts.classes[label]}'"
    problem = f"every {what} that counts is of one class, {one}, so there is nothing to learn"
    if not dense:
        refuse(problem, "Give a folder for each of two classes or more, or a larger subset.")
    todo = "Two classes are needed, such as an object and its background."
    if counts.void:
        share = f"{100 * counts.void / (counts.void + counts.pixels.sum()):.1f} %"
        problem += f" ({share} are void)"
        todo = "Masks with 255 are usual for one object and its background, and 255 is void"
        if "map" in dataset.options:
            key, other = f"dataset.{dataset.name}", 0 if label else 1
            todo += f": {key}.map={{255: {other}}} makes it class {other}"
            if dataset.options.get("void") is not None:
                todo += f", {key}.void=null gives id {dataset.options['void']} back"
        else:
            todo += ": write another id in the files"
        todo += "."
    refuse(problem, todo)


def _shares(name: str, counts: ClassCounts, dense: bool) -> str:
    """One line: the rarest and the most frequent class, and what is void."""
    total, order = counts.pixels.sum(), np.argsort(counts.pixels, kind="stable")
    order = order[counts.pixels[order] > 0]
    few, many = order[0], order[-1]

    def amount(label: int) -> str:
        if not dense:
            return counted(counts.pixels[label], "image")
        return f"{100 * counts.pixels[label] / total:.3g} %"

    text = f"{name}: {counted(len(order), 'class')}"
    if counts.pixels[few] == counts.pixels[many]:
        return f"{text}, {amount(few)} each"
    text += f", from {amount(few)} ('{counts.classes[few]}')"
    text += f" to {amount(many)} ('{counts.classes[many]}')"
    if dense:
        text += f" of the pixels that count; {100 * counts.void / (counts.void + total):.3g} % void"
    return text


def _odd(train: ClassCounts, val: ClassCounts, dataset: Choice, dense: bool) -> list[str]:
    """What may be a mistake, each in a line."""
    what = "a pixel" if dense else "an image"
    in_train, in_val = train.images > 0, val.images > 0
    dead = dataset.options.get("void")
    because = f" (void is {dead})" if dead is not None else ""
    texts = {
        f"classes without {what} in train or val{because}": ~in_train & ~in_val,
        f"classes without {what} in train, which cannot be learned": ~in_train & in_val,
        f"classes without {what} in val, which are not scored": in_train & ~in_val,
        "classes in one image of train only": train.images == 1,
    }
    lower = [name.casefold() for name in train.classes]
    texts["classes of one name but for its case"] = np.array([lower.count(x) > 1 for x in lower])
    lines = []
    for text, where in texts.items():
        if (labels := np.flatnonzero(where)).size:
            names = some([f"{train.classes[label]} ({label})" for label in labels])
            lines.append(f"{text}: {names}")
    if in_val.sum() == 1 and in_train.sum() > 1:
        name = val.classes[int(np.flatnonzero(in_val)[0])]
        lines.append(f"only class {name} is in val: its score says little")
    void = {"train": train.void_images, "val": val.void_images}
    if any(void.values()):
        parts = " and ".join(f"{n:,} of {name}" for name, n in void.items() if n)
        lines.append(f"images that are void as a whole, from which nothing is learned: {parts}")
    return lines

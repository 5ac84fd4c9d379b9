"""A class's runs as one table a task: a line for each person, the best first."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import short
from ..recipe.notation import scalar
from ..runs.reader import Run, local_time
from ..runs.seed_statistics import Sample, confidence_interval, pooled
from .comparison import rows_of
from .table import Column, Table

# Where data lies and how it is read is no part of the task.
_NOT_THE_TASK = {"root", "download", "cache", "skip_unreadable", "follow_links"}
_COLUMNS = (
    Column("rank", "rank"),
    Column("author", "author"),
    Column("score", "score", "number"),
    Column("last", "last epoch", "number"),
    Column("noise", "vs. first"),
    Column("recipe", "recipe"),
    Column("runs", "runs", "number"),
    Column("when", "when"),
)
_RULE = (
    "score: the mean over seeds of the best epoch, of each person's recipe for which that is {}; "
    "only finished runs count"
)
_RULE_OF_FILES = "score: of each person's files the best one"
_OF_FILES = {"recipe": "file", "runs": "files"}


class BoardEntry(NamedTuple):
    """What a person has to show for a task. runs: how many there are; of: where the score is of."""

    author: str
    score: Sample
    of: str
    runs: int
    last: float | None = None
    when: str = ""
    higher_is_better: bool = True


def boards(
    runs: Sequence[Run],
    author: Callable[[Run], str],
    scored: Sequence[tuple[str, BoardEntry]] = (),
) -> dict[str, Table]:
    """A table for each task, by its name. scored: submissions, each with the name of its task."""
    tasks: dict[str, list[BoardEntry]] = defaultdict(list)
    by_person: dict[tuple[str, str], list[Run]] = defaultdict(list)
    unfinished: dict[str, int] = defaultdict(int)
    for run in runs:
        if run.metric is None:
            continue
        name = task_of(run)
        if run.status == "done" and run.best is not None:
            by_person[name, author(run)].append(run)
        else:
            unfinished[name] += 1
    for (name, person), own in by_person.items():
        sign = 1 if own[0].higher_is_better else -1
        row = max(rows_of(own), key=lambda row: sign * row.best.mean)
        when = local_time(max(run.created or "" for run in row.runs))[:10]
        last = row.last and row.last.mean
        entry = BoardEntry(person, row.best, row.label, len(own), last, when, sign > 0)
        tasks[name].append(entry)
    for name, entry in scored:
        tasks[name].append(entry)
    return {name: _table(found, unfinished[name]) for name, found in sorted(tasks.items())}


def _table(entries: Sequence[BoardEntry], unfinished: int) -> Table:
    sign = -1 if entries[0].higher_is_better else 1
    ranked = sorted(entries, key=lambda entry: (sign * entry.score.mean, entry.author))
    elsewhere = pooled(entry.score for entry in ranked)
    shown = [f"{entry.score.mean:.2f}" for entry in ranked]
    rows: list[tuple[Any, ...]] = []
    for entry, score in zip(ranked, shown, strict=True):
        rank = f"{shown.index(score) + 1}{'=' * (shown.count(score) > 1)}"
        limit = confidence_interval(ranked[0].score, entry.score, elsewhere)
        noise = ""
        if limit is not None and rows:
            difference = abs(ranked[0].score.mean - entry.score.mean)
            noise = "within noise" if difference <= limit else "beyond noise"
        who, recipe = short(entry.author, 60), short(entry.of, 60)
        more = (entry.last, noise, recipe, entry.runs, entry.when)
        rows.append((rank, who, entry.score, *more))
    of_files = all(entry.last is None for entry in ranked)
    rule = _RULE.format("highest" if sign < 0 else "lowest")
    notes = [_RULE_OF_FILES if of_files else rule]
    if len({*shown}) < len(shown):
        notes.append("=: equal to two digits, and the rank is shared")
    if elsewhere:
        notes.append("noise: what two means may differ by through their seeds alone (95 %)")
    elif not of_files:
        notes.append("nobody has run two seeds, so how much is noise is not known")
    if unfinished:
        notes.append(f"not counted: {unfinished} unfinished")
    filled = [n for n in range(len(_COLUMNS)) if any(row[n] not in (None, "") for row in rows)]
    kept = tuple(tuple(row[n] for n in filled) for row in rows)
    columns = [_COLUMNS[n] for n in filled]
    if of_files:
        columns = [replace(c, title=_OF_FILES.get(c.key, c.title)) for c in columns]
    return Table(tuple(columns), kept, tuple(notes), heads=2)


def task_of(run: Run) -> str:
    """What a run's score measures, in words: data set, metric, and what the best epoch was chosen
    on."""
    dataset = run.typed.get("dataset")
    options = dict(getattr(dataset, "options", {}) or {})
    kept = {k: v for k, v in options.items() if k not in _NOT_THE_TASK and v is not None}
    words = [f"{k} {short(json.dumps(v, default=str), 60)}" for k, v in sorted(kept.items())]
    name = getattr(dataset, "name", scalar(dataset))
    more = f" ({', '.join(words)})" if words else ""
    held = run.recipe.get("holdout")
    on = f"{held:g} of train" if held else run.chosen_on or "test"
    return f"{short(name, 60)}{more}: {(run.metric or '').removeprefix('val/')} on {on}"


def author_of(run: Run, root: Path, by: str = "author") -> str:
    """Whose run it is: as the run says, else the folder below `root`; by `folder`: that first."""
    said = run.fingerprint.get("author")
    said = said.strip() if isinstance(said, str) else ""
    inside = _inside(run, root)
    folder = inside[0] if len(inside) > 1 else ""
    return ((folder or said) if by == "folder" else (said or folder)) or "unknown"


def shared_names(runs: Sequence[Run], root: Path) -> list[str]:
    """A line for each author who has runs in several people's folders, such as `root` of Colab."""
    folders: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        if len(inside := _inside(run, root)) > 2:  # person/recipe/id, not recipe/id
            folders[author_of(run, root)].add(inside[0])
    return [
        f"{short(author, 60)}: their runs lie in {len(found)} folders of {short(str(root), 100)}. "
        "If these are people, say --by folder."
        for author, found in sorted(folders.items())
        if len(found) > 1
    ]


def _inside(run: Run, root: Path) -> tuple[str, ...]:
    try:
        return run.folder.absolute().relative_to(root.absolute()).parts
    except (AttributeError, ValueError):
        return ()

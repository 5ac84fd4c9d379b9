"""A class's runs as one table a task: a line for each person, the best first."""

import json
from collections import defaultdict
from collections.abc import Sequence
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
    Column("noise", "beside the rank above"),
    Column("recipe", "recipe"),
    Column("runs", "runs", "number"),
    Column("when", "when"),
)
_RULE = (
    "score: of each person the recipe with the highest mean over its seeds of the best epoch; only "
    "finished runs count"
)


class BoardEntry(NamedTuple):
    """What a person has to show for a task. runs: how many there are; of: where the score is of."""

    author: str
    score: Sample
    of: str
    runs: int
    last: Sample | None = None
    when: str = ""
    higher_is_better: bool = True


def boards(runs: Sequence[Run], root: Path, scored: Sequence[tuple[str, BoardEntry]] = ()) -> dict:
    """A table for each task, by its name. root: of the class; below it a folder for each person.

    scored: submissions, each with the name of its task.
    """
    tasks: dict[str, list[BoardEntry]] = defaultdict(list)
    by_person: dict[tuple[str, str], list[Run]] = defaultdict(list)
    unfinished: dict[str, int] = defaultdict(int)
    for run in runs:
        if run.metric is None:
            continue
        name = task_of(run)
        if run.status == "done" and run.best is not None:
            by_person[name, author_of(run, root)].append(run)
        else:
            unfinished[name] += 1
    for (name, author), own in by_person.items():
        sign = 1 if own[0].higher_is_better else -1
        row = max(rows_of(own), key=lambda row: sign * row.best.mean)
        when = local_time(max(run.created or "" for run in row.runs))[:10]
        entry = BoardEntry(author, row.best, row.label, len(own), row.last, when, sign > 0)
        tasks[name].append(entry)
    for name, entry in scored:
        tasks[name].append(entry)
    return {name: _table(found, unfinished[name]) for name, found in sorted(tasks.items())}


def _table(entries: Sequence[BoardEntry], unfinished: int) -> Table:
    sign = -1 if entries[0].higher_is_better else 1
    ranked = sorted(entries, key=lambda entry: (sign * entry.score.mean, entry.author))
    elsewhere = pooled(entry.score for entry in ranked)
    rows: list[tuple[Any, ...]] = []
    rank = 0
    for place, entry in enumerate(ranked):
        above = ranked[place - 1] if place else None
        said = ""
        if above and f"{above.score.mean:.2f}" == f"{entry.score.mean:.2f}":
            said = "equal"
        else:
            rank = place + 1
            if above:
                limit = confidence_interval(above.score, entry.score, elsewhere)
                difference = abs(above.score.mean - entry.score.mean)
                said = "" if limit is None else "noise" if difference <= limit else "less"
        last, words = entry.last, (short(entry.author, 60), short(entry.of, 60))
        rows.append(
            (str(rank), words[0], entry.score, last, said, words[1], entry.runs, entry.when)
        )
    notes = [_RULE, "equal: to two digits, and the rank is shared"]
    if elsewhere:
        notes.append(
            "noise: the difference to the rank above is within what seeds differ by (95 %)"
        )
    else:
        notes.append("nobody has run two seeds, so how much is noise is not known")
    if unfinished:
        notes.append(f"not counted: {unfinished} unfinished")
    return Table(_COLUMNS, tuple(rows), tuple(notes))


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


def author_of(run: Run, root: Path) -> str:
    """Whose run it is: as the run says, else the folder below `root`."""
    said = run.fingerprint.get("author")
    if isinstance(said, str) and said.strip():
        return said.strip()
    try:
        inside = run.folder.absolute().relative_to(root.absolute()).parts
    except (AttributeError, ValueError):
        inside = ()
    return inside[0] if len(inside) > 1 else "unknown"

"""Runs beside each other: seeds as one row, parents, differences and what is noise in them."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..core.errors import UserError, unknown
from ..recipe import grammar
from ..recipe.loading import read_back
from ..recipe.notation import FORMS, changed, entries, find, flat, number
from ..runs.reader import Run, natural, recipe_key
from ..runs.seed_statistics import Sample, Spread, confidence_interval, pooled


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a table: one run, or finished runs that differ in their seed alone.

    runs: one of each seed. repeats: runs left out, since a newer one has their seed.
    """

    runs: tuple[Run, ...]
    label: str
    repeats: tuple[Run, ...] = ()

    @property
    def run(self) -> Run:
        """The first; all have its recipe."""
        return self.runs[0]

    @cached_property
    def best(self) -> Sample | None:
        """The headline metric at the best epoch of each run."""
        return _sample(run.best and run.best.value for run in self.runs)

    @cached_property
    def last(self) -> Sample | None:
        """The headline metric at the last evaluated epoch of each run."""
        return _sample(run.last and run.last.value for run in self.runs)

    @cached_property
    def seconds(self) -> Sample | None:
        """Wall-clock time of each run."""
        return _sample(run.seconds for run in self.runs)

    @property
    def done(self) -> bool:
        """Whether it was trained to the end and has a headline metric."""
        return self.run.status == "done" and self.best is not None

    @cached_property
    def measure(self) -> str:
        """Equal for rows whose headline metrics measure the same thing on the same images."""
        data = [self.run.recipe.get(key) for key in ("dataset", "holdout", "eval_augment")]
        return json.dumps([self.run.metric, self.run.chosen_on, *data], sort_keys=True)

    def measured(self, name: str) -> Sample | None:
        """Another metric, `top5`, at the best epoch of each run."""
        if f"val/{name}" == self.run.metric:
            return self.best
        best = {run: run.best.epoch for run in self.runs if run.best}
        rows = (row for run in best for row in run.rows if row.get("epoch") == best[run])
        return _sample(number(row.get(f"val/{name}")) for row in rows)


@dataclass(frozen=True)
class Delta:
    """From a parent's row to a row: what changed, and what came of it.

    interval: what would still be noise. borrowed: the spread between seeds of other runs that it
    comes from, where the two rows have none.
    """

    words: str
    parent: Row | None = None  # None: it is not among the runs
    value: float | None = None  # of the best; None: the two cannot be compared
    interval: float | None = None  # None: nobody knows
    borrowed: Spread | None = None

    @property
    def verdict(self) -> str | None:
        """within, beyond or unknown; None where the two cannot be compared."""
        if self.value is None or self.interval is None:
            return None if self.value is None else "unknown"
        return "within" if abs(self.value) <= self.interval else "beyond"


def _sample(values: Iterable[float | None]) -> Sample | None:
    known = tuple(value for value in values if value is not None)
    return Sample(known) if known else None


def rows_of(
    runs: Sequence[Run], each: bool = False, of: Callable[[Run], str] | None = None
) -> list[Row]:
    """Finished runs that differ in their seed alone as one row, every other run as its own.

    of: whose a run is; then each person has rows of their own, with their name in front.
    """
    if of:
        by_person: dict[str, list[Run]] = {}
        for run in runs:
            by_person.setdefault(of(run), []).append(run)
        made = [(who, row) for who in sorted(by_person) for row in rows_of(by_person[who], each)]
        return [replace(row, label=f"{who}: {row.label}") for who, row in made]
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        alone = each or run.status != "done" or run.best is None
        groups.setdefault(id(run) if alone else (run.experiment, run.metric), []).append(run)
    names = [group[0].name for group in groups.values()]
    rows = []
    for group in groups.values():
        by_age = sorted(group, key=lambda run: (run.created or "", run.id))
        newest = {json.dumps(run.recipe.get("seed")): run for run in by_age}.values()
        kept = tuple(run for run in group if run in newest)
        label = group[0].name
        if names.count(label) > 1:
            label = f"{kept[0].name}/{kept[0].id}"
        rows.append(Row(kept, label, tuple(run for run in group if run not in kept)))
    return rows


def ordered(made: Sequence[Row], key: str) -> list[Row]:
    """Sorted by best or last (the better first), time, run, created, status or a recipe's key."""

    def better_first(row: Row, sample: Sample | None) -> Any:
        sign = -1 if row.run.higher_is_better else 1
        return _number_first(sample and sign * sample.mean)

    keys = {
        "run": lambda row: natural(row.label),
        "created": lambda row: row.run.created or "",
        "status": lambda row: row.run.status,
        "time": lambda row: _number_first(row.seconds and row.seconds.mean),
        "best": lambda row: better_first(row, row.best),
        "last": lambda row: better_first(row, row.last),
    }
    if key not in keys:
        known = {name for row in made for name in flat(row.run.typed)}
        for row in made:
            named = ((form, entry) for form in FORMS for entry in entries(row.run.typed.get(form)))
            known |= {f"{form}.{option}" for form, entry in named for option in entry.options}
        if key not in known:
            raise UserError(unknown("column", key, {*keys, *known}))
    return sorted(made, key=keys.get(key, lambda row: _number_first(find(row.run.typed, key))))


def _number_first(value: Any) -> Any:
    """A key that puts numbers before words and nothing last."""
    if number(value) is not None:
        return (0, value, [])
    return (2, 0, []) if value is None else (1, 0, natural(json.dumps(grammar.plain(value))))


def delta_of(row: Row, groups: Sequence[Row], assumed: float | None = None) -> Delta | None:
    """What a row changed in the recipe that it extends, and what came of it; None without one.

    groups: all rows, seeds as one, to find the parent in. assumed: a spread between seeds for
    where no group has seeds.
    """
    if row.run.base is None:
        return None
    over = _parent(row.run, groups)
    if over is None:
        return Delta(changed_in_base(row.run))
    words = changed(over.run.typed, row.run.typed)
    if not (row.done and over.done and row.measure == over.measure):
        return Delta(words, over)
    borrowed = None
    if row.best.spread is None or over.best.spread is None:
        borrowed = pooled(x.best for x in groups if x.done and x.measure == row.measure)
        borrowed = borrowed or (None if assumed is None else Spread(assumed))
    interval = confidence_interval(row.best, over.best, borrowed)
    return Delta(words, over, row.best.mean - over.best.mean, interval, borrowed)


def changed_in_base(run: Run) -> str:
    """What a run's recipe changed in the one that it extends, in words."""
    before, after = ({key: pair[n] for key, pair in run.changes.items()} for n in (0, 1))
    return changed(read_back(before), read_back(after))


def _parent(run: Run, groups: Sequence[Row]) -> Row | None:
    """The row of the recipe that a run's extends: the very same one, else one of that file."""

    def differing(recipe: dict[str, Any]) -> int:
        return sum(recipe.get(key) != value for key, value in run.recipe.items())

    before = recipe_key(run.base_recipe)
    others = [other for other in groups if other.run.key != run.key]
    same = [other for other in others if other.run.key == before]
    named = [other for other in others if other.run.origin.get("file") == run.base]
    return min(
        same or named,
        key=lambda other: (not other.done, differing(other.run.recipe)),
        default=None,
    )

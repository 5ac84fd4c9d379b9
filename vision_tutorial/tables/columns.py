"""Columns of tables of runs: what differs, what came of it, what was expected, what is noise."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..recipe.notation import Notation
from .comparison import Delta, Row, delta_of, rows_of, usual
from .labels import key_words, state_word, word
from .table import Column, Table

_MOST_IDS = 5  # named in a note


class Field(NamedTuple):
    """A column, and how a row fills it."""

    column: Column
    value: Callable[[Row], Any]


@dataclass(frozen=True, eq=False)
class View:
    """Lines to be shown, and how. everything: every key of the recipes, not what differs.

    spread: between seeds, to be assumed where nothing has seeds.
    """

    rows: Sequence[Row]
    language: str = "en"
    everything: bool = False
    spread: float | None = None

    def say(self, key: str, **values: str) -> str:
        """A word in the view's language."""
        return word(key, self.language, **values)

    def field(
        self, key: str, value: Callable[[Row], Any], kind: Any = "text", **words: str
    ) -> Field:
        """A field whose head is the word `key`."""
        return Field(Column(key, self.say(key, **words), kind, self.digits), value)

    @cached_property
    def metric(self) -> str:
        """The headline metric, `top1`; "" where the rows have several."""
        names = {row.run.metric for row in self.rows if row.run.metric}
        return names.pop().removeprefix("val/") if len(names) == 1 else ""

    @property
    def digits(self) -> int:
        """After the dot: losses are small."""
        return 4 if self.metric.endswith(("loss", "cross_entropy")) else 2

    @cached_property
    def notation(self) -> Notation:
        """The notation of the rows' recipes."""
        return Notation([row.run.typed for row in self.rows], self.everything)

    @cached_property
    def groups(self) -> list[Row]:
        """The rows, with all seeds of an experiment as one, whether or not they are shown so."""
        return rows_of([run for row in self.rows for run in (*row.runs, *row.repeats)])

    @cached_property
    def deltas(self) -> dict[Row, Delta | None]:
        """What each row changed in the recipe that it extends."""
        return {row: delta_of(row, self.groups, self.spread) for row in self.rows}


def table(view: View, fields: Iterable[Field]) -> Table:
    """The table of these fields, with notes on what its signs mean."""
    fields = list(fields)
    rows = [tuple(field.value(row) for field in fields) for row in view.rows]
    columns = tuple(field.column for field in fields)
    judged = any(column.key == "noise" for column in columns)
    return Table(columns, tuple(rows), (*_notes(view), *(_noise_notes(view) if judged else ())))


def status(view: View) -> Iterable[Field]:
    """How each run stands, unless all are done."""
    if any(row.run.status != "done" for row in view.rows):
        yield view.field("status", lambda row: state_word(row.run.status, view.language))


def recipes(view: View) -> Iterable[Field]:
    """The keys in which the recipes differ, or all keys."""

    for key in view.notation.columns:
        column = Column(key, key_words(key, view.language))
        yield Field(column, lambda row, key=key: view.notation.cell(row.run.typed, key))


def results(view: View) -> Iterable[Field]:
    """Best and last of the headline metric, other metrics that a recipe has a claim on, claims."""
    claims = {name for row in view.rows for name in row.run.expects} - {"minutes"}
    if not view.metric:
        yield view.field("metric", lambda row: row.run.metric)
    if len({row.run.chosen_on for row in view.rows} - {None}) > 1:
        yield view.field("chosen_on", lambda row: row.run.chosen_on)
    yield view.field("best", lambda row: row.best, "number", metric=view.metric)
    yield from claim(view, view.metric)
    yield view.field("last", lambda row: row.last, "number", metric=view.metric)
    for name in sorted(claims - {view.metric}):
        column = Column(name, name, "number", view.digits)
        yield Field(column, lambda row, name=name: row.measured(name))
        yield from claim(view, name)


def claim(view: View, name: str) -> Iterable[Field]:
    """What recipes expect of a metric, if one does."""
    if any(name in row.run.expects for row in view.rows):
        title = view.say("expected", metric=name)
        column = Column(f"expected_{name}", title, "number", view.digits)
        yield Field(column, lambda row: row.run.expects.get(name))


def progress(view: View) -> Iterable[Field]:
    """What each recipe changed in the one it extends, what came of it, whether that is noise."""

    def over(row: Row) -> str | None:
        delta = view.deltas[row]
        return delta.parent.label if delta and delta.parent else None

    def verdict(row: Row) -> str | None:
        delta = view.deltas[row]
        return None if delta is None or delta.value is None else view.say(delta.verdict)

    found = view.deltas.values()
    if any(found):
        yield view.field("changed", lambda row: getattr(view.deltas[row], "words", None))
    if any(delta and delta.parent for delta in found):
        yield view.field("over", over)
        yield view.field("delta", lambda row: getattr(view.deltas[row], "value", None), "signed")
        yield view.field("noise", verdict)


def times(view: View) -> Iterable[Field]:
    """Wall-clock time, and what was expected."""
    yield view.field("seconds", lambda row: row.seconds, "duration")
    if any("minutes" in row.run.expects for row in view.rows):
        claims = {row: row.run.expects.get("minutes") for row in view.rows}
        seconds = {row: None if claim is None else 60 * claim for row, claim in claims.items()}
        yield view.field("expected_seconds", seconds.get, "duration")


# -- what stands below -----------------------------------------------------------------------------


def _notes(view: View) -> Iterable[str]:
    if any(row.best and row.best.n > 1 for row in view.rows):
        yield view.say("mean")
    repeats = [run for row in view.rows for run in row.repeats]
    if repeats:
        ids = [f"{run.name}/{run.id}" for run in repeats[:_MOST_IDS]]
        more = [f"… ({len(repeats)})"] * (len(repeats) > _MOST_IDS)
        yield view.say("repeats", ids=", ".join(ids + more))


def _noise_notes(view: View) -> Iterable[str]:
    """The rule by which a difference is noise, and which spread a single run is given."""
    notes = {}  # each once, in order
    for row, delta in view.deltas.items():
        if delta is None or delta.value is None:
            continue
        notes[view.say("rule")] = True
        if row.best.spread is not None and delta.parent.best.spread is not None:
            continue
        spread = usual(row, view.groups, view.spread)
        if spread is None:
            notes[view.say("no_seeds")] = True
        else:
            kind = "assumed" if spread.freedom == float("inf") else "borrowed"
            notes[view.say(kind, spread=f"{spread.value:.{view.digits}f}")] = True
    return notes

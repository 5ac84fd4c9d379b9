"""Columns of tables of runs: what differs, what came of it, what was expected, what is noise."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from ..recipe.notation import Notation
from .comparison import Line, Step, lines, step, usual
from .labels import key_words, state_word, word
from .table import Column, Table

MOST_IDS = 5  # named in a note


class Field(NamedTuple):
    """A column, and how a line fills it."""

    column: Column
    value: Callable[[Line], Any]


@dataclass(frozen=True, eq=False)
class View:
    """Lines to be shown, and how. everything: every key of the recipes, not what differs.

    spread: between seeds, to be assumed where nothing has seeds.
    """

    lines: Sequence[Line]
    language: str = "en"
    everything: bool = False
    spread: float | None = None

    def say(self, key: str, **values: str) -> str:
        """A word in the view's language."""
        return word(key, self.language, **values)

    def field(
        self, key: str, value: Callable[[Line], Any], kind: Any = "text", **words: str
    ) -> Field:
        """A field whose head is the word `key`."""
        return Field(Column(key, self.say(key, **words), kind, self.digits), value)

    @cached_property
    def metric(self) -> str:
        """The headline metric, `top1`; "" where the lines have several."""
        names = {line.run.metric for line in self.lines if line.run.metric}
        return names.pop().removeprefix("val/") if len(names) == 1 else ""

    @property
    def digits(self) -> int:
        """After the dot: losses are small."""
        return 4 if self.metric.endswith(("loss", "cross_entropy")) else 2

    @cached_property
    def notation(self) -> Notation:
        """The notation of the lines' recipes."""
        return Notation([line.run.typed for line in self.lines], self.everything)

    @cached_property
    def groups(self) -> list[Line]:
        """The lines, with all seeds of an experiment as one, whether or not they are shown so."""
        return lines([run for line in self.lines for run in (*line.runs, *line.repeats)])

    @cached_property
    def steps(self) -> dict[Line, Step | None]:
        """What each line changed in the recipe that it extends."""
        return {line: step(line, self.groups, self.spread) for line in self.lines}


def table(view: View, fields: Iterable[Field]) -> Table:
    """The table of these fields, with notes on what its signs mean."""
    fields = list(fields)
    rows = [tuple(field.value(line) for field in fields) for line in view.lines]
    columns = tuple(field.column for field in fields)
    judged = any(column.key == "noise" for column in columns)
    return Table(columns, tuple(rows), (*notes(view), *(noise_notes(view) if judged else ())))


def status(view: View) -> Iterable[Field]:
    """How each run stands, unless all are done."""
    if any(line.run.status != "done" for line in view.lines):
        yield view.field("status", lambda line: state_word(line.run.status, view.language))


def recipes(view: View) -> Iterable[Field]:
    """The keys in which the recipes differ, or all keys."""

    def cell(key: str, line: Line) -> Any:
        return view.notation.cell(line.run.typed, key)

    for key in view.notation.columns:
        yield Field(Column(key, key_words(key, view.language)), partial(cell, key))


def results(view: View) -> Iterable[Field]:
    """Best and last of the headline metric, other metrics that a recipe has a claim on, claims."""
    claims = {name for line in view.lines for name in line.run.expects} - {"minutes"}
    if not view.metric:
        yield view.field("metric", lambda line: line.run.metric)
    if len({line.run.chosen_on for line in view.lines} - {None}) > 1:
        yield view.field("chosen_on", lambda line: line.run.chosen_on)
    yield view.field("best", lambda line: line.best, "number", metric=view.metric)
    yield from claim(view, view.metric)
    yield view.field("last", lambda line: line.last, "number", metric=view.metric)
    for name in sorted(claims - {view.metric}):
        column = Column(name, name, "number", view.digits)
        yield Field(column, partial(lambda name, line: line.measured(name), name))
        yield from claim(view, name)


def claim(view: View, name: str) -> Iterable[Field]:
    """What recipes expect of a metric, if one does."""
    if any(name in line.run.expects for line in view.lines):
        title = view.say("expected", metric=name)
        column = Column(f"expected_{name}", title, "number", view.digits)
        yield Field(column, lambda line: line.run.expects.get(name))


def progress(view: View) -> Iterable[Field]:
    """What each recipe changed in the one it extends, what came of it, whether that is noise."""
    found = view.steps.values()
    if any(found):
        yield view.field("changed", lambda line: getattr(view.steps[line], "words", None))
    if any(step and step.parent for step in found):
        yield view.field("over", lambda line: over(view.steps[line]))
        yield view.field("delta", lambda line: getattr(view.steps[line], "delta", None), "signed")
        yield view.field("noise", lambda line: verdict(view, view.steps[line]))


def over(step: Step | None) -> str | None:
    """The parent's label."""
    return step.parent.label if step and step.parent else None


def verdict(view: View, step: Step | None) -> str | None:
    """Whether a difference is noise, in words; None where there is no difference."""
    return None if step is None or step.delta is None else view.say(step.verdict)


def times(view: View) -> Iterable[Field]:
    """Wall-clock time, and what was expected."""
    yield view.field("seconds", lambda line: line.seconds, "duration")
    if any("minutes" in line.run.expects for line in view.lines):
        yield view.field("expected_seconds", expected_seconds, "duration")


def expected_seconds(line: Line) -> float | None:
    """The claimed minutes, in seconds."""
    minutes = line.run.expects.get("minutes")
    return None if minutes is None else 60 * minutes


# -- what stands below -----------------------------------------------------------------------------


def notes(view: View) -> Iterable[str]:
    """What ± means, and which runs were left out."""
    if any(line.best and line.best.n > 1 for line in view.lines):
        yield view.say("mean")
    repeats = [run for line in view.lines for run in line.repeats]
    if repeats:
        ids = [f"{run.name}/{run.id}" for run in repeats[:MOST_IDS]]
        more = [f"… ({len(repeats)})"] * (len(repeats) > MOST_IDS)
        yield view.say("repeats", ids=", ".join(ids + more))


def noise_notes(view: View) -> Iterable[str]:
    """The rule by which a difference is noise, and which spread a single run is given."""
    compared = [(x, step) for x, step in view.steps.items() if step and step.delta is not None]
    if compared:
        yield view.say("rule")
    yield from dict.fromkeys(
        basis(view, line)
        for line, step in compared
        if line.best.spread is None or step.parent.best.spread is None
    )


def basis(view: View, line: Line) -> str:
    """Which spread a single run was given."""
    spread = usual(line, view.groups, view.spread)
    if spread is None:
        return view.say("no_seeds")
    kind = "assumed" if spread.freedom == float("inf") else "borrowed"
    return view.say(kind, spread=f"{spread.value:.{view.digits}f}")

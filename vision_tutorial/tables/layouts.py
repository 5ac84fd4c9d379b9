"""The tables of runs: what differs, the Week-3 report's, the run log, the losses."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ..recipe.notation import Notation, entries, find, scalar
from ..runs.reader import local_time
from .comparison import Delta, Row, delta_of, rows_of
from .labels import key_words, state_word, words
from .table import Column, Table

_MOST_IDS = 5  # named in a note
_PLAIN = Notation([])
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_ARGUMENTS = ("batch_size", "loss", "epochs", "schedule", "seed")  # and the optimizer's options

_Field = tuple[Column, Callable[[Row], Any]]  # a column, and how a row fills it


@dataclass(frozen=True, eq=False)
class View:
    """Rows to be shown, and how. everything: every key of the recipes, not only what differs.

    spread: between seeds, to be assumed where nothing has seeds.
    """

    rows: Sequence[Row]
    language: str = "en"
    everything: bool = False
    spread: float | None = None

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
        return Notation([row.run.typed for row in self.rows], self.everything)

    @cached_property
    def deltas(self) -> dict[Row, Delta | None]:
        """What each row changed in the recipe that it extends."""
        groups = rows_of([run for row in self.rows for run in (*row.runs, *row.repeats)])
        return {row: delta_of(row, groups, self.spread) for row in self.rows}

    def say(self, key: str, **values: str) -> str:
        """The words `key` in the view's language, with their {values} filled in."""
        return words(self.language)[key].format(**values).strip()

    def field(self, key: str, value: Callable[[Row], Any], kind: Any = "text", **words: str) -> Any:
        """A column whose head is the word `key`, and how a row fills it."""
        return Column(key, self.say(key, **words), kind, self.digits), value


def _table(view: View, *fields: _Field, head: bool = True) -> Table:
    """The table of these fields, with notes on their signs. head: which run, and how it stands."""
    if head and any(row.run.status != "done" for row in view.rows):
        status = view.field("status", lambda row: state_word(row.run.status, view.language))
        fields = (status, *fields)
    if head:
        fields = (view.field("run", lambda row: row.label), *fields)
    columns = tuple(column for column, _ in fields)
    rows = tuple(tuple(value(row) for _, value in fields) for row in view.rows)
    return Table(columns, rows, tuple(_notes(view, any(c.key == "noise" for c in columns))))


def _notes(view: View, judged: bool) -> Iterator[str]:
    if any(row.best and row.best.n > 1 for row in view.rows):
        yield view.say("mean")
    repeats = [f"{run.name}/{run.id}" for row in view.rows for run in row.repeats]
    if repeats:
        more = [f"… ({len(repeats)})"] * (len(repeats) > _MOST_IDS)
        yield view.say("repeats", ids=", ".join(repeats[:_MOST_IDS] + more))
    deltas = [delta for delta in view.deltas.values() if delta and delta.value is not None]
    if not judged or not deltas:
        return
    yield view.say("rule")
    if any(delta.interval is None for delta in deltas):
        yield view.say("no_seeds")
    for spread in dict.fromkeys(delta.borrowed for delta in deltas if delta.borrowed):
        kind = "assumed" if spread.freedom == math.inf else "borrowed"
        yield view.say(kind, spread=f"{spread.value:.{view.digits}f}")


def _recipes(view: View) -> Iterable[_Field]:
    """The keys in which the recipes differ, or all keys."""
    for key in view.notation.columns:
        column = Column(key, key_words(key, view.language))
        yield column, lambda row, key=key: view.notation.cell(row.run.typed, key)


def _results(view: View) -> Iterable[_Field]:
    """Best and last of the headline metric, other metrics that a recipe has a claim on, claims."""
    claims = {name for row in view.rows for name in row.run.expects} - {"minutes"}
    if not view.metric:
        yield view.field("metric", lambda row: row.run.metric)
    if len({row.run.chosen_on for row in view.rows} - {None}) > 1:
        yield view.field("chosen_on", lambda row: row.run.chosen_on)
    yield view.field("best", lambda row: row.best, "number", metric=view.metric)
    yield from _claim(view, view.metric)
    yield view.field("last", lambda row: row.last, "number", metric=view.metric)
    for name in sorted(claims - {view.metric}):
        column = Column(name, name, "number", view.digits)
        yield column, lambda row, name=name: row.measured(name)
        yield from _claim(view, name)


def _claim(view: View, name: str) -> Iterable[_Field]:
    """What recipes expect of a metric, if one does."""
    if any(name in row.run.expects for row in view.rows):
        title = view.say("expected", metric=name)
        column = Column(f"expected_{name}", title, "number", view.digits)
        yield column, lambda row: row.run.expects.get(name)


def _progress(view: View) -> Iterable[_Field]:
    """What each recipe changed in the one it extends, what came of it, whether that is noise."""

    def cell(name: str) -> Callable[[Row], Any]:
        return lambda row: getattr(view.deltas[row], name, None)

    deltas = [delta for delta in view.deltas.values() if delta]
    if deltas:
        yield view.field("changed", cell("words"))
    if any(delta.parent for delta in deltas):
        yield view.field("over", lambda row: getattr(cell("parent")(row), "label", None))
        yield view.field("delta", cell("value"), "signed")
        verdict = cell("verdict")
        yield view.field("noise", lambda row: verdict(row) and view.say(verdict(row)))


def _times(view: View) -> Iterable[_Field]:
    yield view.field("seconds", lambda row: row.seconds, "duration")
    minutes = {row: row.run.expects["minutes"] for row in view.rows if "minutes" in row.run.expects}
    if minutes:
        seconds = {row: 60 * claim for row, claim in minutes.items()}
        yield view.field("expected_seconds", seconds.get, "duration")


def generic(view: View, best_first: bool = False) -> Table:
    """What differs between the runs, and what came of each. best_first: that before the keys."""
    keys = [*_recipes(view)]
    results = [*_results(view), *_progress(view), *_times(view)]
    if best_first:
        place = [column.key for column, _ in results].index("best")
        keys = [results.pop(place), *results[:place], *keys]
        results = results[place:]
    return _table(view, *keys, *results)


def week3(view: View) -> Table:
    """The Week-3 report's own rows, as columns: it is shown transposed. And what it left out."""

    def cell(name: str, key: str) -> _Field:
        return view.field(name, lambda row: find(row.run.typed, key))

    def option(name: str, key: str, wanted: str, absent: Any = None) -> _Field:
        """An option of the entry `name` in a list or weighted sum; `absent` without that entry."""

        def value(row: Row) -> Any:
            named = [x for x in entries(row.run.typed.get(key)) if x.name == name]
            return named[0].options.get(wanted) if named else absent

        return view.field(name, value)

    data = ", ".join(sorted({_chosen("dataset", row) for row in view.rows}))
    best = {"metric": view.metric, "data": _DATASETS.get(data, data)}
    return _table(
        view,
        cell("batch_size", "batch_size"),
        view.field("optimizer", partial(_chosen, "optimizer")),
        cell("momentum", "optimizer.momentum"),
        cell("weight_decay", "optimizer.weight_decay"),
        view.field("schedule", partial(_chosen, "schedule")),
        cell("lr", "optimizer.lr"),
        view.field("warmup_pair", _warmup),
        cell("min_lr", "schedule.min_lr"),
        option("hflip", "augment", "p"),
        option("color_jitter", "augment", "strength"),
        option("auto_augment", "augment", "policy"),
        option("cutmix", "mix", "alpha", 0),
        option("mixup", "mix", "alpha", 0),
        cell("epochs", "epochs"),
        view.field("best_of", lambda row: row.best, "number", **best),
        *_claim(view, view.metric),
        view.field("last", lambda row: row.last, "number", metric=view.metric),
        *_progress(view),
        *_times(view),
        view.field("analyze", _remarks),
    )


def _chosen(key: str, row: Row) -> str:
    return _PLAIN.words(key, row.run.typed.get(key)).partition("(")[0]


def _warmup(row: Row) -> str | None:
    lr, epochs = (find(row.run.typed, f"warmup.{part}") for part in ("lr", "epochs"))
    return f"{scalar(lr)} / {scalar(epochs)}" if epochs else None


def _remarks(row: Row) -> str | None:
    return " / ".join(note.text for run in row.runs for note in run.notes) or None


def _runlog(view: View) -> Table:
    return _table(
        view,
        view.field("date", lambda row: local_time(row.run.created or "")[:10] or None),
        view.field("run_name", lambda row: row.label),
        view.field("model_name", _model_name),
        view.field("arguments", partial(_arguments, view)),
        view.field("link", partial(_link, view)),
        view.field("notes", partial(_result_and_remarks, view)),
        head=False,
    )


def _model_name(row: Row) -> str:
    options = next((entry.options for entry in entries(row.run.typed.get("model"))), {})
    backbones = [scalar(options[key]) for key in ("backbone", "encoder") if options.get(key)]
    return " / ".join([_chosen("model", row), *backbones])


def _arguments(view: View, row: Row) -> str:
    recipe = row.run.typed
    said = {key: _PLAIN.cell(recipe, key) for key in _ARGUMENTS}
    said["optimizer"] = Notation([], everything=True).cell(recipe, "optimizer")
    others = (key for key in view.notation.columns if key not in said)
    said |= {key: view.notation.cell(recipe, key) for key in others}
    return ", ".join(f"{key}={scalar(value)}" for key, value in said.items() if key != "model")


def _link(view: View, row: Row) -> str | None:
    run = row.run
    offline = run.folder and any((run.folder / "wandb").glob("offline-run-*"))
    return run.link or (view.say("offline") if offline else None)


def _result_and_remarks(view: View, row: Row) -> str | None:
    said = [] if row.run.status == "done" else [state_word(row.run.status, view.language)]
    if row.best:
        metric = (row.run.metric or "").removeprefix("val/")
        said.append(f"{view.say('best', metric=metric)} {row.best.mean:.{view.digits}f}")
    return "; ".join(filter(None, [*said, _remarks(row)])) or None


def _losses(view: View) -> Table:
    """A row for each optimizer and loss, the loss as decoder ‖ auxiliary."""
    notation = view.notation
    return _table(
        view,
        view.field("optimizer", lambda row: notation.cell(row.run.typed, "optimizer")),
        view.field("heads", lambda row: notation.cell(row.run.typed, "loss")),
        *_results(view),
        *_times(view),
    )


LAYOUTS: dict[str, Callable[[View], Table]] = {
    "generic": generic,
    "week3": week3,
    "runlog": _runlog,
    "losses": _losses,
}

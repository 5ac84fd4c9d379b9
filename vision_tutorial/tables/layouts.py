"""The tables of `compare`: what differs, the Week-3 report's, the run log, the losses."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..recipe.notation import Notation, entries, find, scalar
from . import columns
from .columns import View
from .comparison import Row
from .labels import state_word
from .table import Table

_PLAIN = Notation([])
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_ARGUMENTS = ("batch_size", "loss", "epochs", "schedule", "seed")  # and the optimizer's options
_BACKBONES = ("backbone", "encoder")


def generic(view: View) -> Table:
    """What differs between the runs, and what came of each."""
    parts = (columns.status, columns.recipes, columns.results, columns.progress, columns.times)
    fields = [field for part in parts for field in part(view)]
    return columns.table(view, [view.field("run", lambda row: row.label), *fields])


# -- the report of Week 3 --------------------------------------------------------------------------


def week3(view: View) -> Table:
    """The Week-3 report's own rows, as columns: it is shown transposed. And what it left out."""

    def cell(name: str, key: str) -> columns.Field:
        return view.field(name, lambda row: find(row.run.typed, key))

    def option(name: str, key: str, wanted: str, absent: Any = None) -> columns.Field:
        """An option of the entry `name` in a list or weighted sum; `absent` without that entry."""

        def value(row: Row) -> Any:
            named = [x for x in entries(row.run.typed.get(key)) if x.name == name]
            return named[0].options.get(wanted) if named else absent

        return view.field(name, value)

    data = ", ".join(sorted({_chosen(row, "dataset") for row in view.rows}))
    best = {"metric": view.metric, "data": _DATASETS.get(data, data)}
    fields = [
        view.field("run", lambda row: row.label),
        *columns.status(view),
        cell("batch_size", "batch_size"),
        view.field("optimizer", lambda row: _chosen(row, "optimizer")),
        cell("momentum", "optimizer.momentum"),
        cell("weight_decay", "optimizer.weight_decay"),
        view.field("schedule", lambda row: _chosen(row, "schedule")),
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
        *columns.claim(view, view.metric),
        view.field("last", lambda row: row.last, "number", metric=view.metric),
        *columns.progress(view),
        *columns.times(view),
        view.field("analyze", _remarks),
    ]
    return columns.table(view, fields)


def _chosen(row: Row, key: str) -> str:
    return _PLAIN.words(key, row.run.typed.get(key)).partition("(")[0]


def _warmup(row: Row) -> str | None:
    lr, epochs = (find(row.run.typed, f"warmup.{part}") for part in ("lr", "epochs"))
    return f"{scalar(lr)} / {scalar(epochs)}" if epochs else None


def _remarks(row: Row) -> str | None:
    return " / ".join(note.text for run in row.runs for note in run.notes) or None


# -- the segmentation logs -------------------------------------------------------------------------


def _runlog(view: View) -> Table:
    """Date, run name, model, arguments, link and notes: all from the resolved recipe."""
    fields = [
        view.field("date", lambda row: (row.run.created or "")[:10] or None),
        view.field("run_name", lambda row: row.label),
        view.field("model_name", _model_name),
        view.field("arguments", partial(_arguments, view)),
        view.field("link", partial(_link, view)),
        view.field("notes", partial(_result_and_remarks, view)),
    ]
    return columns.table(view, fields)


def _model_name(row: Row) -> str:
    model = row.run.typed.get("model")
    options = next((entry.options for entry in entries(model)), {})
    backbones = [scalar(options[name]) for name in _BACKBONES if options.get(name)]
    return " / ".join([_chosen(row, "model"), *backbones])


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
    done = row.run.status == "done"
    said = [] if done else [state_word(row.run.status, view.language)]
    if row.best:
        metric = (row.run.metric or "").removeprefix("val/")
        said.append(f"{view.say('best', metric=metric)} {row.best.mean:.{view.digits}f}")
    return "; ".join(filter(None, [*said, _remarks(row)])) or None


def _losses(view: View) -> Table:
    """A row for each optimizer and loss, the loss as decoder ‖ auxiliary."""
    notation = view.notation
    fields = [
        view.field("run", lambda row: row.label),
        *columns.status(view),
        view.field("optimizer", lambda row: notation.cell(row.run.typed, "optimizer")),
        view.field("heads", lambda row: notation.cell(row.run.typed, "loss")),
        *columns.results(view),
        *columns.times(view),
    ]
    return columns.table(view, fields)


LAYOUTS: dict[str, Callable[[View], Table]] = {
    "generic": generic,
    "week3": week3,
    "runlog": _runlog,
    "losses": _losses,
}

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

PLAIN = Notation([])
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ARGUMENTS = ("batch_size", "loss", "epochs", "schedule", "seed")  # and the optimizer's options
BACKBONES = ("backbone", "encoder")


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
        return view.field(name, partial(entry_option, key, name, wanted, absent))

    data = ", ".join(sorted({chosen(row, "dataset") for row in view.rows}))
    best = {"metric": view.metric, "data": DATASETS.get(data, data)}
    fields = [
        view.field("run", lambda row: row.label),
        *columns.status(view),
        cell("batch_size", "batch_size"),
        view.field("optimizer", lambda row: chosen(row, "optimizer")),
        cell("momentum", "optimizer.momentum"),
        cell("weight_decay", "optimizer.weight_decay"),
        view.field("schedule", lambda row: chosen(row, "schedule")),
        cell("lr", "optimizer.lr"),
        view.field("warmup_pair", warmup),
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
        view.field("analyze", remarks),
    ]
    return columns.table(view, fields)


def chosen(row: Row, key: str) -> str:
    """The name of the entry that a choice chose."""
    return PLAIN.words(key, row.run.typed.get(key)).partition("(")[0]


def entry_option(key: str, name: str, option: str, absent: Any, row: Row) -> Any:
    """An option of the entry `name` in a chain or blend; `absent` without that entry."""
    named = [entry for entry in entries(row.run.typed.get(key)) if entry.name == name]
    return named[0].options.get(option) if named else absent


def warmup(row: Row) -> str | None:
    """ "0.01 / 5" """
    lr, epochs = (find(row.run.typed, f"warmup.{part}") for part in ("lr", "epochs"))
    return f"{scalar(lr)} / {scalar(epochs)}" if epochs else None


def remarks(row: Row) -> str | None:
    """What people wrote about the runs of a row."""
    return " / ".join(note.text for run in row.runs for note in run.notes) or None


# -- the segmentation logs -------------------------------------------------------------------------


def runlog(view: View) -> Table:
    """Date, run name, model, arguments, link and notes: all from the resolved recipe."""
    fields = [
        view.field("date", lambda row: (row.run.created or "")[:10] or None),
        view.field("run_name", lambda row: row.label),
        view.field("model_name", model_name),
        view.field("arguments", partial(arguments, view)),
        view.field("link", partial(link, view)),
        view.field("notes", partial(result_and_remarks, view)),
    ]
    return columns.table(view, fields)


def model_name(row: Row) -> str:
    """The model and its backbone."""
    model = row.run.typed.get("model")
    options = next((entry.options for entry in entries(model)), {})
    backbones = [scalar(options[name]) for name in BACKBONES if options.get(name)]
    return " / ".join([chosen(row, "model"), *backbones])


def arguments(view: View, row: Row) -> str:
    """The settings that the students' log names, and what else differs between the runs."""
    recipe = row.run.typed
    said = {key: PLAIN.cell(recipe, key) for key in ARGUMENTS}
    said["optimizer"] = Notation([], everything=True).cell(recipe, "optimizer")
    others = (key for key in view.notation.columns if key not in said)
    said |= {key: view.notation.cell(recipe, key) for key in others}
    return ", ".join(f"{key}={scalar(value)}" for key, value in said.items() if key != "model")


def link(view: View, row: Row) -> str | None:
    """The run's page at wandb, or that it was recorded offline."""
    run = row.run
    offline = run.folder and any((run.folder / "wandb").glob("offline-run-*"))
    return run.link or (view.say("offline") if offline else None)


def result_and_remarks(view: View, row: Row) -> str | None:
    """The best value, how the run stands unless it is done, and what people wrote."""
    done = row.run.status == "done"
    said = [] if done else [state_word(row.run.status, view.language)]
    if row.best:
        metric = (row.run.metric or "").removeprefix("val/")
        said.append(f"{view.say('best', metric=metric)} {row.best.mean:.{view.digits}f}")
    return "; ".join(filter(None, [*said, remarks(row)])) or None


def losses(view: View) -> Table:
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
    "runlog": runlog,
    "losses": losses,
}

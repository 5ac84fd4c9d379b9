"""The tables of `compare`: what differs, the Week-3 report's, the run log, the losses."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..recipe.notation import Notation, entries, find, scalar
from . import columns
from .columns import View
from .comparison import Line
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
    return columns.table(view, [view.field("run", lambda line: line.label), *fields])


# -- the report of Week 3 --------------------------------------------------------------------------


def week3(view: View) -> Table:
    """The Week-3 report's own rows, as columns: it is shown transposed. And what it left out."""

    def cell(name: str, key: str) -> columns.Field:
        return view.field(name, lambda line: find(line.run.typed, key))

    def option(name: str, key: str, wanted: str, absent: Any = None) -> columns.Field:
        return view.field(name, partial(entry_option, key, name, wanted, absent))

    data = ", ".join(sorted({chosen(line, "dataset") for line in view.lines}))
    best = {"metric": view.metric, "data": DATASETS.get(data, data)}
    fields = [
        view.field("run", lambda line: line.label),
        *columns.status(view),
        cell("batch_size", "batch_size"),
        view.field("optimizer", lambda line: chosen(line, "optimizer")),
        cell("momentum", "optimizer.momentum"),
        cell("weight_decay", "optimizer.weight_decay"),
        view.field("schedule", lambda line: chosen(line, "schedule")),
        cell("lr", "optimizer.lr"),
        view.field("warmup_pair", warmup),
        cell("min_lr", "schedule.min_lr"),
        option("hflip", "augment", "p"),
        option("color_jitter", "augment", "strength"),
        option("auto_augment", "augment", "policy"),
        option("cutmix", "mix", "alpha", 0),
        option("mixup", "mix", "alpha", 0),
        cell("epochs", "epochs"),
        view.field("best_of", lambda line: line.best, "number", **best),
        *columns.claim(view, view.metric),
        view.field("last", lambda line: line.last, "number", metric=view.metric),
        *columns.progress(view),
        *columns.times(view),
        view.field("analyze", remarks),
    ]
    return columns.table(view, fields)


def chosen(line: Line, key: str) -> str:
    """The name of the entry that a choice chose."""
    return PLAIN.words(key, line.run.typed.get(key)).partition("(")[0]


def entry_option(key: str, name: str, option: str, absent: Any, line: Line) -> Any:
    """An option of the entry `name` in a chain or blend; `absent` without that entry."""
    named = [entry for entry in entries(line.run.typed.get(key)) if entry.name == name]
    return named[0].options.get(option) if named else absent


def warmup(line: Line) -> str | None:
    """ "0.01 / 5" """
    lr, epochs = (find(line.run.typed, f"warmup.{part}") for part in ("lr", "epochs"))
    return f"{scalar(lr)} / {scalar(epochs)}" if epochs else None


def remarks(line: Line) -> str | None:
    """What people wrote about the runs of a line."""
    return " / ".join(note.text for run in line.runs for note in run.notes) or None


# -- the segmentation logs -------------------------------------------------------------------------


def runlog(view: View) -> Table:
    """Date, run name, model, arguments, link and notes: all from the resolved recipe."""
    fields = [
        view.field("date", lambda line: (line.run.created or "")[:10] or None),
        view.field("run_name", lambda line: line.label),
        view.field("model_name", model_name),
        view.field("arguments", partial(arguments, view)),
        view.field("link", partial(link, view)),
        view.field("notes", partial(result_and_remarks, view)),
    ]
    return columns.table(view, fields)


def model_name(line: Line) -> str:
    """The model and its backbone."""
    model = line.run.typed.get("model")
    options = next((entry.options for entry in entries(model)), {})
    backbones = [scalar(options[name]) for name in BACKBONES if options.get(name)]
    return " / ".join([chosen(line, "model"), *backbones])


def arguments(view: View, line: Line) -> str:
    """The settings that the students' log names, and what else differs between the runs."""
    recipe = line.run.typed
    said = {key: PLAIN.cell(recipe, key) for key in ARGUMENTS}
    said["optimizer"] = Notation([], everything=True).cell(recipe, "optimizer")
    others = (key for key in view.notation.columns if key not in said)
    said |= {key: view.notation.cell(recipe, key) for key in others}
    return ", ".join(f"{key}={scalar(value)}" for key, value in said.items() if key != "model")


def link(view: View, line: Line) -> str | None:
    """The run's page at wandb, or that it was recorded offline."""
    run = line.run
    offline = run.folder and any((run.folder / "wandb").glob("offline-run-*"))
    return run.link or (view.say("offline") if offline else None)


def result_and_remarks(view: View, line: Line) -> str | None:
    """The best value, how the run stands unless it is done, and what people wrote."""
    done = line.run.status == "done"
    said = [] if done else [state_word(line.run.status, view.language)]
    if line.best:
        metric = (line.run.metric or "").removeprefix("val/")
        said.append(f"{view.say('best', metric=metric)} {line.best.mean:.{view.digits}f}")
    return "; ".join(filter(None, [*said, remarks(line)])) or None


def losses(view: View) -> Table:
    """A line for each optimizer and loss, the loss as decoder ‖ auxiliary."""
    notation = view.notation
    fields = [
        view.field("run", lambda line: line.label),
        *columns.status(view),
        view.field("optimizer", lambda line: notation.cell(line.run.typed, "optimizer")),
        view.field("heads", lambda line: notation.cell(line.run.typed, "loss")),
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

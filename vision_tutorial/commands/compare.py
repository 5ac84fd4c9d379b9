"""Many runs as one table: the keys that differ, best and last, mean ± spread over seeds, what was
expected, what changed against the parent recipe, and whether the difference is noise. Folders that
hold no whole run get a line each on stderr. The layout week3 shows runs as columns.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..core.cli_types import positive
from ..core.errors import UserError, counted
from ..recipe.command_line import Parser
from ..runs.reader import Run, collect
from ..runs.run_folder import write_text
from ..runs.wandb_logger import make_tracker
from ..runs.wandb_reader import PREFIX, project_runs
from ..tables import comparison, table
from ..tables.labels import LANGUAGES
from ..tables.layouts import LAYOUTS, View
from ..tables.leaderboard import author_of
from ..tables.table import FORMATS, SUFFIXES, Table
from . import entry_point


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial compare", description=__doc__)
    add, flag = made.add_argument, partial(made.add_argument, action="store_true")
    what = "run folders, folders of run folders, patterns, or wandb:entity/project"
    add("runs", nargs="+", metavar="RUNS", help=what)
    add("--layout", choices=LAYOUTS, default="generic", help="which table (default: %(default)s)")
    flag("--all", help="every key of the recipes, not only what differs")
    flag("--each", help="a line for each run, not one for all its seeds")
    text = "rows of each person, with the name in front: of the author, or of the folder below RUNS"
    add("--by", choices=("author", "folder"), help=text)
    flag("--transpose", help="swap rows and columns")
    add("--sort", metavar="KEY", help="run, best, last, time, created, status, or a recipe's key")
    what = "a spread between seeds, assumed where no run has seeds (CIFAR-100, ResNet-50: 0.4)"
    add("--spread", type=positive, metavar="S", help=what)
    add("--format", choices=FORMATS, help="default: by the ending of FILE, else terminal")
    add("-o", "--output", type=Path, metavar="FILE", help="write to FILE, whole or not at all")
    add("--lang", choices=LANGUAGES, default="en", help="language of heads and notes")
    flag("--wandb", help="log the table to wandb too, and make a Report of it")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print, write or log the table of the runs."""
    runs = _found(args.runs)
    person = partial(author_of, root=Path(args.runs[0]), by=args.by) if args.by else None
    rows = comparison.rows_of(runs, args.each or args.layout == "runlog", person)
    if args.sort:
        rows = comparison.ordered(rows, args.sort)
    made = LAYOUTS[args.layout](View(rows, args.lang, args.all, args.spread))
    form = args.format or SUFFIXES.get(args.output.suffix if args.output else "", "terminal")
    as_columns = (args.layout == "week3") != args.transpose
    shown = made.transposed() if as_columns and form != "json" else made
    if form == "terminal" and not args.output:
        table.terminal(shown, sys.stdout)
    else:
        text = FORMATS[form](shown)
        if args.output:
            # without the mark, Excel takes Korean in UTF-8 for another code
            write_text(args.output, "\ufeff" * (form == "csv" and not text.isascii()) + text)
        else:
            print(text, end="")
    if args.wandb:
        _log(made, runs)
    return 0


def _found(words: Sequence[str]) -> list[Run]:
    """The runs that the words name. A line on stderr for each folder that is left out."""
    projects = [word for word in words if word.startswith(PREFIX)]
    runs, complaints = collect(word for word in words if word not in projects)
    for line in complaints:
        print(line, file=sys.stderr)
    runs += [run for word in projects for run in project_runs(word)]
    for run in runs:
        for change in run.resumed:
            print(f"{run.name}/{run.id}: resumed with another {change}", file=sys.stderr)
    if not runs:
        raise UserError(
            f"no run in {' '.join(words)}. Name run folders that `train` made, or what holds them."
        )
    return runs


def _log(made: Table, runs: Sequence[Run]) -> None:
    """Send the table to the project of the runs at wandb, or record it in ./wandb if offline."""
    settings = runs[0].recipe.get("wandb")
    settings = settings if isinstance(settings, dict) else {}
    texts = {k: v for k, v in settings.items() if k in ("entity", "project") and isinstance(v, str)}
    tracker = make_tracker(
        "auto",
        **{"project": "vision-tutorial"} | texts,
        name="compare",
        id=f"compare-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}",
        config={"runs": [f"{run.name}/{run.id}" for run in runs]},
        folder=Path.cwd(),
        say=lambda line: print(line, file=sys.stderr),
    )
    if tracker.off:
        print("wandb: nothing was logged", file=sys.stderr)
    tracker.table("compare", *table.uniform(made))
    tracker.report(f"Comparison of {counted(len(runs), 'run')}", table.markdown(made))
    tracker.finish({})

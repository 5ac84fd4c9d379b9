"""The best of each person, a table for each task. Run it again for the newest state."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.atomic import write_text
from ..core.cli_types import loading, looks
from ..core.errors import UserError, counted
from ..recipe.command_line import Parser
from ..recipe.fields import Recipe
from ..recipe.loading import load
from ..runs.reader import collect
from ..runs.seed_statistics import Sample
from ..runs.wandb_reader import PREFIX, project_runs
from ..tables import leaderboard, table
from ..tables.leaderboard import BoardEntry, author_of
from . import entry_point


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial leaderboard",
        description=__doc__,
        epilog="A person is who a run says it is of (VISION_TUTORIAL_AUTHOR, else git's user.name, "
        "else the account), else the folder below DIR. Where all share an account, as on Colab, "
        "--by folder goes by the folders.",
    )
    add = made.add_argument
    text = "of the class, with a folder for each person; or wandb:entity/project"
    add("folder", metavar="DIR", help=text)
    text = "who a person is (default: %(default)s)"
    add("--by", choices=("author", "folder"), default="author", help=text)
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write a page (.html), or .md, .csv, .json",
    )
    text = "score the CSV files in each person's folder, too, by this recipe's data"
    add("--score", metavar="RECIPE", help=text)
    add("--split", choices=("val", "test"), default="test", help="of it (default: %(default)s)")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print or write the tables."""
    root, complaints = Path(args.folder), []
    if args.folder.startswith(PREFIX):
        if args.score:
            raise UserError("--score reads CSV files in a folder; a wandb project has none.")
        runs = project_runs(args.folder)
    else:
        runs, complaints = collect([root])
    scored, more = _scored(args, root) if args.score else ([], [])
    if scored and not runs:  # files alone are handed in
        complaints = []
    if args.by == "author" and not args.folder.startswith(PREFIX):
        more += leaderboard.shared_names(runs, root)
    for line in (*complaints, *more):
        print(line, file=sys.stderr)
    found = leaderboard.boards(runs, partial(author_of, root=root, by=args.by), scored)
    if not found:
        raise UserError(f"no finished run in {args.folder}; name the folder of the class.")
    if args.output:
        form = table.SUFFIXES.get(args.output.suffix)
        if form is None:
            known = ", ".join(table.SUFFIXES)
            raise UserError(f"{args.output}: its ending says no format; there are {known}.")
        write_text(args.output, table.several(found, form, "Leaderboard", [*complaints, *more]))
        out = f", {len(complaints)} left out (see above)" if complaints else ""
        line = f"{counted(len(found), 'task')}, {counted(len(runs), 'run')}{out}"
        print(f"{args.output}: {line}")
        return 0
    for number, (name, board) in enumerate(found.items()):
        print("\n" * (number > 0) + table.clean(name))
        table.terminal(board, sys.stdout, widest=20)
    return 0


def _scored(args: argparse.Namespace, root: Path) -> tuple[list[tuple[str, BoardEntry]], list[str]]:
    """Each person's best CSV; and a line for each that cannot be scored."""
    loaded = load(args.score)
    with loading():  # after the recipe is known to be good
        from .. import inference

    with inference.opened([(loaded.path, loaded)], looks()) as distributed:
        return _scores(root, args.split, loaded.recipe, distributed)


def _scores(root: Path, split: str, recipe: Recipe, distributed: Any) -> tuple[list, list[str]]:
    from .. import build, inference

    source = build.split(recipe, split, distributed)
    task = f"{recipe.dataset.name}: submissions, {split}"
    best: dict[str, BoardEntry] = {}
    complaints = []
    for path in sorted(root.rglob("*.csv")):
        inside: Sequence[str] = path.relative_to(root).parts
        if path.name == "metrics.csv" or len(inside) < 2:
            continue
        try:
            value: Any = inference.score_file(recipe, source, path, distributed)
        except UserError as error:
            complaints.append(f"not scored: {error}")
            continue
        old = best.get(inside[0])
        if old is None or value > old.score.mean:
            count = 1 + (old.runs if old else 0)
            best[inside[0]] = BoardEntry(inside[0], Sample((value,)), "/".join(inside[1:]), count)
        else:
            best[inside[0]] = old._replace(runs=old.runs + 1)
    return [(task, entry) for entry in best.values()], complaints

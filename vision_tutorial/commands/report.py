"""One HTML page over runs: their table, curves, classes, confusion matrices, images, recipes and
environments. It opens from disk and fetches nothing. Folders that hold no whole run are left out,
with a line each.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.atomic import is_stdout, write_text
from ..core.cli_types import positive
from ..core.errors import UserError, counted, short
from ..recipe.command_line import Parser
from ..report import gallery_files
from ..report.contents import contents
from ..report.rendering import render
from ..runs.reader import Run, collect
from ..tables.labels import LANGUAGES
from . import entry_point

_MIB = 2**20


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial report", description=__doc__)
    add = made.add_argument
    add("runs", nargs="+", metavar="RUNS", help="run folders, what holds them, or patterns")
    add("-o", "--output", type=Path, default=Path("report.html"), help="default: %(default)s")
    add("--title", help="of the page")
    add("--lang", choices=LANGUAGES, default="en", help="language of its words")
    add("--galleries", action="store_true", help="make the galleries of runs that have none")
    images = {"type": positive, "default": 16.0, "metavar": "MIB"}
    add("--images", "--pictures", **images, help="for all embedded images (default: %(default)g)")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Write the page; a line on stderr for what is left out."""
    runs, complaints = collect(args.runs)
    if not runs:
        raise UserError("; ".join(complaints[:3]) + ". Name run folders that `train` made.")
    if args.galleries:
        complaints += _make_galleries(runs)
    shown = contents(runs, complaints, args.lang, round(args.images * _MIB))
    text = render(shown, args.title)
    write_text(args.output, text)
    for line in shown["complaints"]:
        print(line, file=sys.stderr)
    count = counted(len(runs), "run")
    line = f"{args.output}: {count}, {len(text.encode()) / _MIB:.2f} MiB"
    print(line, file=sys.stderr if is_stdout(args.output) else sys.stdout)
    return 0


def _make_galleries(runs: Sequence[Run]) -> list[str]:
    """A process for each run that has no gallery; a line for each that fails."""
    complaints = []
    for run in runs:
        if gallery_files.exists(run.folder):
            continue
        command = [sys.executable, "-m", "vision_tutorial", "gallery", str(run.folder)]
        done = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
        if done.returncode:
            *_, last = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()]
            complaints.append(f"no gallery of {run.folder}: {short(last, 300)}")
    return complaints

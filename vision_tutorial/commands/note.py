"""Add a remark to a run, or show its remarks. They are dated, stay in the run folder (notes.jsonl)
and are only ever added to; `compare` and `report` show them.
"""

import argparse

from ..core.errors import UserError
from ..recipe.command_line import Parser
from ..runs.reader import add_note, local_time, read
from ..tables.table import clean
from . import entry_point

_MOST = 10_000  # letters


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial note", description=__doc__)
    made.add_argument("run", metavar="RUN", help="a run folder, made by `train`")
    made.add_argument("text", nargs="?", metavar="TEXT", help="the remark; without it: show them")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Add the remark, or show all."""
    if args.text is None:
        try:
            notes = read(args.run).notes
        except UserError as error:
            raise UserError(f"{args.run}: {error}") from error
    else:
        text = args.text.strip()
        if not 0 < len(text) <= _MOST:
            raise UserError(f"a note of {len(text):,} letters; 1 to {_MOST:,} are possible.")
        notes = (add_note(args.run, text),)
    for note in notes:
        print(f"{clean(local_time(note.time))}  {clean(note.text)}")
    return 0

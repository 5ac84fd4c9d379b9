"""What a recipe can name: losses, optimizers, models, augmentations …, with their options."""

import argparse
import shutil
import textwrap
from functools import partial

from ...core.errors import UserError, unknown
from ...recipe.command_line import Parser
from ...recipe.signatures import Signatures, static_signatures
from .. import entry_point


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial components", description=__doc__)
    made.add_argument("kind", nargs="?", help="only these, such as losses")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print the registries, or one."""
    found = static_signatures()
    if args.kind and args.kind not in found:
        raise UserError(unknown("kind of component", args.kind, found))
    for name in [args.kind] if args.kind else found:
        print("\n".join([name, *listed(found[name]), ""]))
    return 0


def listed(known: Signatures) -> list[str]:
    """Each entry with its options, and what it is."""
    width = max(60, shutil.get_terminal_size().columns)
    wrap = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    entries = [(entry.name, entry) for entry in known.entries.values()]
    count = f"{len(known.outside)} names" if known.outside else "any name"
    for prefix, entry in known.fallbacks.items():
        entries.append((f"{prefix}<name>" if prefix else f"<{count} of timm>", entry))
    lines = []
    for title, entry in entries:
        title += entry.signature()
        lines += wrap(title, initial_indent="  ", subsequent_indent="    ")
        lines += wrap(entry.doc, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines

"""`vision-tutorial COMMAND …`; with no command: the commands and every registry."""

import importlib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import partial

from . import __version__
from .core.errors import UserError, run_main, run_process, unknown
from .core.names import restart_in_utf8

COMMANDS = {
    "train": "train what a recipe says",
    "evaluate": "a checkpoint's numbers on a split",
    "predict": "labels, masks, a submission, pseudo labels",
    "explain": "what a recipe means, before anything runs",
    "bench": "how fast a recipe runs here, and beside what",
    "compare": "many runs as one table, honest about noise",
    "sweep": "many points of a recipe, each once: grid, list, greedy stages",
    "reproduce": "the Week-3 table, r0 … r5: in full, or scaled down to a budget",
    "rerun": "a run once more, and whether it came out the same",
    "report": "runs as one HTML page",
    "gallery": "a run's images, right and wrong, for its report",
    "note": "a remark about a run, kept in its folder",
    "pack": "a data set as mapped files",
    "doctor": "is this machine ready?",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial` and `python -m vision_tutorial`."""
    if argv is None:
        restart_in_utf8()
    return run_main(lambda: dispatch(argv))


def script() -> None:
    """What `vision-tutorial` runs."""
    run_process(main)


def dispatch(argv: Sequence[str] | None) -> int:
    """Hand the words to their command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    module = ".train" if words[0] == "train" else f".commands.{words[0]}"
    return importlib.import_module(module, __package__).main(words[1:])


def overview() -> str:
    """The commands, and every registry with each entry's options and what it is."""
    from .recipe.signatures import static_signatures

    lines = [
        f"vision-tutorial {__version__}",
        "",
        "usage: vision-tutorial COMMAND …   (COMMAND --help)",
    ]
    lines += ["", *(f"  {command:<10} {words}" for command, words in COMMANDS.items())]
    width = max(60, shutil.get_terminal_size().columns)
    wrap = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    for name, known in static_signatures().items():
        lines += ["", name]
        entries = [(entry.name, entry) for entry in known.entries.values()]
        count = f"{len(known.outside)} names" if known.outside else "any name"
        for prefix, entry in known.fallbacks.items():
            entries.append((f"{prefix}<name>" if prefix else f"<{count} of timm>", entry))
        for title, entry in entries:
            title += entry.signature()
            lines += wrap(title, initial_indent="  ", subsequent_indent="    ")
            lines += wrap(entry.doc, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


if __name__ == "__main__":
    script()

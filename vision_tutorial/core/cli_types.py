"""Kinds of numbers on a command line, for argparse's `type`; options that commands share; what is
said while torch loads."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

UNITS = {"s": 1, "min": 60, "h": 3600}  # seconds


def _kind(expected: str, read: Callable[[str], float], allowed: Callable[[float], bool]) -> Any:
    def kind(text: str) -> float:
        with suppress(ValueError):
            value = read(text)
            if allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"given {text}; {expected} is expected")

    return kind


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*)\s*(s|min|h)", text.strip())
    return float(found[1]) * UNITS[found[2]] if found else 0


positive = _kind("a number above 0", float, lambda value: 0 < value < math.inf)
share = _kind("a number from 0 to 1", float, lambda value: 0 <= value <= 1)
seconds = _kind("a time such as 90s, 20min or 1.5h", _seconds, bool)
positive_count = _kind(
    "a whole number above 0", lambda text: int(text) if text.isdecimal() else 0, bool
)


def looks(**options: Any) -> argparse.Namespace:
    """The options of `add_looks` with their defaults, some of them given; TypeError for others."""
    parser = argparse.ArgumentParser()
    add_looks(parser)
    made = vars(parser.parse_args([]))
    extra = {"split", "submission", "set"}  # of `evaluate`
    if unknown := options.keys() - made.keys() - extra:
        raise TypeError(f"unknown options {sorted(unknown)}; there are {sorted(made)}")
    return argparse.Namespace(**made | {"set": []} | options)


def add_looks(parser: argparse.ArgumentParser) -> None:
    """The options of commands that look at images with trained networks."""
    add = parser.add_argument
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    text = "average over mirror images and sizes too: none, hflip, or hflip,0.75,1.25"
    add("--tta", default="none", metavar="LOOKS", help=text)
    add("--window", type=positive_count, metavar="PIXELS", help="look through sliding windows")
    add("--stride", type=positive_count, metavar="PIXELS", help="between windows (2/3 of one)")
    text = "all runs as one: mean of their probabilities, or majority of their votes"
    add("--ensemble", choices=("soft", "hard"), help=text)
    add("--size", type=positive_count, metavar="PIXELS", help="masks at this size, by nearest")
    add("--no-refine", action="store_true", help="leave out the recipe's `refine`")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")


@contextmanager
def loading() -> Iterator[None]:
    """Within it torch is imported, which takes seconds. On a terminal a line says so, and is gone
    afterwards; a file or a pipe, behind which nobody waits, gets nothing."""
    stream, text = sys.stderr, "\rloading torch …"
    first = os.environ.get("RANK", "0") == "0"  # of several processes
    shown = first and "torch" not in sys.modules and stream is not None and stream.isatty()
    if shown:
        print(text, end="", file=stream, flush=True)
    try:
        yield
    finally:
        if shown:
            for part in ("\r" + " " * len(text), "\r"):
                print(part, end="", file=stream, flush=True)

"""Kinds of numbers on a command line, for argparse's `type`."""

import argparse
import math
import re

UNITS = {"s": 1, "min": 60, "h": 3600}  # seconds


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"given {text}; a number above 0 is expected")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"given {text}; a number from 0 to 1 is expected")
    return value


def seconds(text: str) -> float:
    """A time with its unit, in seconds: 90s, 20min, 1.5h."""
    found = re.fullmatch(r"(\d+\.?\d*)\s*(s|min|h)", text.strip())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"given {text}; write a time such as 90s, 20min or 1.5h")
    return float(found[1]) * UNITS[found[2]]


def positive_count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"given {text}; a whole number above 0 is expected")
    return int(text)


def add_looks(parser: argparse.ArgumentParser) -> None:
    """The options of commands that look at images with trained networks."""
    add = parser.add_argument
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    add(
        "--tta",
        default="none",
        metavar="LOOKS",
        help="average over mirror images and sizes too: none, hflip, or hflip,0.75,1.25",
    )
    add("--window", type=positive_count, metavar="PIXELS", help="look through sliding windows")
    add("--stride", type=positive_count, metavar="PIXELS", help="between windows (2/3 of one)")
    add(
        "--ensemble",
        choices=("soft", "hard"),
        help="all runs as one: mean of their probabilities, or majority of their votes",
    )
    add("--size", type=positive_count, metavar="PIXELS", help="masks at this size, by nearest")
    add("--no-refine", action="store_true", help="leave out the recipe's `refine`")
    add("--set", action="append", default=[], metavar="key.sub=value", help="change the recipe")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")

"""Kinds of numbers on a command line, for argparse's `type`."""

import argparse
import math


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"given {text}; a number above 0 is expected")
    return value


def positive_count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"given {text}; a whole number above 0 is expected")
    return int(text)

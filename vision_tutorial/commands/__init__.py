"""The commands of `vision-tutorial`, one file each: parse, call, print."""

import argparse
from collections.abc import Callable, Sequence

from ..core.errors import run_main


def entry_point(
    parser: Callable[[], argparse.ArgumentParser], work: Callable[[argparse.Namespace], int]
) -> Callable[[Sequence[str] | None], int]:
    """A command's `main`: its exit code. Options may stand between the other words."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_main(lambda: work(parser().parse_intermixed_args(argv)))

    return main

"""The commands of `vision-tutorial`, one file each: parse, call, print."""

import argparse
from collections.abc import Callable, Sequence

from ..core.errors import run_main

_Main = Callable[[Sequence[str] | None], int]


def entry_point(
    parser: Callable[[], argparse.ArgumentParser],
) -> Callable[[Callable[[argparse.Namespace], int]], _Main]:
    """Decorates a command: its `main` takes words and gives its exit code.

    Options may stand between the other words.
    """

    def decorate(work: Callable[[argparse.Namespace], int]) -> _Main:
        def main(argv: Sequence[str] | None = None) -> int:
            return run_main(lambda: work(parser().parse_intermixed_args(argv)))

        return main

    return decorate

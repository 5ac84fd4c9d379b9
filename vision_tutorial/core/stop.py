"""Signals that ask a process to stop: they only set a flag, which is read between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self


class StopSignal:
    """Remembers the first signal that came while it was listening."""

    signal: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.signal = number

    def signalled(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Take TERM, INT, HUP and USR1 (SLURM's early warning) for as long as this lasts."""
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        numbers = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]  # nohup's
        before = {number: signal.signal(number, self.receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

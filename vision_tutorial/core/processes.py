"""Processes: usable cores, signals to stop, a timed command, the end of one and its children."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

import psutil

LOOK = 0.01  # seconds between two looks at what a command has done so far


class Ended(NamedTuple):
    """A command that is over. `seen` is the second at which the sign was given, if it was."""

    code: int
    seconds: float
    seen: float | None


def run_command(
    command: Sequence[str],
    log: Path,
    sign: Callable[[], bool] = lambda: False,
    then_stop: bool = False,
) -> Ended:
    """Run a command to its end, its output into `log`, and look all the while for a sign.

    then_stop: end the command, and what it started, as soon as `sign()` is true.
    """
    seen, began = None, time.perf_counter()
    with log.open("wb") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, **streams, env=environment(log.parent))
        try:
            while child.poll() is None and not (seen and then_stop):
                if seen is None and sign():
                    seen = time.perf_counter() - began
                time.sleep(LOOK)
        finally:
            seconds = time.perf_counter() - began
            if child.poll() is None:
                kill_family(child.pid, patience=10)
            child.wait()
    return Ended(child.returncode, seconds, seen)


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = log.read_text("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def kill_family(pid: int, patience: float = 0) -> None:
    """End a process and all that it started, in sessions of their own or not.

    They are asked to (TERM) if there are seconds of `patience`; who is left after them is killed.
    """
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
        if patience:
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.terminate()
            family = psutil.wait_procs(family, timeout=patience)[1]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def environment(scratch: Path | None = None) -> dict[str, str]:
    """Ours, with this package importable wherever the command runs; with `scratch`, bytecode kept.

    Some containers forbid Python to keep bytecode; a start-up there would be mostly compilation, of
    which the first run of any ordinary machine is the last. Kept in `scratch`, it lives as long.
    """
    paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    made = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if scratch and made.pop("PYTHONDONTWRITEBYTECODE", None):
        made["PYTHONPYCACHEPREFIX"] = str(scratch / "bytecode")
    return made


def usable_cores() -> list[int]:
    """The CPU cores that this process may use, by number."""
    known = hasattr(os, "sched_getaffinity")
    return sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))


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

"""Processes: usable cores, signals to stop, a function in a child process, a timed command."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import psutil

from .errors import UserError

LOOK = 0.01  # seconds between two looks at what a command has done so far


class Failure(NamedTuple):
    """What a child says instead of an answer."""

    text: str
    user_error: bool


def in_child(function: Callable[..., Any], *args: Any, cores: Sequence[int] | None = None) -> Any:
    """What `function(*args)` returns in a process of its own, which may use only these cores.

    Of its own, so that it has its own threads, memory peak and device. It prints to stderr. A
    UserError comes through as one; anything else that goes wrong is a RuntimeError with the reason.
    """
    # Forked, a child need not import torch again, which takes longer than most measurements.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(send, cores, function, args))
    child.start()
    send.close()
    try:
        answer = receive.recv()
    except EOFError:
        child.join()
        answer = Failure(f"the measuring process ended with {child.exitcode}", False)
    finally:
        if sys.exc_info()[0]:
            child.terminate()
        child.join()
    if isinstance(answer, Failure):
        raise UserError(answer.text) if answer.user_error else RuntimeError(answer.text)
    return answer


def _answer(send: Connection, cores: Sequence[int] | None, function: Callable, args: tuple) -> None:
    sys.stdout = sys.stderr  # stdout is the parent's answer alone
    with suppress(OSError):  # Linux: what the parent once held is no peak of the child's
        Path("/proc/self/clear_refs").write_text("5")
    try:
        if cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        answer = function(*args)
    except UserError as error:
        answer = Failure(str(error), True)
    except Exception:
        answer = Failure(traceback.format_exc(), False)
    send.send(answer)
    send.close()


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
    seen = None
    with log.open("wb") as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(log.parent),
        )
        try:
            while child.poll() is None and not (seen and then_stop):
                if seen is None and sign():
                    seen = time.perf_counter() - began
                time.sleep(LOOK)
        finally:
            seconds = time.perf_counter() - began
            if child.poll() is None:
                root = psutil.Process(child.pid)
                family = [*root.children(recursive=True), root]
                for member in family:
                    member.terminate()
                for member in psutil.wait_procs(family, timeout=10)[1]:
                    member.kill()
            child.wait()
    return Ended(child.returncode, seconds, seen)


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def kill_family(pid: int) -> None:
    """SIGKILL for a process and all that it started, in sessions of their own or not."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for member in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def environment(scratch: Path | None = None) -> dict[str, str]:
    """Ours, with this package importable wherever the command runs; with `scratch`, bytecode kept.

    Some containers forbid Python to keep bytecode; a start-up there would be mostly compilation, of
    which the first run of any ordinary machine is the last. Kept in `scratch`, it lives as long.
    """
    here = str(Path(__file__).parents[2])
    old = os.environ.get("PYTHONPATH")
    made = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{old}" if old else here}
    if scratch and made.pop("PYTHONDONTWRITEBYTECODE", None):
        made["PYTHONPYCACHEPREFIX"] = str(scratch / "bytecode")
    return made


def peak_memory() -> int | None:
    """Bytes of main memory that this process held at most, where the system says."""
    with suppress(OSError):  # Linux; getrusage would go on with the peak of a forked one's parent
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


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

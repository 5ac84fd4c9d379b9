"""Processes: usable cores, a timed command, the end of one and its children."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
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
        prepare = partial(follow_parent, os.getpid()) if os.name == "posix" else None
        own = environment(log.parent)
        child = subprocess.Popen(command, **streams, env=own, preexec_fn=prepare)
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


def follow_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """In a new child: get this signal when the process `parent` ends (Linux)."""
    if _PRCTL:
        _PRCTL(_DEATH_SIGNAL, number)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(143)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file that processes take in turn; say what we wait for, if it takes long."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        print(f"waiting for another process, which holds {path}", file=sys.stderr, flush=True)
        lock.acquire()  # the system frees it when that process ends
    try:
        yield
    finally:
        lock.release()


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
    """The CPU cores that this process may use, by number; as many as a container's quota allows."""
    known = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))
    return cores[: max(1, math.ceil(cpu_quota()))] if cpu_quota() else cores


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The CPUs that control groups allow this process, of it and all above it; 0 for no limit."""
    found = []
    with suppress(OSError):
        for line in own.read_text("utf-8", "replace").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "cpu" not in kinds.split(","):
                continue
            base = root / "cpu" if kinds else root
            below = Path(path.lstrip("/"))  # not visible where a container sees its own group alone
            for folder in {base / part for part in (below, *below.parents)}:
                with suppress(OSError, ValueError):
                    if kinds:  # version 1
                        names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
                        quota, period = ((folder / name).read_text("utf-8") for name in names)
                    else:
                        quota, period = (folder / "cpu.max").read_text("utf-8").split()
                    found.append(int(quota) / int(period))  # "max" is no number, -1 no limit
    return min((quota for quota in found if quota > 0), default=0)

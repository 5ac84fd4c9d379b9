"""A function in a process of its own: its threads, memory peak and device are its own, too."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.processes import follow_parent, kill_family


def in_child(function: Callable[..., Any], *args: Any, cores: Sequence[int] | None = None) -> Any:
    """What `function(*args)` returns or raises in a new process, which may use only these cores.

    It prints to stderr: stdout is the parent's answer alone. RuntimeError if the process dies. It
    ends with us, and with all that it started, when we are stopped.
    """
    # Forked, a child need not import torch again, which takes longer than most measurements.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    answer, send = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(os.getpid(), cores, send, function, args))
    child.start()
    send.close()  # ours, so that its end is heard when it dies
    try:
        value, error = answer.recv()
    except EOFError:
        value, error = None, RuntimeError("a process of the benchmark terminated abruptly")
    except BaseException:
        kill_family(child.pid, patience=5)
        raise
    finally:
        child.join()
    if error:
        raise error
    return value


def _work(
    parent: int, cores: Sequence[int] | None, send: Any, function: Callable, args: Sequence
) -> None:
    follow_parent(parent, signal.SIGKILL)
    sys.stdout = sys.stderr
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        made = (function(*args), None)
    except BaseException as error:
        made = (None, error)
    send.send(made)


def peak_memory() -> int | None:
    """Bytes of main memory that this process held at most, where the system says."""
    with suppress(OSError):  # Linux; getrusage would go on with the peak of a forked one's parent
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

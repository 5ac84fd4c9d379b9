"""A function in a process of its own: its threads, memory peak and device are its own, too."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any


def in_child(function: Callable[..., Any], *args: Any, cores: Sequence[int] | None = None) -> Any:
    """What `function(*args)` returns or raises in a new process, which may use only these cores.

    It prints to stderr: stdout is the parent's answer alone. RuntimeError if the process dies.
    """
    # Forked, a child need not import torch again, which takes longer than most measurements.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(1, context, _prepare, (cores,)) as pool:
        return pool.submit(function, *args).result()


def _prepare(cores: Sequence[int] | None) -> None:
    sys.stdout = sys.stderr
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


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

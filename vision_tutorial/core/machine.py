"""What this process may use of the machine."""

import os


def usable_cores() -> list[int]:
    """The CPU cores that this process may use, by number."""
    known = hasattr(os, "sched_getaffinity")
    return sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))

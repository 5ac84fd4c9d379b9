"""Which operations take a step's time, by torch's profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 10


@contextmanager
def profiled(wanted: bool) -> Iterator[list[str]]:
    """Lines that name the operations which took longest within it; filled when it ends."""
    lines: list[str] = []
    if not wanted:
        yield lines
        return
    watched = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        watched.append(ProfilerActivity.CUDA)
    with profile(activities=watched) as found:
        yield lines
    lines += _table(found.key_averages())


def _table(events: Any) -> list[str]:
    on_gpu = any(event.self_device_time_total for event in events)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    ranked = sorted(events, key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    return [
        f"{100 * getattr(event, key) / total:5.1f} % {getattr(event, key) / 1e3:9.1f} ms "
        f"{event.count:6d} x  {event.key[:48]}"
        for event in ranked[:SHOWN]
    ]

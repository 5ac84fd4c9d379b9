"""Which operations take a step's time, by torch's profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 10


@contextmanager
def profiled(enabled: bool) -> Iterator[list[str]]:
    """Lines that name the operations which took longest within it; filled when it ends."""
    lines: list[str] = []
    if not enabled:
        yield lines
        return
    with profile(activities=activities()) as found:
        yield lines
    lines += table(found.key_averages())


def activities() -> list[ProfilerActivity]:
    """What there is to be watched here."""
    watched = [ProfilerActivity.CPU]
    return [*watched, ProfilerActivity.CUDA] if torch.cuda.is_available() else watched


def table(events: Any) -> list[str]:
    """Each line: share of the time, milliseconds, calls, name."""
    on_gpu = any(event.self_device_time_total for event in events)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    ranked = sorted(events, key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    return [
        f"{100 * getattr(event, key) / total:5.1f} % {getattr(event, key) / 1e3:9.1f} ms "
        f"{event.count:6d} x  {event.key[:48]}"
        for event in ranked[:SHOWN]
    ]

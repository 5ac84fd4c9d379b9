"""Where the time of a training went, by its own clock: data, device, evaluation, saving."""

from collections.abc import Iterable, Mapping
from typing import Any

_PARTS = {
    "data": "seconds_data",
    "device": "seconds_device",
    "evaluation": "seconds_eval",
    "saving": "seconds_overhead",
}
BOUND, SLOWED = 0.5, 0.1  # of a step that waits


def shares(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The share of each of PARTS in all epochs, 0 to 1; empty where no time was counted."""
    rows = list(rows)
    seconds = {part: sum(row.get(column) or 0.0 for row in rows) for part, column in _PARTS.items()}
    total = sum(seconds.values())
    return {part: value / total for part, value in seconds.items()} if total else {}


def verdict(found: Mapping[str, float]) -> str:
    """One line: what limits the training, and what takes its time."""
    step = found["data"] + found["device"]
    waits = found["data"] / step if step else 0.0
    word = "data-bound" if waits > BOUND else "slowed by data" if waits > SLOWED else "device-bound"
    beside = " and ".join(f"{100 * found[part]:.0f} % {part}" for part in ("evaluation", "saving"))
    return f"{word}: {100 * waits:.0f} % of a step waits; {beside} of the time"

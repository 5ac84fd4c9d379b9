"""Where the time of a training went, by its own clock: data, device, evaluation, saving."""

from collections.abc import Iterable, Mapping
from typing import Any

_PARTS = {
    "data": "seconds_data",
    "device": "seconds_device",
    "evaluation": "seconds_eval",
    "saving": "seconds_overhead",
}


def shares(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The share of each part in all epochs, 0 to 1; empty where no time was counted."""
    rows = list(rows)
    seconds = {part: sum(row.get(column) or 0.0 for row in rows) for part, column in _PARTS.items()}
    total = sum(seconds.values())
    return {part: value / total for part, value in seconds.items()} if total else {}


def in_words(found: Mapping[str, float]) -> str:
    """One line on `shares`."""
    steps = found["data"] + found["device"]
    loading = found["data"] / (steps or 1.0)
    bound = "; evaluation-bound: raise eval_every" * (found["evaluation"] > 0.5)
    return (
        f"time: training steps {steps:.0%} (of them data loading {loading:.0%}), "
        f"evaluation {found['evaluation']:.0%}, saving {found['saving']:.0%}{bound}"
    )

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
    """One line on `shares`: data loading in a training step, what is no step, and what is most."""
    loading = 100 * found["data"] / ((found["data"] + found["device"]) or 1.0)
    rest = " and ".join(f"{part} {100 * found[part]:.0f} %" for part in ("evaluation", "saving"))
    most = max(found, key=lambda part: found[part])
    names = {"data": "data loading", "device": "the network's steps"}
    return (
        f"data loading: {loading:.0f} % of step time; {rest} of all time, which goes most to "
        f"{names.get(most, most)}"
    )

"""Where the time went, in shares and in words."""

import pytest

from vision_tutorial.runs.time_breakdown import shares, verdict


def row(data: float, device: float, evaluation: float = 0.0, saving: float = 0.0) -> dict:
    names = ("data", "device", "eval", "overhead")
    values = zip(names, (data, device, evaluation, saving), strict=True)
    return {"val/top1": 12.0} | {f"seconds_{name}": value for name, value in values}


def test_shares_are_of_all_epochs():
    found = shares([row(1, 2, 3, 0), row(0, 1, 2, 1), {"epoch": 3, "seconds_data": None}])
    assert found == {"data": 0.1, "device": 0.3, "evaluation": 0.5, "saving": 0.1}
    assert shares([]) == {} and shares([row(0, 0)]) == {}


@pytest.mark.parametrize(
    ("data", "device", "line"),
    [
        (61, 39, "data-bound: 61 % of a step waits; 50 % evaluation and 0 % saving of the time"),
        (30, 70, "slowed by data: 30 % of a step waits; 50 % evaluation"),
        (10, 90, "device-bound: 10 %"),
        (0, 0, "device-bound: 0 %"),
    ],
)
def test_the_verdict_is_about_steps(data, device, line):
    assert verdict(shares([row(data, device, evaluation=100)])).startswith(line)

"""Where the time went, in shares and in words."""

import pytest

from vision_tutorial.runs.time_breakdown import shares, verdict


def row(data: float, device: float, evaluation: float = 0.0, saving: float = 0.0) -> dict:
    return {
        "seconds_data": data,
        "seconds_device": device,
        "seconds_eval": evaluation,
        "seconds_overhead": saving,
        "val/top1": 12.0,
    }


def test_shares_are_of_all_epochs():
    found = shares([row(1, 2, 3, 0), row(0, 1, 2, 1), {"epoch": 3, "seconds_data": None}])
    assert found == {"data": 0.1, "device": 0.3, "evaluation": 0.5, "saving": 0.1}
    assert shares([]) == {} and shares([row(0, 0)]) == {}


@pytest.mark.parametrize(
    ("data", "device", "word"),
    [
        (61, 39, "data-bound"),
        (30, 70, "slowed by data"),
        (10, 90, "device-bound"),
        (0, 1, "device"),
    ],
)
def test_the_verdict_is_about_steps(data, device, word):
    said = verdict(shares([row(data, device, evaluation=100)]))
    assert said.startswith(word)
    assert f"{100 * data / (data + device):.0f} % of a step waits" in said
    assert len(said) <= 84


def test_an_evaluation_alone_has_a_verdict():
    assert verdict(shares([row(0, 0, 5)])).startswith("device-bound: 0 %")

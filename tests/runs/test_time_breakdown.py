"""Where the time went, in shares and in words."""

from vision_tutorial.runs.time_breakdown import in_words, shares


def row(data: float, device: float, evaluation: float = 0.0, saving: float = 0.0) -> dict:
    names = ("seconds_data", "seconds_device", "seconds_eval", "seconds_overhead")
    values = (data, device, evaluation, saving)
    return {"val/top1": 12.0} | dict(zip(names, values, strict=True))


def test_shares_are_of_all_epochs():
    found = shares([row(1, 2, 3, 0), row(0, 1, 2, 1), {"epoch": 3, "seconds_data": None}])
    assert found == {"data": 0.1, "device": 0.3, "evaluation": 0.5, "saving": 0.1}
    assert shares([]) == {} and shares([row(0, 0)]) == {}


def test_in_words_data_loading_is_a_part_of_the_steps():
    words = "data loading: 30 % of step time; evaluation 60 % and saving 20 % of all time"
    assert in_words(shares([row(30, 70, 300, 100)])) == words
    assert in_words(shares([row(0, 0, 1)])).startswith("data loading: 0 % of step time")

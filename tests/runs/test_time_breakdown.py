"""Where the time went, in shares and in words."""

from vision_tutorial.runs.time_breakdown import in_words, shares


def test_shares_of_all_epochs_and_in_words():
    names = ("seconds_data", "seconds_device", "seconds_eval", "seconds_overhead")
    rows = [dict(zip(names, row, strict=True)) for row in ((1, 2, 3, 0), (0, 1, 2, 1))]
    found = shares([*rows, {"epoch": 3, "seconds_data": None}])
    assert found == {"data": 0.1, "device": 0.3, "evaluation": 0.5, "saving": 0.1}
    words = "time: training steps 40% (of them data loading 25%), evaluation 50%, saving 10%"
    assert in_words(found) == words
    mostly = in_words(shares([{"seconds_eval": 9, "seconds_device": 1}]))
    assert mostly.startswith("time: training steps 10% (of them")
    assert mostly.endswith("evaluation 90%, saving 0%; evaluation-bound: raise eval_every")
    assert shares([]) == {} and shares([{"seconds_data": 0}]) == {}

"""Seeds as one line, parents, differences and what is noise in them."""

import math
from pathlib import Path

import pytest
from run_folders import edit, make_run

from vision_tutorial.core.errors import UserError
from vision_tutorial.runs.reader import collect
from vision_tutorial.runs.seed_statistics import Sample
from vision_tutorial.tables.comparison import Delta, Row, delta_of, ordered, rows_of


def made(root: Path, each: bool = False) -> list[Row]:
    return rows_of(collect([root])[0], each)


def table3(root: Path, **values: list[float]) -> None:
    """Runs of the report's recipes, a seed for each best value."""
    for name, best in values.items():
        for seed, value in enumerate(best):
            values = [value - 1, value, value - 2]
            make_run(root, name, f"seed={seed}", id=f"s{seed}", values=values)


def test_seeds_are_one_line_and_each_counts_once(tmp_path: Path) -> None:
    table3(tmp_path, r3=[80.5, 81.0, 81.3], r4=[82.0])
    three, four = made(tmp_path)
    assert (three.label, four.label) == ("r3", "r4")
    assert three.best == Sample((80.5, 81.0, 81.3)) and three.last == Sample((78.5, 79.0, 79.3))
    assert three.seconds == Sample((180.0,) * 3)
    assert three.measured("top5") == Sample((90.5, 91.0, 91.3)), "at the best epoch"
    assert three.measured("top1") == three.best and three.measured("f1") is None
    assert [line.label for line in made(tmp_path, each=True)] == ["r3/s0", "r3/s1", "r3/s2", "r4"]
    # the same seed again gives the same bits, and would make the spread too small
    for id, day, value in (("a", "02", 50.0), ("b", "01", 60.0), ("c", "03", 70.0)):
        seed, created = int(id == "c"), f"2026-11-{day}T00:00:00+00:00"
        make_run(tmp_path / "b", "debug", f"seed={seed}", id=id, values=[value], created=created)
    (line,) = made(tmp_path / "b")
    assert [run.id for run in line.runs] == ["a", "c"], "of seed 0 the newer one"
    assert [run.id for run in line.repeats] == ["b"] and line.best == Sample((50.0, 70.0))


def test_what_is_not_done_stands_alone(tmp_path: Path) -> None:
    for n, status in enumerate(("done", "done", "running", "failed")):
        make_run(tmp_path, "debug", f"seed={n}", id=f"s{n}", status=status)
    make_run(tmp_path, "debug", "seed=9", id="s9", values=[])
    found = made(tmp_path)
    assert [line.label for line in found] == [f"debug/s{n}" for n in (0, 2, 3, 9)]
    assert [len(line.runs) for line in found] == [2, 1, 1, 1]
    assert [line.done for line in found] == [True, False, False, False]


def steps(found: list[Row], assumed: float | None = None) -> dict[str, Delta | None]:
    return {line.label: delta_of(line, found, assumed) for line in found}


def test_the_report_with_its_known_spread(tmp_path: Path) -> None:
    values = {"r0": 70.72, "r1": 78.19, "r2": 80.31, "r3": 80.91, "r4": 82.13, "r5": 81.28}
    table3(tmp_path, **{name: [value] for name, value in values.items()})
    found = steps(made(tmp_path), 0.4)
    assert found["r0"] is None
    parents = {name: s.parent.label for name, s in found.items() if s}
    assert parents == {f"r{n}": f"r{n - 1}" for n in range(1, 6)}
    deltas = {name: round(s.value, 2) for name, s in found.items() if s}
    assert deltas == {"r1": 7.47, "r2": 2.12, "r3": 0.6, "r4": 1.22, "r5": -0.85}
    assert found["r5"].interval == pytest.approx(1.96 * 0.4 * math.sqrt(2), rel=1e-3)
    verdicts = {name: s.verdict for name, s in found.items() if s}
    assert {name for name, verdict in verdicts.items() if verdict == "within"} == {"r3", "r5"}
    assert steps(made(tmp_path), 0.1)["r5"].verdict == "beyond", "worse, by more than noise"
    assert found["r3"].words == "mix – → cutmix"
    unknown = steps(made(tmp_path))
    assert {s.verdict for s in unknown.values() if s} == {"unknown"}


def test_seeds_decide_where_there_are_some(tmp_path: Path) -> None:
    table3(tmp_path, r3=[80.0, 81.0], r4=[81.1, 81.9], r5=[90.0])
    for seed, value in enumerate((10.0, 90.0)):  # measures something else
        make_run(tmp_path, "r0", f"seed={seed}", id=str(seed), values=[value], metric="val/miou")
    found = steps(made(tmp_path), 0.001)
    assert found["r4"].value == pytest.approx(1.0)
    # s² 0.5 and 0.32, n 2 and 2: √0.41; freedom 0.41² / (0.25² + 0.16²) = 1.9 -> t(1) = 12.7
    assert found["r4"].interval == pytest.approx(12.706 * math.sqrt(0.41))
    assert found["r4"].verdict == "within"
    # a single run: the pooled spread √((0.5 + 0.32) / 2) on 2 degrees of freedom
    assert found["r5"].interval == pytest.approx(4.303 * math.sqrt(0.41) * math.sqrt(1.5))
    assert found["r5"].verdict == "beyond"


def test_the_very_parent_comes_first_else_the_nearest_of_that_file(tmp_path: Path) -> None:
    short = ("epochs=2", "subset=100")  # in a lab hour all recipes are shrunk alike
    make_run(tmp_path, "r2", *short, "batch_size=64", id="0")
    make_run(tmp_path, "r2", *short)
    make_run(tmp_path, "r3", *short)
    found = steps(made(tmp_path))["r3"]
    assert found.words == "mix – → cutmix" and found.parent.run.id == "1"
    # changes: mix and what is short; undone they are r2 as it stands in its file
    make_run(tmp_path, "r2", id="very")
    assert steps(made(tmp_path))["r3"].parent.run.id == "very"
    make_run(tmp_path / "b", "r4"), make_run(tmp_path / "b", "debug")
    assert steps(made(tmp_path / "b")) == {"r4": Delta("epochs 200 → 250"), "debug": None}


@pytest.mark.parametrize(
    "parent, child, summary",
    [
        ({"status": "running"}, {}, {}),
        ({}, {"status": "failed"}, {}),
        ({"metric": "val/miou"}, {}, {}),
        ({}, {}, {"chosen_on": "holdout"}),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, parent: dict, child: dict, summary: dict) -> None:
    make_run(tmp_path, "r3", **parent)
    folder = make_run(tmp_path, "r4", **child)
    if summary:
        edit(folder / "summary.json", **summary)
    found = steps(made(tmp_path), 0.4)["r4"]
    assert found.parent.label == "r3" and found.value is None and found.verdict is None


def test_sorting(tmp_path: Path) -> None:
    make_run(tmp_path, "r2", values=[60.0, 50.0], seconds=10)
    make_run(tmp_path, "r0", values=[70.0, 40.0], seconds=30)
    make_run(tmp_path, "r3", values=[], seconds=20)
    make_run(tmp_path, "debug", values=[65.0, 64.0], seconds=1)
    found = made(tmp_path)

    def by(key: str) -> str:
        return " ".join(line.label for line in ordered(found, key))

    assert by("best") == "r0 debug r2 r3"
    assert by("last") == "debug r2 r0 r3"
    assert by("run") == "debug r0 r2 r3"
    assert by("time") == "r3 debug r2 r0"
    assert by("optimizer.lr") == "debug r0 r2 r3"
    assert by("optimizer.momentum") == "r0 debug r2 r3"
    assert by("mix") == "debug r3 r0 r2", "words before nothing"
    with pytest.raises(UserError, match="did you mean 'optimizer.lr'"):
        by("optimizer.ly")
    for name, value in (("r0", 2.0), ("r2", 1.0)):
        make_run(tmp_path / "loss", name, values=[value], metric="val/loss")
    assert [line.label for line in ordered(made(tmp_path / "loss"), "best")] == ["r2", "r0"]

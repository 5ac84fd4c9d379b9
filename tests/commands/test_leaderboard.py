"""`leaderboard`: who is best at what, and what of it is noise."""

import csv
from pathlib import Path

import pytest
from run_folders import RECIPES, make_run

from vision_tutorial.commands import compare
from vision_tutorial.commands import leaderboard as command
from vision_tutorial.data.shapes import shapes
from vision_tutorial.recipe.fields import to_plain
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs.reader import Run


def board(capsys: pytest.CaptureFixture, *words: object, code: int = 0) -> str:
    assert command.main([*map(str, words)]) == code
    return capsys.readouterr().out


@pytest.fixture
def classroom(tmp_path: Path) -> Path:
    """Five people: seeds, a tie, a broken folder, a hostile name."""
    for seed, value in ((1, 70.0), (2, 71.0), (3, 72.0)):
        make_run(tmp_path / "mina" / "runs", "debug", f"seed={seed}", id=str(seed), values=[value])
    make_run(tmp_path / "mina" / "runs", "debug", "epochs=9", id="worse", values=[60.0])
    make_run(tmp_path / "jun" / "runs", "debug", "batch_size=16", values=[70.5])
    make_run(tmp_path / "ari" / "deep" / "er" / "runs", "debug", "epochs=7", values=[70.5])
    make_run(tmp_path / "bo" / "runs", "debug", values=[80.0], status="failed")
    hostile = "<script>alert(1)</script>\x1b[31m"
    make_run(tmp_path / "x" / "runs", "debug", "epochs=8", values=[10.0], author=hostile)
    (tmp_path / "broken" / "runs" / "r" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "runs" / "r" / "1" / "recipe.yaml").write_text("{")
    return tmp_path


def test_a_line_for_each_person(classroom: Path, capsys: pytest.CaptureFixture) -> None:
    shown = board(capsys, classroom)
    lines = {line.split()[1]: line.split() for line in shown.splitlines() if line[:1].isdigit()}
    assert [lines[name][0] for name in ("mina", "ari", "jun")] == ["1", "2=", "2="]
    assert "71.00 ± 1.00 (n=3)" in shown and "bo" not in lines
    assert lines["mina"][-2] == "4", "all of their runs are counted"
    assert "within noise" in " ".join(lines["jun"])
    assert "beyond noise" in next(line for line in shown.splitlines() if "alert" in line)
    assert "not counted: 1 unfinished" in shown and "\x1b[31m" not in shown


def test_the_page_is_harmless(classroom: Path, capsys: pytest.CaptureFixture) -> None:
    page = classroom / "board.html"
    board(capsys, classroom, "-o", page)
    assert "<script>" not in page.read_text() and "mina" in page.read_text()
    for ending in (".md", ".csv", ".json", ".tex"):
        board(capsys, classroom, "-o", page.with_suffix(ending))
        assert "mina" in page.with_suffix(ending).read_text()
    board(capsys, classroom, "-o", page.with_suffix(".exe"), code=2)
    board(capsys, classroom / "broken", code=2)


def test_submissions_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = shapes("test", train=320, test=100, size=16)
    for person, wrong in (("mina", 0), ("jun", 25)):
        folder = tmp_path / person
        folder.mkdir()
        with (folder / "answers.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "label"])
            for index, target in enumerate(source.targets.tolist()):
                said = (target + 1) % 10 if index < wrong else target
                rows.writerow([source.key(index), source.classes[said]])
    (tmp_path / "ari").mkdir()
    (tmp_path / "ari" / "answers.csv").write_text("image,label\n0,nothing\n")
    assert command.main([str(tmp_path), "--score", "debug"]) == 0
    shown, err = capsys.readouterr()
    assert "100.00" in shown and "75.00" in shown and "ari" not in shown
    assert "answers.csv" in shown and "files" in shown
    assert len(err.splitlines()) == 1 and "not scored" in err and "ari" in err


def test_people_who_share_an_account(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for person, value in (("mina", 70.0), ("jun", 60.0)):
        make_run(tmp_path / person / "runs", "debug", values=[value], author="root")
    assert command.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "root" in out and "mina" not in out
    assert err.count("\n") == 1 and "--by folder" in err and "2 folders" in err
    assert command.main([str(tmp_path), "--by", "folder"]) == 0
    out, err = capsys.readouterr()
    assert "mina" in out and "jun" in out and "root" not in out and not err
    words = [str(tmp_path), "--by", "folder", "--format", "csv"]
    assert compare.main(words) == 0 and "jun: debug" in capsys.readouterr().out


def test_a_project_at_wandb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    recipe = to_plain(load(RECIPES / "debug.yaml").recipe)
    summary = {"metric": "val/top1", "chosen_on": "test", "status": "done"}
    runs = [
        Run("debug", name, recipe, "done", summary | {"best": {"epoch": 1, "value": value}})
        for name, value in (("mina", 70.0), ("jun", 60.0))
    ]
    for run in runs:
        run.fingerprint["author"] = run.id
    monkeypatch.setattr(command, "project_runs", lambda word: runs if word == "wandb:a/b" else [])
    assert "60.00" in board(capsys, "wandb:a/b")
    board(capsys, "wandb:a/b", "--score", "debug", code=2)


def test_compare_by_author(classroom: Path, capsys: pytest.CaptureFixture) -> None:
    assert compare.main([str(classroom), "--by", "author", "--format", "csv"]) == 0
    rows = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[1:3] == ["ari: debug", "bo: debug"] and "mina: debug/1" in rows
    assert len(rows) == 6, "mina's seeds are one row, and her other recipe another"

"""The command `note`."""

import json
import re
from pathlib import Path

import pytest
from run_folders import make_run

from vision_tutorial.commands import note
from vision_tutorial.runs.reader import NOTES


def test_notes_are_added_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = str(make_run(tmp_path, status="running"))
    assert note.main([run]) == 0
    assert capsys.readouterr().out == ""
    assert note.main([run, " unstable until\nepoch 5 "]) == 0
    assert note.main([run, "학습률이 너무 높음 \x1b[31m"]) == 0
    added = capsys.readouterr().out
    assert note.main([run]) == 0
    assert capsys.readouterr().out == added
    first, second = added.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  unstable until epoch 5", first)
    assert second.endswith("  학습률이 너무 높음 [31m"), "no letter steers the terminal"
    kept = [json.loads(line) for line in (Path(run) / NOTES).read_text().splitlines()]
    assert kept[0]["text"] == "unstable until\nepoch 5"


@pytest.mark.parametrize("text", ["  \n", "x" * 10_001])
def test_a_note_has_a_length(tmp_path: Path, capsys: pytest.CaptureFixture, text: str) -> None:
    run = make_run(tmp_path, status="running")
    assert note.main([str(run), text]) == 2
    assert "1 to 10,000 are possible" in capsys.readouterr().err and not (run / NOTES).exists()


@pytest.mark.parametrize("words", [[], ["text"]])
def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str]) -> None:
    assert note.main([str(tmp_path), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}: no ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())

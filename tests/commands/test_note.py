"""The command `note`."""

import json
import re
from pathlib import Path

import pytest
from run_folders import make_run

from vision_tutorial.commands import note
from vision_tutorial.runs.reader import NOTES


def test_notes_are_added_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path, status="running")
    for words in ([], [" unstable until\nepoch 5 "], ["학습률이 너무 높음 \x1b[31m"]):
        assert note.main([str(run), *words]) == 0
    added = capsys.readouterr().out
    assert note.main([str(run)]) == 0
    assert capsys.readouterr().out == added
    first, second = added.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d  unstable until epoch 5", first)
    assert second.endswith("  학습률이 너무 높음 [31m"), "no letter steers the terminal"
    kept = [json.loads(line) for line in (run / NOTES).read_text().splitlines()]
    assert kept[0]["text"] == "unstable until\nepoch 5"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = str(make_run(tmp_path, status="running"))
    limits = "1 to 10,000 are possible"
    for words, said in (([run, " \n"], limits), ([run, "x" * 10_001], limits), ([tmp_path], "no ")):
        assert note.main([str(word) for word in words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not (Path(run) / NOTES).exists()

"""Run folders read back: whole, unfinished, damaged, foreign and hostile ones."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import edit, make_run

from vision_tutorial.core.errors import UserError
from vision_tutorial.runs import reader
from vision_tutorial.runs.reader import Point


def test_a_finished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "r4", "seed=7", values=[10.0, 30.0, 20.0], seconds=100)
    run = reader.read(folder)
    assert (run.name, run.id, run.status) == ("r4", "1", "done")
    assert (run.metric, run.chosen_on) == ("val/top1", "test")
    assert (run.best, run.last) == (Point(2, 30.0), Point(3, 20.0))
    assert (run.epochs, run.seconds) == (3, 300.0)
    assert run.expects == {"top1": 82.13, "minutes": 61.0}
    assert run.base == "r3.yaml" and run.changes == {"epochs": (200, 250), "seed": (42, 7)}
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]
    assert run.recipe["optimizer"]["sgd"]["weight_decay"] == 1e-3
    assert run.notes == () and run.classes == {} and run.link is None


def test_without_a_summary_of_the_last_start_the_rows_tell(tmp_path: Path) -> None:
    run = reader.read(make_run(tmp_path, values=[10.0, 30.0, 20.0], status="failed"))
    assert (run.status, run.best, run.last) == ("failed", Point(2, 30.0), Point(3, 20.0))
    assert (run.epochs, run.seconds) == (3, 180.0)
    losses = make_run(tmp_path, id="2", values=[3.0, 1.0], metric="val/loss", status="failed")
    assert reader.read(losses).best == Point(2, 1.0), "a loss is better where it is lower"
    folder = make_run(tmp_path, id="3", values=[10.0], status="paused")
    damaged = b'\xff\n[1]\n{"epoch": 2, "val/top1": 40.0}\n{"ep'
    (folder / "metrics.jsonl").open("ab").write(damaged)
    assert reader.read(folder).best == Point(1, 10.0)
    edit(folder / "status.json", status="running")
    run = reader.read(folder)
    assert run.best == run.last == Point(2, 40.0) and run.epochs == 2


def test_a_process_that_is_gone_was_killed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = make_run(tmp_path, status="running", host=platform.node())
    for pid, status in ((gone.pid, "killed"), (os.getpid(), "running"), (10**40, "running")):
        edit(folder / "status.json", pid=pid)
        assert reader.read(folder).status == status
    edit(folder / "status.json", pid=gone.pid)
    edit(folder / "fingerprint.json", host="another machine")
    assert reader.read(folder).status == "running", "nobody here can know"


def test_runs_of_one_experiment(tmp_path: Path) -> None:
    def key(id: str, *overrides: str, **facts: str) -> str:
        return reader.read(make_run(tmp_path, "debug", *overrides, id=id, **facts)).experiment

    one = key("1")
    assert one == key("2", "seed=5") == key("3", "workers=2", "data.memory=host", "threads=1")
    others = {key("4", "epochs=3"), key("5", "optimizer.sgd.lr=1"), key("6", data="other")}
    assert len(others | {one}) == 4
    path = tmp_path / "debug" / "1" / "recipe.yaml"  # of an older version, with fewer keys
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.partition(":")[0] not in ("sync_bn", "schedule_unit")]
    assert len(kept) == len(lines) - 2
    path.write_text("\n".join(kept))
    assert reader.read(path.parent).experiment == one


def test_words_are_folders_patterns_and_parents(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    folders = [make_run(root, id=id) for id in ("1", "2", "10")]
    for words in ([root], [tmp_path], [*folders, root], [f"{root}/*/*"], [folders[0] / "..", root]):
        found, complaints = reader.collect(words)
        assert len(found) == 3 and complaints == []
        assert [run.id for run in found] == ["1", "2", "10"], words


def test_each_folder_that_is_none_gets_one_line(tmp_path: Path) -> None:
    good = make_run(tmp_path)
    for name in ("empty", "debug/foreign", "deep/a/b/c/d/e/f"):
        (tmp_path / name).mkdir(parents=True)
    make_run(tmp_path / "far" / "a" / "b" / "c" / "d" / "e")
    (tmp_path / "a file").write_text("x")
    found, complaints = reader.collect([tmp_path, tmp_path / "a file", tmp_path / "none*", "no\0"])
    assert [run.folder for run in found] == [good]
    assert sorted(line.replace(str(tmp_path), "") for line in complaints) == [
        "left out /a file: Not a directory",
        *(f"left out /{name}: holds no run" for name in ("debug/foreign", "deep", "empty", "far")),
        "left out /none*: no folder has this name",
        "left out no?: embedded null byte",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", b""),
        ("recipe.yaml", b"a: " + b"[" * 60_000),
        ("summary.json", b"[" * 100_000),
        ("status.json", b"[]"),
        ("fingerprint.json", b"\xff"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damage_gets_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    bad, good = make_run(tmp_path, id="bad"), make_run(tmp_path, id="good")
    (bad / name).write_bytes(content)
    found, complaints = reader.collect([tmp_path])
    assert [run.folder for run in found] == [good]
    (line,) = complaints
    assert line.startswith(f"left out {bad}: ") and name in line and "\n" not in line
    assert len(line) < 600


def test_strange_values_are_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    keys = ("best", "last", "epochs", "wall_seconds", "metric", "chosen_on")
    for value in ("x", {}, {"epoch": "1", "value": "nan"}, {"epoch": True, "value": 10**400}):
        edit(folder / "summary.json", **dict.fromkeys(keys, value))
        edit(folder / "fingerprint.json", recipe=value, created=value, host=value)
        run = reader.read(folder)
        assert run.best is run.last is run.seconds is run.base is None
        assert run.changes == {} and run.epochs == 3
    edit(folder / "fingerprint.json", recipe={"changes": {"epochs": [1, 2, 3], "loss": 3}})
    run = reader.read(folder)
    assert run.changes == {} and run.base_recipe == run.recipe
    (folder / "classes.json").write_text('{"class": ["a"], "top1": [1.0]}')
    assert reader.read(folder).classes == {"class": ["a"], "top1": [1.0]}
    for text in ("[]", "{", '{"class": ["a"], "top1": []}', '{"class": 1}'):
        (folder / "classes.json").write_text(text)
        assert reader.read(folder).classes == {}


def test_notes_are_kept_without_secrets_and_a_link_is_a_link(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    reader.add_note(folder, "unstable | =1+1 <b>\x1b[31m\nsecond line")
    reader.add_note(folder, "한글 메모, WANDB_API_KEY=0123456789abcdef")
    (folder / reader.NOTES).open("a").write('{"text": 3}\n{"te')
    one, two = reader.read(folder).notes
    assert one.text == "unstable | =1+1 <b>\x1b[31m\nsecond line" and one.time.startswith("20")
    assert two.text == "한글 메모, WANDB_API_KEY=[redacted]"
    with pytest.raises(UserError, match="no run folder"):
        reader.add_note(tmp_path, "x")
    (folder / "wandb").mkdir()
    for text, link in (("https://a.ai/b\n", "https://a.ai/b"), ("javascript:alert(1)", None)):
        (folder / "wandb" / "url").write_text(text)
        assert reader.read(folder).link == link


def test_times_are_of_the_clock_here(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone, shown in (("Asia/Seoul", "2026-12-01 11:51"), ("UTC", "2026-12-01 02:51")):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            for text in (
                "2026-12-01T02:51:56+00:00",
                "2026-12-01T02:51:56",
                "2026-12-01T02:51:56Z",
            ):
                assert reader.local_time(text) == shown
    finally:
        monkeypatch.undo()
        time.tzset()
    assert reader.local_time("") == "" and reader.local_time("today") == "today"

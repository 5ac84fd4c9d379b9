"""Files of a run folder that no training wrote: a command ends in one line, or leaves the run out.

A seeded sample of them; each is given to all the commands that read a run folder.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import yaml

from vision_tutorial import train
from vision_tutorial.commands import (
    compare,
    evaluate,
    gallery,
    leaderboard,
    note,
    predict,
    report,
    rerun,
)

COUNT, SLOW = 25, 10  # of the slow commands, each is tried on every so many'th
FILES = ["recipe.yaml", "status.json", "fingerprint.json", "metrics.jsonl", "classes.json"]
FILES += ["summary.json", "notes.jsonl", "gallery/gallery.json", "ckpt/best.json"]
VALUES = [None, True, False, 0, -1, 1e308, 10**400, "x", "", "\x1b[31m", [], {}, [1], ["a", None]]
VALUES += [{"a": {"b": []}}, [[[]]], {"": None}, 2**63, "9" * 50, "../..", "\u202e", ["\x9b2J"] * 9]
TEXTS = [
    "[" * 100_000,
    "",
    "\ud800",
    "nul\0",
    "{",
    '"a"\n"b"',
    "1" * 5000,
    "NaN",
    "- *a",
    "a: &a b",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that a run folder may hold."""
    words = [*small_runs.DEBUG, small_runs.shapes(32), "epochs=2"]
    run = small_runs.train(tmp_path_factory.mktemp("runs"), *words)
    assert note.main([str(run), "a remark"]) == 0 and gallery.main([str(run)]) == 0
    return run


def changed(value: Any, draw: random.Random) -> Any:
    """A copy in which something is another, or missing, or more."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        inner = {key: changed(value[key], draw)} if draw.random() < 0.8 else {}
        more = {"more": draw.choice(VALUES)} if draw.random() < 0.1 else {}
        return {k: v for k, v in value.items() if k != key} | inner | more
    if isinstance(value, list) and value and draw.random() < 0.8:
        n = draw.randrange(len(value))
        return [*value[:n], changed(value[n], draw), *value[n + 1 :]]
    return draw.choice(VALUES)


def craft(path: Path, draw: random.Random) -> None:
    text = path.read_text()
    if draw.random() < 0.15:
        text = draw.choice(TEXTS)
    elif path.suffix == ".yaml":
        text = yaml.safe_dump(changed(yaml.safe_load(text), draw))
    elif path.suffix == ".jsonl":
        rows = changed([json.loads(line) for line in text.splitlines()], draw)
        text = "".join(
            json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])
        )
    else:
        text = json.dumps(changed(json.loads(text), draw))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def commands(run: Path, good: Path, out: Path) -> list[tuple[Callable, list[Any]]]:
    """Quick ones, and slow ones behind them."""
    return [
        (compare.main, [run, good, "--all"]),
        (compare.main, [run, "--layout", "week3", "--format", "csv"]),
        (compare.main, [run, "--each", "--layout", "runlog", "--format", "markdown"]),
        (report.main, [run, "-o", out / "page.html"]),
        (leaderboard.main, [run.parent]),
        (rerun.main, [run, "--against", good]),
        (rerun.main, [good, "--against", run]),
        (note.main, [run]),
        (evaluate.main, [run]),
        (predict.main, [run, "--split", "val", "-o", out / "answers"]),
        (gallery.main, [run]),
        (train.main, [run, "--quiet"]),
    ]


def test_no_file_of_a_run_folder_ends_a_command_otherwise(finished, tmp_path, capsys):
    draw = random.Random(12)
    codes = set()
    for n in range(COUNT):
        run = tmp_path / str(n) / "run"
        shutil.copytree(finished, run)
        name = draw.choice(FILES)
        craft(run / name, draw)
        for place, (main, words) in enumerate(commands(run, finished, tmp_path)):
            if place < 8 or n % SLOW == place % SLOW:
                code = main(list(map(str, words)))
                said = capsys.readouterr()
                codes.add(code)
                told = (name, main.__module__, code, said.err)
                assert code in (0, 1, 2), told
                assert all(x.replace("\t", "").isprintable() for x in said.out.split("\n")), told
                assert said.err.count("error: ") == (code == 2), told
        shutil.rmtree(run)
    assert {0, 2} <= codes

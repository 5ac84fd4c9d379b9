"""A run folder that an earlier version left (commit ce3b4da, before the package was rebuilt) stays
readable, and training goes on from it as that version would have gone on."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from forked import Ranks

from vision_tutorial import (
    build,  # noqa: F401  (imported before the fork)
    train,
)
from vision_tutorial.commands import compare, evaluate, report

FIXTURE = Path(__file__).parent / "fixtures" / "first_edition_run" / "old"
# what that version's own continuation of the run ended with, on an AMD EPYC with torch 2.15.0
FINAL_WEIGHTS = "4c0f8ee4188a4a862cfe98d98c670727b4da2dd56b7ae51c703955b2c58cbcaa"
FINAL_LOSS = 1.589117705821991


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run, stopped after 10 of 16 steps."""
    made = Path(shutil.copytree(FIXTURE, tmp_path / "runs" / "quickstart" / "old"))
    for path in (made, *made.rglob("*")):  # the checkout may be read-only
        path.chmod(path.stat().st_mode | 0o200)
    return made


def weights(run: Path, step: int) -> str:
    file = run / "ckpt" / f"step-{step:08}" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_training_goes_on_to_the_same_bits(run, tmp_path):
    new = [str(FIXTURE / "recipe.yaml"), "--runs", str(tmp_path), "--id", "new", "--steps", "10"]
    assert Ranks(1, lambda rank: train.main([str(run)]) or train.main(new)).join() == [0]
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["epoch"], last["step"]) == (4, 16)
    assert last["train/loss"] == pytest.approx(FINAL_LOSS, rel=1e-4)
    if weights(tmp_path / "quickstart" / "new", 10) == weights(FIXTURE, 10):  # a machine as that
        assert weights(run, 16) == FINAL_WEIGHTS


def test_it_is_compared_evaluated_and_reported(run, tmp_path, capsys):
    assert compare.main([str(run)]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert evaluate.main([str(run), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["runs"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best["value"] in [row["val/miou"] for row in rows]
    assert any(value == pytest.approx(best["value"]) for value in result["metrics"].values())
    assert report.main([str(run), "-o", str(tmp_path / "page.html")]) == 0
    assert "quickstart" in (tmp_path / "page.html").read_text("utf-8")

"""Runs read from a wandb whose server is a fake."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.fields import to_plain
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import wandb_reader
from vision_tutorial.runs.reader import Point, Run

RECIPE = to_plain(load(Path(__file__).parents[2] / "recipes" / "r4.yaml").recipe)
SUMMARY = {"metric": "val/top1", "chosen_on": "test", "status": "done", "_runtime": 3660}
SUMMARY |= {"best/epoch": 240, "best/value": 82.0, "last/epoch": 260, "last/value": 81.5}


def entry(**more: Any) -> SimpleNamespace:
    """A run as wandb's Api gives it."""
    facts = {"config": RECIPE, "summary": SUMMARY, "state": "finished", "name": "r4-1"}
    facts |= {"id": "r4-1", "created_at": "2026-11-25T10:00:00"}
    facts |= {"url": "https://wandb.ai/a/b/runs/r4-1"}
    return SimpleNamespace(**facts | more)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    wandb = MagicMock()
    wandb.Api.return_value.runs = lambda path, order, lazy=True: wandb.entries[path, order, lazy]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb_reader, "decide_mode", lambda mode, module: ("online", ""))
    return wandb


def only_run(fake: MagicMock, **more: Any) -> Run:
    """The run of a project that holds one; a newer version of wandb gives it whole at once."""
    fake.entries = {("school/vision", "+created_at", False): [entry(**more)]}
    (run,) = wandb_reader.project_runs("wandb:school/vision/")
    return run


def test_a_finished_run(fake: MagicMock) -> None:
    run = only_run(fake)
    assert (run.name, run.id, run.status, run.seconds) == ("r4", "r4-1", "done", 3660)
    assert (run.metric, run.best, run.last) == ("val/top1", Point(240, 82.0), Point(260, 81.5))
    assert run.expects == {"top1": 82.13, "minutes": 61} and run.chosen_on == "test"
    assert (run.created, run.link) == ("2026-11-25T10:00:00", "https://wandb.ai/a/b/runs/r4-1")
    assert run.rows == [] and run.notes == () and run.classes == {} and run.folder is None


def test_other_states(fake: MagicMock) -> None:
    for state, summary, status in (
        ("finished", SUMMARY | {"status": "paused"}, "paused"),
        ("crashed", {}, "killed"),
        ("failed", SUMMARY, "failed"),
    ):
        run = only_run(fake, state=state, summary=summary)
        assert run.status == status and (run.best is None) == (not summary)
    run = only_run(fake, config={"lr": 1}, summary={"loss": 1})  # of another program
    assert (run.name, run.recipe) == ("r4-1", {"lr": 1})
    assert run.best is run.seconds is run.metric is None


def test_whatever_wandb_raises_is_one_line(fake: MagicMock) -> None:
    fake.Api.return_value.runs = lambda path, order: [entry()]  # an older version
    assert len(wandb_reader.project_runs("wandb:school/vision")) == 1
    fake.Api.side_effect = RuntimeError("could not find\nproject a/b")
    with pytest.raises(UserError, match=r"cannot be read \(could not find project a/b\)"):
        wandb_reader.project_runs("wandb:a/b")

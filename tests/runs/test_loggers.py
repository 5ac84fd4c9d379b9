"""TensorBoard beside wandb, and ids that two students do not share."""

from pathlib import Path

import pytest
from small_runs import SMALL, train

from vision_tutorial.runs import wandb_logger
from vision_tutorial.runs.reader import read

pytest.importorskip("tensorboard")


def test_tensorboard_reads_back_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("VISION_TUTORIAL_ARTIFACTS", raising=False)
    words = ["recipes/debug.yaml", *SMALL, "loggers=[tensorboard]"]
    run = train(tmp_path, *words)
    run = train(tmp_path, "epochs=3")  # a resume sends no row twice
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = read(run).rows
    for name in ("train/loss", "val/top1", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert {"curves", "confusion"} <= set(events.Tags()["images"])
    assert not (run / "wandb").exists()


def test_an_id_is_drawn_once_for_each_folder(tmp_path: Path) -> None:
    one, other = (wandb_logger.run_id(tmp_path / name, "r1-seed42") for name in ("mina", "jun"))
    assert one != other and one.startswith("r1-seed42-")
    assert wandb_logger.run_id(tmp_path / "mina", "r1-seed42") == one, "kept for a resume"
    old = tmp_path / "old" / "wandb"
    old.mkdir(parents=True)
    (old / "sent.json").write_text('{"run": "r1-seed42", "step": 3, "row": 1}')
    assert wandb_logger.run_id(tmp_path / "old", "r1-seed42") == "r1-seed42"

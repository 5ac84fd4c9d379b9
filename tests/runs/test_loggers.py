"""TensorBoard beside wandb, and ids that two students do not share."""

from pathlib import Path

import numpy as np
import pytest
import wandb_file
from PIL import Image
from small_runs import SMALL, train

from vision_tutorial.runs import wandb_logger
from vision_tutorial.runs.reader import read


def test_two_students_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One recipe, one project, offline: what wandb would upload is two runs, with the images."""
    pytest.importorskip("wandb")
    wandb_file.forget(monkeypatch, tmp_path / "home")
    monkeypatch.delenv("VISION_TUTORIAL_ARTIFACTS", raising=False)
    monkeypatch.setattr(wandb_logger, "START_SECONDS", 60.0)
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 60.0)
    where = ["wandb={mode: offline, entity: class, project: week3, name: 'lr 0.1'}"]
    ids = []
    for person, resumed in (("mina", True), ("jun", False)):
        monkeypatch.setenv("VISION_TUTORIAL_AUTHOR", person)
        run = train(tmp_path / person, "recipes/debug.yaml", *SMALL, *where)
        if resumed:
            train(tmp_path / person, "epochs=3")
        started = [r.run for r in wandb_file.read(run) if r.HasField("run")]
        facts = {(r.run_id, r.entity, r.project, r.display_name, r.run_group) for r in started}
        ((id, *others),) = facts  # also after a resume
        assert others == ["class", "week3", "lr 0.1", "debug"]
        assert wandb_file.items(started[0].config.update)["author"] == person
        rows = wandb_file.history(run)
        steps = [row["step"] for row in rows if "step" in row]
        assert steps == [row["step"] for row in read(run).rows], "each row once"
        sent = {key.split("/")[0] for row in rows for key in row}
        images = {"curves", "confusion", "train_batch", "val_predictions"}
        assert images | {"classes"} <= sent
        for name in images:
            files = run.glob(f"wandb/*run-*/files/media/images/{name}_*.png")
            pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
            drawn = np.asarray(Image.open(run / f"{name}.png").convert("RGB"))
            assert any(np.array_equal(drawn, one) for one in pixels), name
        ids.append(id)
    assert ids[0] != ids[1]


def test_tensorboard_reads_back_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
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

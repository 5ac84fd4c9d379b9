"""Saving overlaps with learning, and nothing is told before it is on disk."""

import concurrent.futures
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vision_tutorial.core.atomic import read_json
from vision_tutorial.core.errors import StorageError
from vision_tutorial.engine import Checkpoints, ModelEma, Progress, RunRecorder
from vision_tutorial.recipe.fields import CheckpointPolicy
from vision_tutorial.runs import run_folder
from vision_tutorial.runs.wandb_logger import Tracker


class Told(Tracker):
    """Remembers what it hears, as tracker and as display."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.step = lambda *given: None

    def log(self, row: dict) -> None:
        self.heard.append(f"log {row['epoch']}")

    def epoch(self, row: dict, best: bool = False) -> None:
        self.heard.append(f"show {row['epoch']}{' best' * best}")


class Slow(Checkpoints):
    """Writes when it is let; fails as often as `failing` says."""

    failing = 0

    def __init__(self, run: Path):
        super().__init__(run, "hash", say=lambda line: None)
        self.gate = threading.Event()

    def _write(self, *job: object) -> None:
        assert self.gate.wait(20)
        if self.failing:
            self.failing -= 1
            raise OSError("no space")
        super()._write(*job)


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    told, model = Told(), nn.Linear(2, 2)
    training = SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ema=ModelEma(),
        distributed=SimpleNamespace(scaler=None),
        blends=nn.ModuleDict(),
    )
    return RunRecorder(tmp_path, training, Slow(tmp_path), CheckpointPolicy(), told, told)


def end_epoch(recorder: RunRecorder, epoch: int, best: bool = False) -> Progress:
    row = {"epoch": epoch, "step": 8 * epoch}
    table = {"class": [f"best of {epoch}"]}
    progress = Progress(step=8 * epoch, rows=[row], table=table, seconds=1.0)
    recorder.save(progress, is_best=best)
    return progress


def rows(recorder: RunRecorder) -> list[int]:
    path = recorder.run / "metrics.jsonl"
    return [row["epoch"] for row in run_folder.read_rows(path)] if path.exists() else []


def test_learning_goes_on_while_a_checkpoint_is_written(recorder: RunRecorder) -> None:
    progress = end_epoch(recorder, 1, best=True)
    recorder.stepped(progress, 1.0, 0.1)  # would hang if it waited
    assert recorder.tracker.heard == [] and rows(recorder) == []
    recorder.checkpoints.gate.set()
    concurrent.futures.wait([recorder.checkpoints.saving])
    assert (recorder.run / "ckpt" / "step-00000008" / "MANIFEST.json").exists()
    assert rows(recorder) == []
    for _ in range(2):
        recorder.stepped(progress, 1.0, 0.1)
    assert rows(recorder) == [1] and recorder.tracker.heard == ["log 1", "show 1 best"]
    assert read_json(recorder.run / "classes.json") == {"class": ["best of 1"]}


def test_an_epoch_is_told_before_the_next_save(recorder: RunRecorder) -> None:
    end_epoch(recorder, 1, best=True)
    threading.Timer(0.2, recorder.checkpoints.gate.set).start()
    end_epoch(recorder, 2)
    assert rows(recorder) == [1]
    for _ in range(2):
        recorder.close()
        assert rows(recorder) == [1, 2] and recorder.tracker.heard[-1] == "show 2"
    assert read_json(recorder.run / "classes.json") == {"class": ["best of 1"]}


def test_a_failed_last_save_is_told_and_ends_with_an_error(recorder: RunRecorder) -> None:
    recorder.checkpoints.failing = 1
    recorder.checkpoints.gate.set()
    end_epoch(recorder, 1)
    with pytest.raises(StorageError, match="no space"):
        recorder.close()
    assert rows(recorder) == [1]  # the disk took the line


def test_after_three_failures_nothing_more_is_told(recorder: RunRecorder) -> None:
    recorder.checkpoints.failing = 3
    recorder.checkpoints.gate.set()
    for epoch in (1, 2, 3):
        end_epoch(recorder, epoch)
    concurrent.futures.wait([recorder.checkpoints.saving])
    for tell in (lambda: recorder.stepped(Progress(seconds=1.0), 1.0, 0.1), recorder.close):
        with pytest.raises(StorageError, match="no space"):
            tell()
    assert rows(recorder) == [1, 2]

"""Children: which GPUs and cores they get, and how they are asked to stop."""

import os
import signal
import sys
from pathlib import Path

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.runs import run_folder
from vision_tutorial.sweeps import children
from vision_tutorial.sweeps.children import Stop


def test_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "usable_cores", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(children, "gpu_names", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert children.seats(None) == [children.Seat((), (0, 1, 2, 3, 4))]
    assert [seat.cores for seat in children.seats(2)] == [(0, 1), (2, 3, 4)]
    assert len(children.seats(7)) == 7 and all(seat.cores for seat in children.seats(7))
    monkeypatch.setattr(children, "gpu_names", lambda: ["H100"] * 4)
    assert [seat.gpus for seat in children.seats(None)] == [("0",), ("1",), ("2",), ("3",)]
    assert [seat.gpus for seat in children.seats(None, 2)] == [("0", "1"), ("2", "3")]
    assert [seat.gpus for seat in children.seats(6)][4:] == [("0",), ("1",)]
    with pytest.raises(UserError, match="there are 4 GPUs"):
        children.seats(None, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-77")
    assert [seat.gpus for seat in children.seats(None)] == [("3",), ("GPU-77",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [seat.gpus for seat in children.seats(None)] == [()]


def test_a_training_on_several_processes_starts_through_the_launcher() -> None:
    one, two = (children.training(["r.yaml"], processes) for processes in (1, 2))
    assert one[1:] == ["-m", "vision_tutorial.train", "r.yaml"]
    assert Path(two[1]).name == "launch.py" and Path(two[1]).is_file()
    assert two[2:] == ["--nproc", "2", *one[1:]]


def test_a_signal_asks_each_child_once_also_one_that_is_just_starting() -> None:
    stop = Stop()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with stop.listening():
        first = children.start(sleep)
        stop.watch(first)
        os.kill(os.getpid(), signal.SIGUSR1)
        late = children.start(sleep)
        stop.watch(late)
        assert stop.asked and [first.wait(), late.wait()] == [-signal.SIGTERM] * 2


def test_why_a_training_failed(tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    log.write_text("step 1\nerror: no such loss\n====\nroot cause\n====\n")
    assert children.complaint(run, log) == "error: no such loss", "torchrun ends with a border"
    log.write_text("step 1\nKilled\n\n")
    assert children.complaint(run, log) == "Killed"
    run.mkdir()
    run_folder.set_status(run, "running", pid=1)
    assert children.complaint(run, log) == "Killed"
    run_folder.set_status(run, "failed", exit_code=3, error="loss nan at step 7")
    assert children.complaint(run, log) == "exit code 3: loss nan at step 7"

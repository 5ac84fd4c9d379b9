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


def test_device_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "usable_cores", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(children, "gpu_names", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert children.device_slots(None) == [children.DeviceSlot((), (0, 1, 2, 3, 4))]
    assert [slot.cores for slot in children.device_slots(2)] == [(0, 1), (2, 3, 4)]
    assert [len(slot.cores) for slot in children.device_slots(7)] == [1] * 7
    monkeypatch.setattr(children, "gpu_names", lambda: ["H100"] * 4)
    assert [slot.gpus for slot in children.device_slots(None)] == [("0",), ("1",), ("2",), ("3",)]
    assert [slot.gpus for slot in children.device_slots(None, 2)] == [("0", "1"), ("2", "3")]
    assert children.device_slots(6)[5].gpus == ("1",)
    with pytest.raises(UserError, match="there are 4 GPUs"):
        children.device_slots(None, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-77")
    assert [slot.gpus for slot in children.device_slots(None)] == [("3",), ("GPU-77",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [slot.gpus for slot in children.device_slots(None)] == [()]


def test_a_training_on_several_processes_starts_through_the_launcher() -> None:
    one, two = (children.training(["r.yaml"], processes) for processes in (1, 2))
    assert one[1:] == ["-m", "vision_tutorial.train", "r.yaml"]
    assert Path(two[1]).name == "torchrun_nproc.py" and Path(two[1]).is_file()
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
    assert children.failure_reason(run, log) == "error: no such loss", "torchrun ends with a border"
    log.write_text("step 1\nKilled\n\n")
    assert children.failure_reason(run, log) == "Killed"
    run.mkdir()
    run_folder.set_status(run, "running", pid=1)
    assert children.failure_reason(run, log) == "Killed"
    run_folder.set_status(run, "failed", exit_code=3, error="loss nan at step 7")
    assert children.failure_reason(run, log) == "exit code 3: loss nan at step 7"

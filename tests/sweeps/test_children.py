"""Children: which GPUs and cores they get, and how they are asked to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.sweeps import children, scheduler
from vision_tutorial.sweeps.children import DeviceSlot, Stop, device_slots
from vision_tutorial.sweeps.trials import Trial


def test_device_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(returncode=9, stdout="no driver")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    monkeypatch.setattr(children, "usable_cores", lambda: [0, 1, 2, 3, 4])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_slots(None) == [DeviceSlot((), (0, 1, 2, 3, 4))]
    assert [slot.cores for slot in device_slots(2)] == [(0, 1), (2, 3, 4)]
    assert [len(slot.cores) for slot in device_slots(7)] == [1] * 7
    found.returncode, found.stdout = 0, "".join(f"GPU {n}: NVIDIA H100\n" for n in range(4))
    assert [slot.gpus for slot in device_slots(None)] == [("0",), ("1",), ("2",), ("3",)]
    assert [slot.gpus for slot in device_slots(None, 2)] == [("0", "1"), ("2", "3")]
    assert device_slots(6)[5].gpus == ("1",)
    with pytest.raises(UserError, match="4 GPUs can be seen"):
        device_slots(None, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-77")
    assert [slot.gpus for slot in device_slots(None)] == [("3",), ("GPU-77",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [slot.gpus for slot in device_slots(None)] == [()]


def test_a_signal_asks_each_child_once_also_one_that_is_just_starting() -> None:
    stop = Stop()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with stop.listening():
        first = children.start(sleep)
        stop.watch(first)
        os.kill(os.getpid(), signal.SIGUSR1)
        late = children.start(sleep)
        stop.watch(late)
        assert stop.signalled() and [first.wait(), late.wait()] == [-signal.SIGTERM] * 2


def test_nothing_begins_after_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, started = Stop(), []

    def start(command: list[str], *_: Any) -> Any:
        started.append(command)
        stop.signal = signal.SIGTERM if len(started) == 2 else None
        still = iter([None] * 3 * (len(started) - 1))  # the first ends at once
        return SimpleNamespace(poll=lambda: next(still, 0), terminate=lambda: 0, returncode=143)

    monkeypatch.setattr(scheduler, "TICK", 0.01)
    monkeypatch.setattr(children, "start", start)
    trials = [Trial(n, tmp_path / n, tmp_path / f"{n}.log", (), 1) for n in ("a", "b", "c")]
    scheduler.Scheduler([DeviceSlot()] * 2, 1, stop).run(trials, trials)
    assert len(started) == 2


def test_why_a_training_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("step 1\nerror: no such loss\n====\nroot cause\n====\n")
    assert children.failure_reason(log) == "error: no such loss", "torchrun ends with a border"
    log.write_text("step 1\nKilled\n\n")
    assert children.failure_reason(log) == "Killed"

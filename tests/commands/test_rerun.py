"""The rerun command: what it trains, says and answers."""

import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import counting
import pytest
from counting import Ended, beside, ended
from run_folders import edit

from vision_tutorial.commands import rerun as command
from vision_tutorial.core.atomic import read_json
from vision_tutorial.runs import run_folder
from vision_tutorial.sweeps import children

ROOT = Path(__file__).parents[2]
SMALL = ["dataset={shapes: {train: 64, test: 30, size: 16}}", "batch_size=16", "threads=1"]
SMALL += ["data.path=timm"]  # so that nothing is compiled


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of three epochs that a counting child made, in runs/debug/a."""
    monkeypatch.setenv("COUNTING_DIARY", str(tmp_path / "diary"))
    monkeypatch.setattr(children, "start", counting.start)
    monkeypatch.setattr(command, "LOOK", 0.02)
    return counted(tmp_path / "runs", "a")


def counted(root: Path, id: str, *overrides: str) -> Path:
    """A run folder that a counting child made."""
    words = [str(ROOT / "recipes" / "debug.yaml"), "epochs=3", *overrides]
    words += ["--runs", str(root), "--id", id]
    assert counting.start(children.training(words)).wait() == 0
    return root / "debug" / id


@pytest.fixture
def rerun(capfd: Any) -> Callable[..., Ended]:
    """The command, in this process."""
    return lambda *words: ended(capfd, command.main, *words)


def test_a_run_is_trained_again_beside_it_and_found_identical(original: Path, rerun: Any) -> None:
    found = rerun(original)
    assert found.code == 0, found.out + found.err
    lines = found.out.splitlines()
    assert lines[0] == f"{original}: done; comparing 3 of 3 epochs"
    assert lines[-1] == "bit-identical: all metrics of 3 epochs"
    assert [line[:9] for line in lines if line.endswith("same bits")] == [
        f"epoch {n}/3" for n in (1, 2, 3)
    ]
    again = original.with_name("a-rerun")
    assert read_json(again / "status.json")["status"] == "done"
    assert "threads: 1\n" in (again / "recipe.yaml").read_text(), "as many as the run had"


def test_an_edited_seed_is_not_reproduced(original: Path, rerun: Any) -> None:
    path = original / "recipe.yaml"
    path.write_text(path.read_text().replace("seed: 42", "seed: 43"))
    found = rerun(original)
    assert found.code == 1 and "not reproduced: recipe.yaml was edited" in found.out
    assert not original.with_name("a-rerun").exists(), "another recipe would have been trained"
    edit(original / "fingerprint.json", recipe={})  # nobody recorded what it was
    found = rerun(original)
    assert found.code == 1 and "epoch 1: val/top1 is" in found.out.splitlines()[-1]


def test_only_the_first_epochs_or_as_far_as_it_came(original: Path, rerun: Any) -> None:
    found = rerun(original, "--first", 2)
    assert found.code == 0 and "bit-identical: all metrics of 2 epochs" in found.out
    again = original.with_name("a-rerun")
    assert read_json(again / "status.json")["status"] == "paused"
    assert "epochs: 3\n" in (again / "recipe.yaml").read_text(), "the schedule keeps its shape"
    rows = run_folder.read_rows(original / "metrics.jsonl")
    run_folder.write_rows(original / "metrics.jsonl", rows[:1])
    run_folder.set_status(original, "preempted")
    found = rerun(original)
    assert found.code == 0 and "preempted; comparing 1 of 1 epoch" in found.out
    assert len(run_folder.read_rows(original.with_name("a-rerun-2") / "metrics.jsonl")) == 1
    run_folder.write_rows(original / "metrics.jsonl", [])
    found = rerun(original)
    assert found.code == 2 and "no epoch of it is finished" in found.err


def test_what_differs_is_said_first_and_noise_is_told_from_seeds(
    original: Path, rerun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = read_json(original / "fingerprint.json")
    edit(original / "fingerprint.json", versions=facts["versions"] | {"timm": "0.5.4"})
    monkeypatch.setenv("COUNTING_DRIFT", "0.01")
    found = rerun(original)
    told = f"versions.timm: 0.5.4 there, {facts['versions']['timm']} here"
    assert told in found.out  # what stands beside it depends on whether this process has torch
    assert found.code == 1 and "spread between seeds is unknown" in found.out
    again = original.with_name("a-rerun")
    found = rerun(original, "--against", again, "--spread", 0.1)
    assert found.code == 0 and found.out.splitlines()[-1].startswith("within noise: ")
    assert not original.with_name("a-rerun-2").exists()
    monkeypatch.setenv("COUNTING_DRIFT", "0")
    for seed in (1, 2):
        counted(original.parents[1], f"s{seed}", f"seed={seed}")
    found = rerun(original, "--against", again)
    assert found.code == 0 and "from 3 seeds" in found.out


def test_a_second_run_that_fails(original: Path, rerun: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(children, "start", partial(counting.start, command_main=lambda words: 4))
    assert rerun(original).code == 4
    found = rerun(original.parent / "nowhere")
    assert found.code == 2 and found.err.count("\n") == 1 and "Give a folder" in found.err


def test_asked_to_stop_it_says_how_to_go_on(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTING_SECONDS", "0.4")
    process = beside("rerun", original, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate()
    again = original.with_name("a-rerun")
    assert process.returncode == 143 and f"vision-tutorial train {again}" in rest
    assert f"vision-tutorial rerun {original} --against {again}" in rest
    assert read_json(again / "status.json")["status"] == "preempted"


def test_a_real_run_on_the_cpu_is_bit_identical(
    tmp_path: Path, rerun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = counting.real_start()
    words = [str(ROOT / "recipes" / "debug.yaml"), *SMALL, "--runs", str(tmp_path), "--id", "a"]
    assert start(children.training([*words, "--quiet"])).wait() == 0
    monkeypatch.setattr(children, "start", start)
    found = rerun(tmp_path / "debug" / "a")
    assert found.code == 0, found.out + found.err
    assert found.out.splitlines()[-1] == (
        "bit-identical: all metrics of 2 epochs, and weights at step-00000004, step-00000008"
    )

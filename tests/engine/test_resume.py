"""Killed at any moment and resumed, a run ends bit-identical to one that was left alone."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forked import Ranks
from small_runs import DEBUG, left, shapes, train

from vision_tutorial import train as command
from vision_tutorial.core.errors import ExitCode
from vision_tutorial.runs import run_folder

KILLS = 4
SMALL = [*DEBUG, shapes(64, 10), "epochs=3", "checkpoint.every_steps=1"]


def start(world: int, folder: Path, *more: str) -> Ranks:
    """Train on forked ranks in `folder`, continuing what is there."""
    run = folder / "debug" / "run"
    if (run / "recipe.yaml").exists():
        words = [str(run)]
    else:
        words = [*SMALL, "--runs", str(folder), "--id", "run"]
        if run.exists():  # killed before its recipe was written: nothing was reported yet
            run.rename(run.with_name(f"stillborn-{time.monotonic_ns()}"))
    return Ranks(world, lambda rank: command.main([*words, *more]), quiet=True)


def end_state(folder: Path) -> tuple[dict[str, bytes], list[dict]]:
    """What a run that is done has left."""
    run = folder / "debug" / "run"
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    return left(run)[:2]


def wait_for_a_row(ranks: Ranks, folder: Path) -> Path:
    """The run folder, once it holds a finished epoch."""
    run = folder / "debug" / "run"
    while not (run / "metrics.jsonl").exists() or not run_folder.read_rows(run / "metrics.jsonl"):
        assert ranks.processes[0].is_alive()
        time.sleep(0.02)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """World size -> (end state, seconds it took)."""
    found = {}
    train(tmp_path_factory.mktemp("warm"), *SMALL, "--steps", "1")  # no fork compiles it again
    for world in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world}")
        began = time.monotonic()
        assert start(world, folder).join() == [0] * world
        found[world] = (end_state(folder), time.monotonic() - began)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_random_times(world: int, undisturbed: dict, tmp_path: Path) -> None:
    expected, seconds = undisturbed[world]
    chance, kills = random.Random(world), 0
    while kills < KILLS:
        ranks = start(world, tmp_path, f"workers={chance.choice([0, 0, 1, 2])}")
        time.sleep(chance.uniform(0, seconds))
        if any(process.is_alive() for process in ranks.processes):
            ranks.kill(signal.SIGKILL)
            ranks.join()
            kills += 1
        else:
            assert ranks.join() == [0] * world
            assert end_state(tmp_path) == expected
            tmp_path = tmp_path / "again"
    assert start(world, tmp_path).join() == [0] * world
    assert end_state(tmp_path) == expected


def test_one_rank_killed_ends_the_other(tmp_path: Path) -> None:
    ranks = start(2, tmp_path, "epochs=500")
    wait_for_a_row(ranks, tmp_path)
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    codes = ranks.join(timeout=60)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0


def test_sigterm_saves_and_says_so(undisturbed: dict, tmp_path: Path) -> None:
    ranks = start(1, tmp_path, "checkpoint.every_steps=null")
    run = wait_for_a_row(ranks, tmp_path)
    ranks.kill(signal.SIGTERM)
    assert ranks.join() == [ExitCode.PREEMPTED]
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "preempted" and status["exit_code"] == ExitCode.PREEMPTED
    assert start(1, tmp_path).join() == [0]
    assert end_state(tmp_path) == undisturbed[1][0]


def test_step_limit_pauses_anywhere_and_continues(undisturbed: dict, tmp_path: Path) -> None:
    for _ in range(3):  # 12 steps in all, 4 an epoch: pauses fall within epochs
        assert start(1, tmp_path, "--steps", "5").join() == [0]
    assert end_state(tmp_path) == undisturbed[1][0]


def test_strict_shards_are_bit_equal_on_any_number_of_processes(tmp_path: Path) -> None:
    words = ["shards=4", "epochs=2"]
    assert start(1, tmp_path / "alone", *words).join() == [0]
    for world in (4, 2):  # 5 steps, and the other 3
        ranks = start(world, tmp_path / "changing", *words, "--steps", "5")
        assert ranks.join() == [0] * world
    assert end_state(tmp_path / "changing") == end_state(tmp_path / "alone")


def test_without_batch_statistics_processes_do_not_matter(tmp_path: Path) -> None:
    """Plain DDP: same images, same mixing, so only the order of float32 additions differs."""
    found, words = [], ["model={test_vit: {img_size: 16}}", "epochs=1"]
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert start(world, folder, *words).join() == [0] * world
        found.append(safetensors.torch.load(end_state(folder)[0]["model.safetensors"]))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5)

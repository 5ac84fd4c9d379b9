"""Killed at any moment and resumed, a run ends bit-identical to one that was left alone.

VISION_TUTORIAL_KILLS sets how many SIGKILLs each case takes (default 4).
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import Ranks
from small_runs import DEBUG, left, shapes

from vision_tutorial import build  # noqa: F401  (imported before the fork)
from vision_tutorial import train as command
from vision_tutorial.core.errors import ExitCode
from vision_tutorial.runs import run_folder

KILLS = int(os.environ.get("VISION_TUTORIAL_KILLS", 4))
SMALL = [*DEBUG, shapes(), "epochs=3", "checkpoint.every_steps=1"]


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
    for world in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world}")
        began = time.monotonic()
        assert start(world, folder).join() == [0] * world
        found[world] = (end_state(folder), time.monotonic() - began)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_random_times(world: int, undisturbed: dict, tmp_path: Path) -> None:
    expected, seconds = undisturbed[world]
    chance = random.Random(world)
    kills = finished = 0
    while kills < KILLS:
        ranks = start(world, tmp_path, f"workers={chance.choice([0, 0, 1, 2])}")
        time.sleep(chance.uniform(0, seconds))
        if all(not p.is_alive() for p in ranks.processes):
            finished += 1
            assert ranks.join() == [0] * world
            assert end_state(tmp_path) == expected
            tmp_path = tmp_path / "again"
            continue
        ranks.kill(signal.SIGKILL)
        ranks.join()
        kills += 1
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
    codes = ranks.join()
    status = json.loads((run / "status.json").read_text())
    assert codes == [ExitCode.PREEMPTED]
    assert status["status"] == "preempted" and status["exit_code"] == ExitCode.PREEMPTED
    assert start(1, tmp_path).join() == [0]
    assert end_state(tmp_path) == undisturbed[1][0]


def test_step_limit_pauses_anywhere_and_continues(undisturbed: dict, tmp_path: Path) -> None:
    for _ in range(4):  # 24 steps in all, 8 an epoch: pauses fall within epochs
        assert start(1, tmp_path, "--steps", "7").join() == [0]
    assert end_state(tmp_path) == undisturbed[1][0]


def test_strict_shards_are_bit_equal_on_any_number_of_processes(tmp_path: Path) -> None:
    def final(folder: Path, *sizes: int) -> tuple:
        limit = ["--steps", "7"] * (len(sizes) > 1)
        for world in sizes:
            assert start(world, folder, "shards=4", *limit).join() == [0] * world
        return end_state(folder)

    alone = final(tmp_path / "alone", 1)
    assert final(tmp_path / "four", 4) == alone
    assert final(tmp_path / "changing", 1, 2, 4, 2) == alone


def test_without_batch_statistics_processes_do_not_matter(tmp_path: Path) -> None:
    """Plain DDP: same images, same mixing, so only the order of float32 additions differs."""
    import safetensors.torch

    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        model = "model={test_vit: {img_size: 16}}"
        assert start(world, folder, model).join() == [0] * world
        files, rows = end_state(folder)
        found.append((safetensors.torch.load(files["model.safetensors"]), rows))
    for name, value in found[0][0].items():
        torch.testing.assert_close(value, found[1][0][name], rtol=1e-4, atol=1e-5)

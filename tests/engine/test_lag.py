"""Results that are read some steps later are the same: async_steps 0 and more side by side."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from small_runs import DEBUG, Spoilt, left, shapes, train

from vision_tutorial import build
from vision_tutorial import train as command
from vision_tutorial.core.errors import ExitCode
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.loop import PATIENCE
from vision_tutorial.engine.step import async_steps_of
from vision_tutorial.recipe.loading import load

FIT = importlib.import_module("vision_tutorial.engine.loop")
SMALL = [*DEBUG, shapes(), "epochs=2"]
BAD = {0, 5, 11, 12}  # steps; 8 an epoch


def trained(
    folder: Path, async_steps: int, bad: set[int], *more: str, code: int = ExitCode.DONE
) -> tuple[dict, list, str]:
    """What a run leaves whose loss is NaN at the steps `bad`: tensors, rows, the last folder."""
    real = build.criteria
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FIT, "async_steps_of", lambda *_: async_steps)
        patched.setattr(
            build, "criteria", lambda *given: {"loss": Spoilt(real(*given)["loss"], bad)}
        )
        return left(train(folder, *SMALL, *more, code=code))


@pytest.mark.parametrize(
    "more",
    [
        ["optimizer={sgd: {lr: 0.05, momentum: 0.9, weight_decay: 1.0e-4}}", "clip={norm: 0.5}"],
        ["optimizer={adam: {lr: 0.01, amsgrad: true}}", "clip={agc: 0.01}"],
        ["optimizer={sgd: {lr: 0.05, fused: false}}"],
        ["optimizer={lamb: {lr: 0.01}}", "ema={decay: 0.9}"],
        ["optimizer={lion: {lr: 0.001}}"],
        ["optimizer={muon: {lr: 0.01}}"],
        ["optimizer={adafactor: {lr: 0.01}}"],
    ],
)
def test_rows_and_weights_do_not_depend_on_the_lag(more: list[str], tmp_path: Path) -> None:
    at_once = trained(tmp_path / "0", 0, BAD, *more)
    assert [row["skipped_steps"] for row in at_once[1]] == [2, 2]
    assert trained(tmp_path / "2", 2, BAD, *more) == at_once


def scale_losses(patched: pytest.MonkeyPatch, **options: float) -> list:
    """Let every training from now on scale its loss, as in fp16; the scalers, as they are made."""

    def begin(self: Distributed, *given: object) -> None:
        real(self, *given)
        made.append(torch.amp.GradScaler("cpu", **options))
        self.scaler = self.accelerator.scaler = made[-1]

    made, real = [], Distributed.__init__
    patched.setattr(Distributed, "__init__", begin)
    return made


def test_a_scaled_loss_does_not_depend_on_the_lag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale that is too large overflows, is halved, and grows again."""
    scalers = scale_losses(monkeypatch, init_scale=2.0**126, growth_interval=3)
    more = ["optimizer={adamw: {lr: 0.01}}", "loss={cross_entropy: 1.0e+4}"]
    at_once = trained(tmp_path / "0", 0, BAD, *more)
    assert trained(tmp_path / "2", 2, BAD, *more) == at_once
    assert sum(row["skipped_steps"] for row in at_once[1]) > len(BAD), "it overflowed as well"
    assert scalers[0].state_dict() == scalers[1].state_dict() and scalers[0].get_scale() < 2.0**126


def test_overflows_at_the_lowest_scale_are_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, its gradient is not: PATIENCE steps are skipped, then it is told."""
    scale_losses(monkeypatch, init_scale=1.0)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *_: torch.tensor(math.inf))
    train(tmp_path, *SMALL, code=ExitCode.NON_FINITE)


def test_pauses_saves_and_resumes_do_not_depend_on_the_lag(tmp_path: Path) -> None:
    often = "checkpoint.every_steps=3"
    whole = trained(tmp_path / "0", 0, set(), often)
    for steps, last in ((1, 1), (6, 7), (99, 16)):
        part = trained(tmp_path / "2", 2, set(), often, "--steps", str(steps))
        assert part[2] == f"step-{last:08d}"
    assert part == whole


def test_too_many_bad_steps_end_the_training_and_nothing_of_them_is_saved(tmp_path: Path) -> None:
    _, rows, last = trained(tmp_path, 1, {*range(10, 11 + PATIENCE)}, code=ExitCode.NON_FINITE)
    assert last == "step-00000008" and len(rows) == 1


@pytest.mark.parametrize("async_steps", [0, 2])
def test_processes_with_a_lag_stop_at_the_same_step(async_steps: int, tmp_path: Path) -> None:
    """Rank 1 alone wants to stop, while rank 0 reads ahead at every step, to save."""

    def of_rank(rank: int) -> int:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FIT, "async_steps_of", lambda *_: async_steps)
            patched.setattr(FIT.StopRequest, "asked", lambda self, step: rank == step == 1)
            words = [*SMALL, "--runs", str(tmp_path), "--id", "run"]
            return command.main([*words, "checkpoint.every_steps=1", "--quiet"])

    assert run_ranks(2, of_rank) == [0, 0]
    assert left(tmp_path / "debug" / "run")[2] == f"step-0000000{2 + async_steps}"


@pytest.mark.parametrize(
    ("words", "device", "steps"),
    [
        (["optimizer={sgd: {lr: 0.1}}"], "cuda", 2),
        (["optimizer={lamb: {lr: 0.1}}"], "cuda", 2),
        (["optimizer={sgd: {lr: 0.1}}"], "cpu", 0),
        (["optimizer={sgd: {lr: 0.1}}", "shards=2"], "cuda", 0),
        (["optimizer={lookahead_sgd: {lr: 0.1}}"], "cuda", 0),
        (["optimizer={adahessian: {lr: 0.1}}"], "cuda", 0),
    ],
)
def test_steps_that_can_be_taken_back_are_under_way_on_a_gpu(
    words: list[str], device: str, steps: int
) -> None:
    recipe = load(SMALL[0], [*SMALL[1:], *words]).recipe
    training = build.training_state(recipe, build.data(recipe).train, Distributed(threads=1))
    training.distributed.device = torch.device(device)
    assert async_steps_of(training) == steps

"""Results that are read a step later are the same: async_steps 0 and 1 side by side."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_ranks
from small_runs import DEBUG, left, shapes, train

from vision_tutorial import build
from vision_tutorial import train as command
from vision_tutorial.core.errors import ExitCode
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import PATIENCE, async_steps_of

FIT = importlib.import_module("vision_tutorial.engine.loop")
SMALL = [*DEBUG, shapes(), "epochs=2"]
BAD = {0, 5, 11, 12}  # steps; 8 an epoch


def trained(
    folder: Path, async_steps: int, bad: set[int], *more: str, code: int = ExitCode.DONE
) -> tuple[dict, list, str]:
    """What a run leaves whose loss is NaN at the steps `bad`: tensors, rows, the last folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FIT, "async_steps_of", lambda *_: async_steps)
        patched.setattr(build, "criteria", spoilt(build.criteria, bad))
        return left(train(folder, *SMALL, *more, code=code))


def spoilt(make, bad: set[int]):
    """`build.criteria` whose loss is no number at the steps `bad`."""
    calls = iter(range(10**6))

    def made(*given):
        criterion = make(*given)["loss"]

        def spoiling(*given: torch.Tensor) -> tuple:
            total, parts = criterion(*given)
            return total * (math.nan if next(calls) in bad else 1.0), parts

        return {"loss": spoiling}

    return made


@pytest.mark.parametrize(
    "bad, more",
    [
        (set(), ["optimizer={adamw: {lr: 0.01}}"]),
        (BAD, ["optimizer={sgd: {lr: 0.05, momentum: 0.9, weight_decay: 1.0e-4}}"]),
        (BAD, ["optimizer={adam: {lr: 0.01, amsgrad: true}}", "clip={norm: 0.5}"]),
        (BAD, ["optimizer={adamw: {lr: 0.01}}", "clip={agc: 0.01}"]),
    ],
)
def test_rows_and_weights_do_not_depend_on_the_lag(
    bad: set[int], more: list[str], tmp_path: Path
) -> None:
    at_once = trained(tmp_path / "0", 0, bad, *more)
    assert [row["skipped_steps"] for row in at_once[1]] == [len(bad & {*range(8)}), len(bad) // 2]
    assert trained(tmp_path / "1", 1, bad, *more) == at_once


def test_a_scaled_loss_does_not_depend_on_the_lag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in fp16: a scale that is too large overflows, is halved, and grows again."""
    scalers = []

    def begin(self: Distributed, *given: object) -> None:
        real(self, *given)
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=3))
        self.scaler = self.accelerator.scaler = scalers[-1]

    real = Distributed.__init__
    monkeypatch.setattr(Distributed, "__init__", begin)
    more = ["optimizer={adamw: {lr: 0.01}}", "loss={cross_entropy: 1.0e+4}"]
    at_once = trained(tmp_path / "0", 0, BAD, *more)
    assert trained(tmp_path / "1", 1, BAD, *more) == at_once
    assert sum(row["skipped_steps"] for row in at_once[1]) > len(BAD), "it overflowed as well"
    assert scalers[0].state_dict() == scalers[1].state_dict() and scalers[0].get_scale() < 2.0**126


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_overflows_at_the_lowest_scale_are_no_search(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, its gradient is not: PATIENCE steps are skipped, then it is told."""

    def begin(self: Distributed, *given: object) -> None:
        real(self, *given)
        self.scaler = self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    real = Distributed.__init__
    monkeypatch.setattr(Distributed, "__init__", begin)
    monkeypatch.setattr(
        torch.nn.utils, "get_total_norm", lambda *_: torch.tensor(math.inf), raising=True
    )
    code = ExitCode.NON_FINITE if scale == 1 else ExitCode.DONE
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FIT, "async_steps_of", lambda *_: 0)
        train(tmp_path, *SMALL, "--steps", "8", code=code)


def test_pauses_saves_and_resumes_do_not_depend_on_the_lag(tmp_path: Path) -> None:
    words = [*SMALL, "checkpoint.every_steps=3"]
    whole = trained(tmp_path / "0", 0, set(), *words[len(SMALL) :])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FIT, "async_steps_of", lambda *_: 1)
        for steps, last in ((1, 1), (6, 7), (99, 16)):
            run = train(tmp_path / "1", *words, "--steps", str(steps))
            assert left(run)[2] == f"step-{last:08d}"
    assert left(run) == whole


@pytest.mark.parametrize("async_steps", [0, 1])
def test_too_many_bad_steps_end_the_training_and_nothing_of_them_is_saved(
    async_steps: int, tmp_path: Path
) -> None:
    bad = {*range(10, 11 + PATIENCE)}
    _, rows, last = trained(tmp_path, async_steps, bad, code=ExitCode.NON_FINITE)
    assert last == "step-00000008" and len(rows) == 1


@pytest.mark.parametrize("async_steps", [0, 1])
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


def test_only_a_gpu_with_a_fused_optimizer_lags() -> None:
    def async_steps(kind: type, device: str = "cuda", **options) -> int:
        weights = [torch.nn.Parameter(torch.zeros(2))]
        optimizer = kind(weights, lr=0.1, **{"fused": True} | options)
        place = SimpleNamespace(device=torch.device(device))
        training = SimpleNamespace(optimizer=optimizer, shards=None, distributed=place)
        return async_steps_of(training)

    assert async_steps(torch.optim.SGD) == async_steps(torch.optim.AdamW) == 1
    assert async_steps(torch.optim.SGD, "cpu") == async_steps(torch.optim.SGD, fused=False) == 0

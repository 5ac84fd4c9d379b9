"""Results that are read a step later are the same: async_steps 0 and 1 side by side."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_ranks

from vision_tutorial import build
from vision_tutorial import train as command
from vision_tutorial.core.errors import ExitCode
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import PATIENCE, async_steps_of
from vision_tutorial.runs import run_folder

FIT = importlib.import_module("vision_tutorial.engine.loop")
SMALL = [
    "dataset={shapes: {train: 128, test: 30, size: 16}}",
    "batch_size=16",
    "eval_batch_size=10",
    "epochs=2",
    "threads=1",
]
BAD = {0, 5, 11, 12}  # steps; 8 an epoch


def trained(
    folder: Path, async_steps: int, bad: set[int], *more: str, code: int = ExitCode.DONE
) -> tuple[dict, list, str]:
    """What a run leaves whose loss is NaN at the steps `bad`: tensors, rows, the last folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FIT, "async_steps_of", lambda *_: async_steps)
        patched.setattr(build, "criteria", spoilt(build.criteria, bad))
        words = ["recipes/debug.yaml", *SMALL, "--runs", str(folder), "--id", "run", "--quiet"]
        assert command.main([*words, *more]) == code
    return left(folder / "debug" / "run")


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


def left(run: Path) -> tuple[dict, list, str]:
    """The last checkpoint's files, the rows without what is measured in time, its folder's name."""
    last = max((run / "ckpt").glob("step-*"))
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    rows = run_folder.read_rows(run / "metrics.jsonl")
    return (
        files,
        [{k: v for k, v in row.items() if k not in run_folder.TIMED} for row in rows],
        last.name,
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        "{sgd: {lr: 0.05, momentum: 0.9, weight_decay: 1.0e-4}}",
        "{momentum: {lr: 0.05, momentum: 0.0}}",
        "{adamw: {lr: 0.01}}",
        "{adam: {lr: 0.01, amsgrad: true}}",
    ],
)
@pytest.mark.parametrize("bad", [set(), BAD], ids=["good", "bad"])
def test_rows_and_weights_do_not_depend_on_the_lag(
    optimizer: str, bad: set[int], tmp_path: Path
) -> None:
    more = f"optimizer={optimizer}"
    at_once = trained(tmp_path / "0", 0, bad, more)
    assert [row["skipped_steps"] for row in at_once[1]] == [len(bad & {*range(8)}), len(bad) // 2]
    assert trained(tmp_path / "1", 1, bad, more) == at_once


@pytest.mark.parametrize("optimizer", ["sgd: {lr: 0.05, momentum: 0.9}", "adamw: {lr: 0.01}"])
@pytest.mark.parametrize("bad", [set(), BAD], ids=["good", "bad"])
def test_a_scaled_loss_does_not_depend_on_the_lag(
    optimizer: str, bad: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in fp16: a scale that is too large overflows, is halved, and grows again."""
    scalers = []

    def begin(self: Distributed, *given: object) -> None:
        real(self, *given)
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=3))
        self.scaler = self.accelerator.scaler = scalers[-1]

    real = Distributed.__init__
    monkeypatch.setattr(Distributed, "__init__", begin)
    more = [f"optimizer={{{optimizer}}}", "loss={cross_entropy: 1.0e+4}"]
    at_once = trained(tmp_path / "0", 0, bad, *more)
    assert trained(tmp_path / "1", 1, bad, *more) == at_once
    assert sum(row["skipped_steps"] for row in at_once[1]) > len(bad), "it overflowed as well"
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
        words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path), "--quiet"]
        assert command.main([*words, "--steps", "8"]) == code


@pytest.mark.parametrize("clip", ["{norm: 0.5}", "{value: 0.01}", "{agc: 0.01}"])
def test_clipping_does_not_depend_on_the_lag(clip: str, tmp_path: Path) -> None:
    more = ["epochs=1", f"clip={clip}"]
    found = [
        trained(tmp_path / str(async_steps), async_steps, {3}, *more) for async_steps in (0, 1)
    ]
    assert found[0] == found[1]


def test_pauses_saves_and_resumes_do_not_depend_on_the_lag(tmp_path: Path) -> None:
    whole = trained(tmp_path / "0", 0, set(), "checkpoint.every_steps=3")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FIT, "async_steps_of", lambda *_: 1)
        words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path / "1"), "--id", "run"]
        run = tmp_path / "1" / "debug" / "run"
        assert command.main([*words, "checkpoint.every_steps=3", "--quiet", "--steps", "1"]) == 0
        assert left(run)[2] == "step-00000001"
        assert command.main([str(run), "--quiet", "--steps", "6"]) == 0
        assert left(run)[2] == "step-00000007"
        assert command.main([str(run), "--quiet"]) == 0
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
            words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path), "--id", "run"]
            return command.main([*words, "checkpoint.every_steps=1", "--quiet"])

    assert run_ranks(2, of_rank) == [0, 0]
    assert left(tmp_path / "debug" / "run")[2] == f"step-0000000{2 + async_steps}"


def test_only_a_gpu_with_a_fused_optimizer_lags() -> None:
    def async_steps(kind: type, device: str = "cuda", **options) -> int:
        weights = [torch.nn.Parameter(torch.zeros(2))]
        optimizer = kind(weights, lr=0.1, **{"fused": True} | options)
        training = SimpleNamespace(optimizer=optimizer, shards=None)
        return async_steps_of(training, SimpleNamespace(device=torch.device(device)))

    assert async_steps(torch.optim.SGD) == async_steps(torch.optim.AdamW) == 1
    assert async_steps(torch.optim.SGD, "cpu") == async_steps(torch.optim.SGD, fused=False) == 0

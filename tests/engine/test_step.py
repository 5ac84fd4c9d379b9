"""One step: accumulation, the non-finite policy, memory, clipping, precision."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from forked import run_ranks
from small_runs import Spoilt
from torch import nn

from vision_tutorial import build
from vision_tutorial.core.errors import MemoryExhausted, NonFiniteError
from vision_tutorial.core.task import Batch
from vision_tutorial.data.pipeline import DataPipeline
from vision_tutorial.engine import Distributed, Progress, TrainingState, fit_memory, profiling
from vision_tutorial.engine.distributed import usable_precision
from vision_tutorial.engine.loop import PATIENCE
from vision_tutorial.engine.step import StepResult, take_step
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load

PLAIN = ["threads=1", "ema=null", "clip=null", "augment=[]", "model={test_vit: {img_size: 16}}"]


def recipe(*more: str) -> Recipe:
    return load("recipes/debug.yaml", [*PLAIN, *more]).recipe


def training_and_data(distributed: Distributed, *more: str) -> tuple[TrainingState, DataPipeline]:
    source = build.registry.datasets.build("shapes", size=16, train=64, test=10)("train")
    training = build.training_state(recipe(*more), source, distributed)
    return training, build.train_pipeline(recipe(*more), source, distributed)


def training_and_batch(distributed: Distributed, *more: str) -> tuple[TrainingState, list[Batch]]:
    training, data = training_and_data(distributed, *more)
    return training, next(data.train(0, 1, training.accumulation_steps))


def fitted(training: TrainingState, data: DataPipeline) -> str | None:
    """What `fit_memory` says on a device whose memory it tries."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(profiling, "DEVICES", ("cpu",))
        return fit_memory(training, SimpleNamespace(batch_size=32, batches=data.train))


def stepped(training: TrainingState, batches: list[Batch], step: int = 0) -> StepResult:
    return take_step(training, batches, step, stop=step == 0).read()


@pytest.fixture(scope="module")
def alone() -> Distributed:
    return Distributed(threads=1)


def test_accumulation_gives_the_step_of_the_whole_batch(alone: Distributed) -> None:
    def weights_after_a_step(*more: str) -> dict[str, torch.Tensor]:
        training, batches = training_and_batch(alone, *more)
        result = stepped(training, batches)
        assert result.items == 32 and not result.skipped
        return training.model.state_dict()

    whole, parts = weights_after_a_step(), weights_after_a_step("micro_batch=2")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_the_mean_loss_is_over_all_items(alone: Distributed) -> None:
    training, batches = training_and_batch(alone, "mix=null", "micro_batch=8")
    training.model.eval()
    (batch,) = training_and_batch(alone, "mix=null")[1]
    expected, parts = training.criteria["loss"](training.model(batch.images), batch.target)
    result = stepped(training, batches)
    assert result.losses["loss"] / result.items == pytest.approx(expected.item(), rel=1e-5)
    assert set(result.losses) == {"loss", *(f"loss/{name}" for name in parts)}
    assert result.stop


def test_non_finite_steps_are_skipped_then_stop(alone: Distributed) -> None:
    training, batches = training_and_batch(
        alone, "optimizer={adamw: {lr: 0.1}}", "model=test_resnet", "ema={decay: 0.9}"
    )
    training.criteria["loss"] = Spoilt(training.criteria["loss"])
    with torch.no_grad():
        next(iter(training.model.parameters())).fill_(math.inf)  # running statistics go bad too
    before = copy.deepcopy(training.model.state_dict())
    progress = Progress()
    for step in range(PATIENCE):
        progress.add(stepped(training, batches, step))
    with pytest.raises(NonFiniteError, match=r"step 4: loss nan .* Lower the lr"):
        progress.add(stepped(training, batches, PATIENCE))
    assert progress.skipped == PATIENCE + 1 and not progress.items
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    assert all(v.isfinite().all() for v in training.model.buffers())


def starve(model: nn.Module, most: int) -> None:
    """Let it run out of memory above `most` images, as a GPU would."""

    def check(module: nn.Module, given: tuple) -> None:
        if len(given[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(check)


def test_all_ranks_agree_to_halve_the_micro_batch() -> None:
    def of_rank(rank: int) -> tuple:
        distributed = Distributed(threads=1)
        training, data = training_and_data(distributed)
        starve(training.model, most=16 if rank == 0 else 5)
        notice = fitted(training, data)
        distributed.close()
        return training.accumulation_steps, notice

    notice = "out of memory at 16 images a pass; taking 4, 4 times a step, at the same global"
    for parts, said in run_ranks(2, of_rank):
        assert parts == 4 and notice in said


def test_trying_the_memory_leaves_no_trace_and_may_fail(alone: Distributed) -> None:
    more = ("model=test_resnet", "micro_batch=16")
    training, data = training_and_data(alone, *more)
    before = copy.deepcopy(training.model.state_dict())
    assert fitted(training, data) is None and training.accumulation_steps == 2
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    starve(training.model, most=0)
    with pytest.raises(MemoryExhausted, match=r"micro-batch of 2 does not fit .* cpu") as caught:
        fitted(training, data)
    assert caught.value.code == 4
    training.shards = 4
    assert fitted(training, data) is None  # strict shards are never halved


def test_gradients_are_clipped(alone: Distributed) -> None:
    def after(clip: str) -> tuple[float, float, torch.Tensor]:
        training, batches = training_and_batch(alone, f"clip={clip}")
        stepped(training, batches)
        grads = [p.grad for p in training.parameters]
        head = training.model.get_classifier().weight.grad
        return nn.utils.get_total_norm(grads), max(g.abs().max() for g in grads), head

    whole, _, head = after("null")
    assert after("{norm: 1.0e-3}")[0] == pytest.approx(1e-3, rel=1e-3)
    assert after("{value: 1.0e-5}")[1] == pytest.approx(1e-5, rel=1e-3)
    norm, _, same = after("{agc: 1.0e-4}")
    assert norm < whole / 2 and torch.equal(same, head), "AGC leaves the classifier alone"


def test_bf16_runs_and_losses_stay_float32() -> None:
    def of_rank(rank: int) -> tuple:
        training, batches = training_and_batch(Distributed("bf16", threads=1))
        assert math.isfinite(stepped(training, batches).loss)
        inner = training.model.patch_embed.proj(torch.zeros(1, 3, 16, 16))
        return str(training.ddp_model(batches[0].images).dtype), str(inner.dtype)

    assert run_ranks(1, of_rank) == [("torch.float32", "torch.float32")]


def test_precision_that_this_machine_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, cuda, good, got in (  # good: bf16 in hardware
        ("auto", False, False, "fp32"),
        ("bf16", False, False, "bf16"),
        ("fp16", False, True, "bf16"),
        ("auto", False, True, "bf16"),
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp16"),
    ):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, good=good: good)
        precision, notice = usable_precision(wanted, cuda, good and not cuda)
        assert precision == got
        fell = wanted == "fp16" and not cuda
        assert f"computes in {got}" in notice if fell else notice is None


def test_running_statistics_are_the_mean_over_processes_and_trouble_is_everybodys() -> None:
    def of_rank(rank: int) -> list:
        distributed, found = Distributed(threads=1), []
        for more in ([], ["shards=4"]):
            words = ["model={test_resnet: {stem: cifar}}", "mix=null", *more]
            training, batches = training_and_batch(distributed, *words)
            own = [build.model(recipe(*words), 10) for _ in batches]
            for network, batch in zip(own, batches, strict=True):
                network(batch.images)  # in training mode: the statistics of these images alone
            stepped(training, batches)
            found.append([x.bn1.running_mean.tolist() for x in (training.model, *own)])
        if rank == 1:
            training.criteria["loss"] = Spoilt(training.criteria["loss"])
        report = stepped(training, batches, step=1 - rank)  # which wants to stop at 0
        distributed.close()
        assert report.skipped and report.stop
        return found

    for (got, *one), (other, *two) in zip(*run_ranks(2, of_rank), strict=True):
        assert got == other and one != two
        assert got == pytest.approx(torch.tensor(one + two).mean(0).tolist(), abs=1e-6)

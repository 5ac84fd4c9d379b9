"""One step: accumulation, the non-finite policy, memory, clipping, precision."""

import math
from types import SimpleNamespace

import pytest
import torch
from forked import run_ranks
from torch import nn

from vision_tutorial import build
from vision_tutorial.core.errors import MemoryExhausted, NonFiniteError
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.core.task import Batch
from vision_tutorial.engine import Distributed, TrainingState, fit_memory, memory
from vision_tutorial.engine.distributed import usable_precision
from vision_tutorial.engine.step import PATIENCE, StepResult, resolve, take_step
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load

PLAIN = ["threads=1", "ema=null", "clip=null", "augment=[]", "model={test_vit: {img_size: 16}}"]


def recipe(*more: str) -> Recipe:
    return load("recipes/debug.yaml", [*PLAIN, *more]).recipe


def images() -> ArraySource:
    return build.registry.datasets.build("shapes", size=16, train=64, test=10)("train")


def training_and_batch(distributed: Distributed, *more: str) -> tuple[TrainingState, list[Batch]]:
    wanted, source = recipe(*more), images()
    training = build.training_state(wanted, source, distributed)
    data = build.train_pipeline(wanted, source, distributed)
    return training, next(data.train(0, 1, training.accumulation_steps))


def fitted(training: TrainingState, *more: str) -> str | None:
    """What `fit_memory` says on a device whose memory it tries."""
    data = build.train_pipeline(recipe(*more), images(), training.distributed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "DEVICES", ("cpu",))
        return fit_memory(training, SimpleNamespace(batch_size=32, batches=data.train))


def stepped(
    training: TrainingState, batches: list[Batch], step: int = 0, stop: bool = False
) -> StepResult:
    return resolve(training, take_step(training, batches, step, stop=stop))


@pytest.fixture(scope="module")
def alone() -> Distributed:
    return Distributed(threads=1)


def weights_after_a_step(distributed: Distributed, *more: str) -> dict[str, torch.Tensor]:
    training, batches = training_and_batch(distributed, *more)
    result = stepped(training, batches)
    assert result.items == 32 and not result.skipped
    return training.model.state_dict()


@pytest.mark.parametrize("micro", [16, 2])
def test_accumulation_gives_the_step_of_the_whole_batch(alone: Distributed, micro: int) -> None:
    whole = weights_after_a_step(alone)
    parts = weights_after_a_step(alone, f"micro_batch={micro}")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_two_processes_give_the_step_of_one(alone: Distributed) -> None:
    def of_rank(rank: int) -> list:
        distributed = Distributed(threads=1)
        found = weights_after_a_step(distributed, "micro_batch=8")
        distributed.close()
        return [(name, value.numpy()) for name, value in found.items()]

    ranks = [dict(pairs) for pairs in run_ranks(2, of_rank)]
    whole = weights_after_a_step(alone)
    for name, value in whole.items():
        assert (ranks[0][name] == ranks[1][name]).all()
        torch.testing.assert_close(torch.tensor(ranks[0][name]), value, rtol=1e-4, atol=1e-6)


def test_the_mean_loss_is_over_all_items(alone: Distributed) -> None:
    training, batches = training_and_batch(alone, "mix=null", "micro_batch=8")
    training.model.eval()
    (batch,) = training_and_batch(alone, "mix=null")[1]
    expected, parts = training.criteria["loss"](training.model(batch.images), batch.target)
    result = stepped(training, batches, stop=True)
    assert result.losses["loss"] / result.items == pytest.approx(expected.item(), rel=1e-5)
    assert set(result.losses) == {"loss", *(f"loss/{name}" for name in parts)}
    assert result.stop


def poison(training: TrainingState) -> None:
    good = training.criteria["loss"]

    def poisoned(*args: torch.Tensor) -> tuple:
        total, parts = good(*args)
        return total * math.nan, parts

    training.criteria["loss"] = poisoned


def test_non_finite_steps_are_skipped_then_stop(alone: Distributed) -> None:
    training, batches = training_and_batch(
        alone, "optimizer={adamw: {lr: 0.1}}", "model=test_resnet", "ema={decay: 0.9}"
    )
    poison(training)
    with torch.no_grad():
        next(iter(training.model.parameters())).fill_(math.inf)  # running statistics go bad too
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    for step in range(PATIENCE):
        assert stepped(training, batches, step).skipped
    with pytest.raises(NonFiniteError, match=r"step 4: loss nan .* Lower the lr"):
        stepped(training, batches, PATIENCE)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    assert all(v.isfinite().all() for v in training.model.buffers())


def test_one_ranks_trouble_is_everybodys() -> None:
    def of_rank(rank: int) -> list:
        distributed = Distributed(threads=1)
        training, batches = training_and_batch(distributed)
        if rank == 1:
            poison(training)
        skipped = stepped(training, batches, stop=rank == 1)
        distributed.close()
        return [skipped.skipped, skipped.stop]

    assert run_ranks(2, of_rank) == [[True, True]] * 2


class Hungry(nn.Module):
    """Runs out of memory above `most` images, as a GPU would."""

    def __init__(self, inner: nn.Module, most: int):
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


def test_all_ranks_agree_to_halve_the_micro_batch() -> None:
    def of_rank(rank: int) -> tuple:
        distributed = Distributed(threads=1)
        training, batches = training_and_batch(distributed)
        training.model = Hungry(training.model, most=16 if rank == 0 else 5)
        notice = fitted(training)
        distributed.close()
        return training.accumulation_steps, notice

    notice = "out of memory at 16 images a pass; taking 4, 4 times a step, at the same global"
    for parts, said in run_ranks(2, of_rank):
        assert parts == 4 and notice in said


def test_trying_the_memory_leaves_no_trace_and_may_fail(alone: Distributed) -> None:
    more = ("model=test_resnet", "micro_batch=16")
    training, _ = training_and_batch(alone, *more)
    assert fitted(training, *more) is None and training.accumulation_steps == 2
    fresh, _ = training_and_batch(alone, *more)
    state = training.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in fresh.model.state_dict().items())
    training.model = Hungry(training.model, most=0)
    with pytest.raises(MemoryExhausted, match=r"micro-batch of 2 does not fit .* cpu") as caught:
        fitted(training, *more)
    assert caught.value.code == 4
    training.shards = 4
    assert fitted(training, *more) is None  # strict shards are never halved


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
        half = Distributed("bf16", threads=1)
        training, batches = training_and_batch(half)
        result = stepped(training, batches)
        output = training.ddp_model(batches[0].images)
        inner = training.model.patch_embed.proj(torch.zeros(1, 3, 16, 16))
        return result.losses["loss"] / result.items, str(output.dtype), str(inner.dtype)

    (found,) = run_ranks(1, of_rank)
    assert math.isfinite(found[0]) and found[1:] == ("torch.float32", "torch.float32")


@pytest.mark.parametrize(
    "wanted, cuda, good, got",  # good: bf16 in hardware
    [
        ("fp16", False, False, "fp32"),
        ("auto", False, False, "fp32"),
        ("bf16", False, False, "bf16"),
        ("fp16", False, True, "bf16"),
        ("auto", False, True, "bf16"),
        ("fp32", False, True, "fp32"),
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp16"),
        ("fp16", True, True, "fp16"),
    ],
)
def test_precision_that_this_machine_can(
    wanted: str, cuda: bool, good: bool, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: good)
    precision, notice = usable_precision(wanted, cuda, good and not cuda)
    assert precision == got
    fell = wanted == "fp16" and not cuda
    assert f"computes in {got}" in notice if fell else notice is None


def test_running_statistics_are_the_mean_over_processes() -> None:
    def of_rank(rank: int) -> list:
        distributed = Distributed(threads=1)
        wanted = recipe("model={test_resnet: {stem: cifar}}", "mix=null")
        training = build.training_state(wanted, images(), distributed)
        batches = next(build.train_pipeline(wanted, images(), distributed).train(0, 1))
        before = training.model.bn1.running_mean.clone()
        alone = build.model(wanted, 10)
        alone(batches[0].images)  # in training mode: this rank's own statistics
        stepped(training, batches)
        own = alone.bn1.running_mean
        distributed.close()
        return [own.tolist(), training.model.bn1.running_mean.tolist(), before.tolist()]

    (one, got, _), (two, other, _) = run_ranks(2, of_rank)
    assert got == other and one != two
    assert got == pytest.approx([(a + b) / 2 for a, b in zip(one, two, strict=True)], abs=1e-6)


def test_synchronised_batchnorm_keeps_the_activations() -> None:
    """torch's own conversion drops those that timm keeps inside its BatchNorm layers."""
    from timm.layers import convert_sync_batchnorm

    from vision_tutorial.engine import distributed

    assert distributed.convert_sync_batchnorm is convert_sync_batchnorm
    network = build.registry.models.build("regnety_002", stem="cifar")(10).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = network(images)
    torch.testing.assert_close(convert_sync_batchnorm(network).eval()(images), expected)

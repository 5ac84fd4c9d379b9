"""Balanced weights are a state of the training: saved, equal everywhere, undone with a bad step."""

import math
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from small_runs import DEBUG, left, shapes, train
from torch import nn

from vision_tutorial import build
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.engine import Distributed, TrainingState
from vision_tutorial.engine.step import resolve, take_step
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

SMALL = [*DEBUG, shapes(64, 20), "epochs=3", "loss={cross_entropy: 0.75, dice: 0.25}"]
BALANCES = ["balance={calibrate: 5}", "balance={ema: 0.7}"]


@pytest.mark.parametrize("balance", BALANCES)
def test_paused_anywhere_and_resumed_a_run_ends_the_same(balance: str, tmp_path: Path) -> None:
    whole = left(train(tmp_path / "whole", *SMALL, balance))
    assert "criteria.safetensors" in whole[0]
    for steps in (3, 3, 3, 3):  # 12 in all, 4 an epoch; the calibration ends within a part
        run = train(tmp_path / "parts", *SMALL, balance, "--steps", str(steps))
    assert left(run) == whole


def test_rows_have_every_term_raw_and_weighted(tmp_path: Path) -> None:
    row = left(train(tmp_path, *SMALL, "balance=ema"))[1][-1]
    parts = {name: value for name, value in row.items() if name.startswith("train/loss/")}
    terms = ("cross_entropy", "dice")
    assert set(parts) == {f"train/loss/{t}{w}" for t in terms for w in ("", "/weighted")}
    weighted = sum(value for name, value in parts.items() if name.endswith("/weighted"))
    assert weighted == pytest.approx(row["train/loss"], rel=1e-6)


def test_evaluation_has_the_recipes_own_weights(tmp_path: Path) -> None:
    recipe = load(SMALL[0], [*SMALL[1:], "balance=ema"]).recipe
    source = build.data(recipe).val
    alone = Distributed(threads=1)
    network = build.model(recipe, 10)
    found = build.evaluation(recipe, source, network, build.task(recipe, source.classes), alone)
    plain = load(SMALL[0], SMALL[1:]).recipe
    again = build.evaluation(plain, source, network, build.task(plain, source.classes), alone)
    assert found.metrics == again.metrics


# -- steps -----------------------------------------------------------------------------------------


def images() -> ArraySource:
    return build.registry.datasets.build("shapes", size=16, train=64, test=10)("train")


def training_and_steps(distributed: Distributed, *more: str) -> tuple[TrainingState, list]:
    wanted = load(SMALL[0], [*SMALL[1:], "model={test_vit: {img_size: 16}}", *more]).recipe
    training = build.training_state(wanted, images(), distributed)
    return training, list(
        build.train_pipeline(wanted, images(), distributed).train(0, 4, training.accumulation_steps)
    )


def take(training: TrainingState, raw: object, step: int) -> bool:
    report = take_step(training, raw, step, stop=False)
    return resolve(training, report).skipped


class Poisoned(nn.Module):
    """A criterion whose total is no number while `bad`."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.bad = inner, False

    def forward(self, *given: torch.Tensor) -> tuple:
        total, parts = self.inner(*given)
        return total * (math.nan if self.bad else 1.0), parts

    def begin_step(self) -> None:
        self.inner.begin_step()


@pytest.mark.parametrize("balance", BALANCES)
def test_a_skipped_step_leaves_no_trace(balance: str) -> None:
    alone = Distributed(threads=1)

    def after(bad: bool) -> dict[str, torch.Tensor]:
        training, steps = training_and_steps(alone, balance)
        poisoned = training.criteria["loss"] = Poisoned(training.criteria["loss"])
        for step, raw in enumerate(steps[:3]):
            if step == 1 and not bad:
                continue
            poisoned.bad = step == 1
            assert take(training, raw, step) == poisoned.bad
        poisoned.begin_step()
        return training.blends.state_dict()

    with_it, without = after(True), after(False)
    assert with_it["loss.inner.steps"] == 2
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def state_of_rank(*more: str) -> list:
    """The state of the criterion after four steps."""
    distributed = Distributed(threads=1)
    training, steps = training_and_steps(distributed, *more)
    for step, raw in enumerate(steps):
        take(training, raw, step)
    training.criteria["loss"].begin_step()
    distributed.close()
    return [value.tolist() for value in training.blends.state_dict().values()]


@pytest.mark.parametrize("balance", BALANCES)
def test_the_state_is_that_of_the_whole_batch_on_every_rank(balance: str) -> None:
    """Over processes and micro-batches alike; cross-entropy's mean is the mean of its parts'."""

    def of_rank(rank: int) -> list:
        return state_of_rank(balance, "micro_batch=4")

    one, two = run_ranks(2, of_rank)
    assert one == two and 4 in one
    (alone,) = run_ranks(1, of_rank)
    # dice is of four images either way, so the runs differ by the order of additions alone
    flat = [torch.tensor(x).flatten().tolist() for x in (*one, *alone)]
    assert sum(flat[: len(one)], []) == pytest.approx(sum(flat[len(one) :], []), rel=1e-4)


@pytest.mark.parametrize("balance", BALANCES)
def test_strict_shards_are_bit_equal_on_any_number_of_processes(balance: str) -> None:
    def of_rank(rank: int) -> list:
        return state_of_rank(balance, "shards=4")

    (alone,) = run_ranks(1, of_rank)
    assert run_ranks(2, of_rank) == [alone, alone]


def test_frozen_weights_stay_frozen_in_strict_shards_of_three() -> None:
    """Were the mean averaged over shards, as what was seen is, it would drift by a bit a step."""
    alone = Distributed(threads=1)
    more = ["balance={calibrate: 1}", "shards=3", "batch_size=12"]
    training, steps = training_and_steps(alone, *more)
    criterion = training.criteria["loss"]
    assert criterion.weights().tolist() == [0.75, 0.25]
    for step, raw in enumerate(steps[:2]):
        take(training, raw, step)
    assert criterion.weights().tolist() != [0.75, 0.25]
    drifting = [x for x in torch.linspace(1, 2, 50) if (x + x + x) / 3 != x][:2]
    with torch.no_grad():
        criterion.mean.copy_(torch.stack(drifting))
    take(training, steps[2], 2)
    assert criterion.mean.tolist() == torch.stack(drifting).tolist()


def test_an_auxiliary_head_and_its_loss_need_each_other() -> None:
    recipe = load("recipes/debug.yaml", ["aux_loss=dice"]).recipe
    headed = Choice("test_resnet", {**recipe.model.options, "auxiliary": True})
    for update in ({}, {"aux_loss": None, "model": headed}):
        with pytest.raises(UserError, match="aux_loss: it and an auxiliary head of model test_res"):
            build.check(recipe.model_copy(update=update))
    with pytest.raises(UserError, match="aux_loss: jsd is a loss of the main head"):
        build.check(load("recipes/debug.yaml", ["aux_loss=jsd"]).recipe)

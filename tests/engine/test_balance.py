"""Balanced weights are a state of the training: saved, equal everywhere, undone with a bad step."""

from pathlib import Path

import pytest
import torch
from forked import run_ranks
from small_runs import DEBUG, Spoilt, left, shapes, train

from vision_tutorial import build, checks
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine import Distributed, TrainingState
from vision_tutorial.engine.step import take_step
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

SMALL = [*DEBUG, shapes(64, 10), "epochs=2", "loss={cross_entropy: 0.75, dice: 0.25}"]
BALANCES = ["balance={calibrate: 5}", "balance={ema: 0.7}"]


@pytest.mark.parametrize("balance", BALANCES)
def test_paused_anywhere_and_resumed_a_run_ends_the_same(balance: str, tmp_path: Path) -> None:
    whole = left(train(tmp_path / "whole", *SMALL, balance))
    assert "criteria.safetensors" in whole[0]
    for steps in (3, 3, 3):  # 8 in all, 4 an epoch; the calibration ends within a part
        run = train(tmp_path / "parts", *SMALL, balance, "--steps", str(steps))
    assert left(run) == whole
    row = whole[1][-1]
    parts = {name: value for name, value in row.items() if name.startswith("train/loss/")}
    terms = ("cross_entropy", "dice")
    assert set(parts) == {f"train/loss/{t}{w}" for t in terms for w in ("", "/weighted")}
    weighted = sum(value for name, value in parts.items() if name.endswith("/weighted"))
    assert weighted == pytest.approx(row["train/loss"], rel=1e-6)


def training_and_steps(distributed: Distributed, *more: str) -> tuple[TrainingState, list]:
    wanted = load(SMALL[0], [*SMALL[1:], "model={test_vit: {img_size: 16}}", *more]).recipe
    source = build.data(wanted).train
    training = build.training_state(wanted, source, distributed)
    data = build.train_pipeline(wanted, source, distributed)
    return training, list(data.train(0, 4, training.accumulation_steps))


def take(training: TrainingState, raw: object, step: int) -> bool:
    return take_step(training, raw, step, stop=False).read().skipped


@pytest.mark.parametrize("balance", BALANCES)
def test_a_skipped_step_leaves_no_trace(balance: str) -> None:
    alone = Distributed(threads=1)

    def after(*steps: int) -> dict[str, torch.Tensor]:
        training, batches = training_and_steps(alone, balance)
        criterion = Spoilt(training.criteria["loss"], {1} if 1 in steps else ())
        training.criteria["loss"] = criterion
        skipped = [take(training, batches[step], step) for step in steps]
        assert skipped == [step == 1 for step in steps]
        criterion.begin_step()
        return criterion.state_dict()

    with_it, without = after(0, 1, 2), after(0, 2)
    assert with_it["inner.steps"] == 2
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def state_after_four(distributed: Distributed, *more: str) -> list:
    training, steps = training_and_steps(distributed, *more)
    for step, raw in enumerate(steps):
        take(training, raw, step)
    training.criteria["loss"].begin_step()
    return [value.tolist() for value in training.blends.state_dict().values()]


@pytest.mark.parametrize("balance", BALANCES)
def test_the_state_is_that_of_the_whole_batch_on_every_rank(balance: str) -> None:
    """Over processes and micro-batches alike; cross-entropy's mean is the mean of its parts'. In
    strict shards it is so bit for bit."""

    def of_rank(rank: int) -> list:
        distributed = Distributed(threads=1)
        return [state_after_four(distributed, balance, x) for x in ("micro_batch=4", "shards=4")]

    ((alone, strict),) = run_ranks(1, of_rank)
    (one, strict_one), (two, strict_two) = run_ranks(2, of_rank)
    assert strict_one == strict_two == strict and one == two and 4 in one
    # dice is of four images either way, so the runs differ by the order of additions alone
    flat = [torch.tensor(x).flatten().tolist() for x in (*one, *alone)]
    assert sum(flat[: len(one)], []) == pytest.approx(sum(flat[len(one) :], []), rel=1e-4)


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
    drifting = torch.stack([x for x in torch.linspace(1, 2, 50) if (x + x + x) / 3 != x][:2])
    criterion.mean.data.copy_(drifting)
    take(training, steps[2], 2)
    assert torch.equal(criterion.mean, drifting)


def test_an_auxiliary_head_and_its_loss_need_each_other() -> None:
    recipe = load("recipes/debug.yaml", ["aux_loss=dice"]).recipe
    headed = {"model": Choice("test_resnet", {**recipe.model.options, "auxiliary": True})}
    jsd = load("recipes/debug.yaml", ["aux_loss=jsd"]).recipe
    for wrong in (recipe, recipe.model_copy(update={"aux_loss": None, **headed}), jsd):
        with pytest.raises(UserError, match="aux_loss: (it and an auxiliary head|jsd is a loss)"):
            checks.check(wrong)

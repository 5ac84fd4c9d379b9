"""Learning rates against timm.scheduler (to the last digit) and torch.optim.lr_scheduler."""

import itertools
import random
import warnings

import pytest
import torch
from timm.scheduler import PlateauLRScheduler, create_scheduler_v2
from torch.optim import SGD, lr_scheduler

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import schedules as registry
from vision_tutorial.optim import learning_rates

REQUIRED = {"multistep": {"milestones": [3, 7]}, "exponential": {"gamma": 0.9}}
REQUIRED["step"] = {"every": 3}


def optimizer(lr: float) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def ours(name, options, *, steps=None, **given) -> list[float]:
    """The lr of every step of a run (with one step an epoch, unless told otherwise)."""
    given = {"lr": 0.25, "epochs": 30, "steps_per_epoch": 1} | given
    rate = learning_rates(registry.build(name, **options), **given)
    epochs = given["epochs"] + given.get("cooldown_epochs", 0)
    epochs += given.get("warmup_epochs", 0) * (given.get("warmup") == "front")
    return [rate(step, []) for step in range(steps or epochs * given["steps_per_epoch"])]


def timms(lr: float, *, epochs: int, updates: int = 0, **options) -> list[float]:
    """The lr of every epoch, or of every update if there are some, as timm's train.py does."""
    made = optimizer(lr)
    options = {"cycle_limit": 1, "num_epochs": 30, "step_on_epochs": not updates} | options
    scheduler, _ = create_scheduler_v2(made, updates_per_epoch=updates, **options)
    rates = []
    for t in range(epochs * max(updates, 1)):
        rates.append(made.param_groups[0]["lr"])
        (scheduler.step_update if updates else scheduler.step)(t + 1)
    return rates


def torchs(make, lr: float, steps: int) -> list[float]:
    """The lr of every step under one of torch's schedulers."""
    made, rates = optimizer(lr), []
    scheduler = make(made)
    for _ in range(steps):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step()
    return rates


def moving(updates: int) -> dict:
    """Whether the lr moves once an epoch, or at each of its `updates` steps."""
    return {"unit": "step" if updates else "epoch", "steps_per_epoch": updates or 1}


POLY = {"decay_rate": 0.9, "min_lr": 1e-5, "cycle_decay": 1.0}
TIMM = [
    ("cosine", {"min_lr": 1e-5}, {"min_lr": 1e-5}),
    ("step", {"every": 2.4, "gamma": 0.97}, {"decay_epochs": 2.4, "decay_rate": 0.97}),
    ("poly", {"power": 0.9, "min_lr": 1e-5}, POLY),
]


@pytest.mark.parametrize("updates", [0, 4], ids=["epoch", "step"])
@pytest.mark.parametrize("warmup", ["overlap", "front"])
@pytest.mark.parametrize("warmup_epochs", [0, 5])
@pytest.mark.parametrize(("name", "options", "theirs"), TIMM, ids=lambda x: str(x)[:12])
def test_rates_are_timms_to_the_last_digit(name, options, theirs, warmup_epochs, warmup, updates):
    front = warmup == "front"
    rise = {"warmup_epochs": warmup_epochs, "warmup_lr": 0.001}
    given = ours(name, options, warmup=warmup, **rise, **moving(updates))
    theirs = {"sched": name, "warmup_prefix": front, "updates": updates, **rise, **theirs}
    assert given == timms(0.25, epochs=30 + warmup_epochs * front, **theirs)


@pytest.mark.parametrize("updates", [0, 3], ids=["epoch", "step"])
def test_cosine_restarts_as_timms_cycles(updates):
    options = {"min_lr": 1e-5, "period": 10, "restart": True, "cycle_decay": 0.5}
    given = ours("cosine", options, cooldown_epochs=2, **moving(updates))
    theirs = {"num_epochs": 10, "cycle_limit": 3, "cycle_decay": 0.5, "min_lr": 1e-5}
    assert given == timms(0.25, epochs=32, updates=updates, sched="cosine", **theirs)


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("multistep", {"milestones": [20, 5, 5], "gamma": 0.5}, ("MultiStepLR", [5, 5, 20], 0.5)),
        ("exponential", {"gamma": 0.8}, ("ExponentialLR", 0.8)),
        ("poly", {"power": 0.9}, ("PolynomialLR", 30, 0.9)),
        ("cosine", {"period": 10}, ("CosineAnnealingLR", 10)),
        ("cosine", {"period": 10, "restart": True}, ("CosineAnnealingWarmRestarts", 10)),
    ],
    ids=str,
)
def test_rates_are_torchs(name, options, theirs):
    expected = torchs(lambda o: getattr(lr_scheduler, theirs[0])(o, *theirs[1:]), 0.25, 30)
    assert ours(name, options) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("pct", "total"), [(0.0, 30), (0.3, 30), (0.95, 3)])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_is_torchs(anneal, pct, total):
    factors = {"pct_start": pct, "div_factor": 10, "final_div_factor": 100}
    theirs = {**factors, "anneal_strategy": anneal, "cycle_momentum": False}

    def make(made):
        return lr_scheduler.OneCycleLR(made, 0.25, total, **theirs)

    options = {**factors, "anneal": anneal}
    given = ours("one_cycle", options, epochs=total)
    assert given == pytest.approx(torchs(make, 0.25, total), rel=1e-12)
    rates = ours("one_cycle", {"pct_start": pct}, epochs=1, cooldown_epochs=1)
    assert all(0 < rate <= 0.25 for rate in rates)  # of few steps, finite


@pytest.mark.parametrize(
    ("mode", "patience", "cooldown"), [("max", 0, 2), ("max", 3, 0), ("min", 0, 0), ("min", 3, 2)]
)
def test_plateau_is_torchs_replayed(mode, patience, cooldown):
    source = random.Random(0)
    steps = [source.choice([-0.02, 0.0, 0.0, 1e-6, 0.01]) for _ in range(60)]
    history = [0.5 + x for x in itertools.accumulate(steps)]
    made = optimizer(0.25)
    theirs = lr_scheduler.ReduceLROnPlateau(
        made, mode, 0.3, patience, cooldown=cooldown, min_lr=1e-4, eps=0
    )
    options = {"mode": mode, "factor": 0.3, "patience": patience, "cooldown": cooldown}
    bound = registry.build("plateau", min_lr=1e-4, **options)
    rate = learning_rates(bound, lr=0.25, epochs=61, steps_per_epoch=2)
    rates = []
    for epoch in range(60):
        rates.append(made.param_groups[0]["lr"])
        found = {rate(2 * epoch, history[:epoch]), rate(2 * epoch + 1, history[:epoch])}
        assert found == {rates[-1]}
        theirs.step(history[epoch])
    assert len(set(rates)) > 1


def test_plateau_counts_from_the_end_of_the_warm_up_as_timm_does():
    history = [0.1 * i for i in range(5)] + [0.2] * 25
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = optimizer(0.25)
        theirs = PlateauLRScheduler(made, 0.5, 2, warmup_t=5, warmup_lr_init=0.01)
    bound = registry.build("plateau", factor=0.5, patience=2)
    options = {"lr": 0.25, "steps_per_epoch": 1, "warmup_epochs": 5, "warmup_lr": 0.01}
    overlap = learning_rates(bound, epochs=30, **options)
    front = learning_rates(bound, epochs=25, warmup="front", **options)
    rates = []
    for epoch in range(30):
        rates.append(made.param_groups[0]["lr"])
        given = overlap(epoch, history[:epoch]), front(epoch, history[:epoch])
        assert given == pytest.approx([rates[-1]] * 2, rel=1e-12)
        theirs.step(epoch + 1, history[epoch])
    assert rates[-1] < 0.01


def test_plateau_skips_epochs_that_were_not_evaluated_and_rests_in_the_cool_down():
    bound = registry.build("plateau", factor=0.5, patience=1)
    rate = learning_rates(bound, lr=1.0, epochs=8, steps_per_epoch=1, cooldown_epochs=9)
    sparse, dense = [0.5, None, None, 0.5, None, 0.5], [0.5, 0.5, 0.5]
    assert rate(5, sparse[:5]) == 1.0
    assert rate(6, sparse) == rate(3, dense) == 0.5
    flat = [0.5] * 17
    assert rate(8, flat[:8]) == rate(16, flat[:16]) == 0.125


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("warmup", ["overlap", "front"])
@pytest.mark.parametrize("name", list(registry))
def test_every_schedule_rises_runs_and_cools_down(name, warmup, unit):
    run = {"epochs": 10, "steps_per_epoch": 4, "unit": unit, "warmup": warmup}
    run |= {"warmup_epochs": 3, "warmup_lr": 0.01, "cooldown_epochs": 2}
    rates = ours(name, REQUIRED.get(name, {}), **run)
    assert len(rates) == 4 * (15 if warmup == "front" else 12)
    assert rates[0] == 0.01 and all(0 <= rate <= 0.25 for rate in rates)
    assert rates[:12] == sorted(rates[:12]) and rates[11] > 0.1
    assert len(set(rates[-8:])) == 1  # the cool-down is flat
    if unit == "epoch":
        assert all(rates[i] == rates[i - i % 4] for i in range(len(rates)))
    cooled = ours(name, REQUIRED.get(name, {}), cooldown_lr=1e-7, **run)
    assert cooled[:-8] == rates[:-8] and cooled[-8:] == [1e-7] * 8
    if name in ("step", "multistep", "exponential", "cosine") and unit == "step":
        every_epoch = ours(name, REQUIRED.get(name, {}), **run | {"unit": "epoch"})
        assert rates[::4] == pytest.approx(every_epoch[::4], rel=1e-12)  # times are in epochs


@pytest.mark.parametrize(
    ("name", "options", "run", "words"),
    [
        ("step", {"every": 0}, {}, "step: every is 0"),
        ("cosine", {"min_lr": -1.0}, {}, "min_lr is -1.0"),
        ("cosine", {"period": 0}, {}, "period is 0"),
        ("one_cycle", {"pct_start": 1.1}, {}, "pct_start is 1.1"),
        ("cosine", {"period": 1e-320}, {}, "schedule's lr at step 1 of 10 is no number"),
        ("cosine", {"restart": True, "period": 1, "cycle_decay": 1e300}, {}, "no number"),
        ("cosine", {"restart": True, "period": 1, "cycle_decay": -1}, {}, "step 1 of 10 is -0.1"),
        ("step", {"every": 1, "gamma": 1e300}, {}, "step 2 of 10 is no number"),
        ("exponential", {"gamma": 1e300}, {}, "step 2 of 10 is no number"),
        ("multistep", {"milestones": [1, 2], "gamma": 1e300}, {}, "step 2 of 10 is no number"),
        ("plateau", {"factor": 1e300, "patience": 0}, {}, "step 3 of 10 is inf"),
        ("constant", {}, {"lr": float("inf")}, "the run: lr is inf"),
        ("constant", {}, {"epochs": 0}, "epochs is 0"),
    ],
)
def test_bad_options_are_refused_before_training(name, options, run, words):
    bound = registry.build(name, **options)
    with pytest.raises(UserError, match=words):
        learning_rates(bound, **{"lr": 0.1, "epochs": 10, "steps_per_epoch": 1} | run)

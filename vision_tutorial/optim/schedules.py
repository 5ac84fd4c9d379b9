"""The learning rate as a function of the step: nothing is carried along, so nothing is saved.

An entry gives the lr at time t of `total`; the peak is the optimizer's lr. Options that are times
are in epochs, whether the lr moves once an epoch or every step. `learning_rates` adds warm-up and
cool-down.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ..core.errors import UserError, check_range
from ..core.registry import schedules


class Now(NamedTuple):
    """A moment of the schedule: t of total, in epochs or in steps, `epoch` of which make an epoch.

    history holds the headline validation metric of each epoch since the warm-up, None where there
    was no evaluation.
    """

    t: int
    total: int
    history: Sequence[float | None] = ()
    epoch: int = 1


Schedule = Callable[[Now, float], float]


@schedules.register
def constant(now: Now, lr: float) -> float:
    """The same lr throughout."""
    return lr


@schedules.register
def step(now: Now, lr: float, *, every: float = 30.0, gamma: float = 0.1) -> float:
    """lr times gamma every so many epochs."""
    check_range("step", "(0, inf)", every=every, gamma=gamma)
    return lr * gamma ** (now.t // (every * now.epoch))


@schedules.register
def multistep(now: Now, lr: float, *, milestones: list[float], gamma: float = 0.1) -> float:
    """lr times gamma at each of these epochs, from 0 as torch counts (timm falls one earlier)."""
    check_range("multistep", "(0, inf)", gamma=gamma)
    return lr * gamma ** sum(milestone * now.epoch <= now.t for milestone in milestones)


@schedules.register
def exponential(now: Now, lr: float, *, gamma: float) -> float:
    """lr times gamma every epoch, smoothly where the lr moves every step."""
    check_range("exponential", "(0, inf)", gamma=gamma)
    return lr * gamma ** (now.t / now.epoch)


@schedules.register
def cosine(
    now: Now,
    lr: float,
    *,
    min_lr: float = 0.0,
    period: float | None = None,
    restart: bool = False,
    cycle_decay: float = 1.0,
) -> float:
    """Half a cosine from lr to min_lr (SGDR, Loshchilov & Hutter 2017, arXiv 1608.03983).

    It takes `period` epochs, all of them if null. If some are left, the lr rises again as it fell
    (torch's CosineAnnealingLR with T_max), or with `restart` jumps to the peak times cycle_decay.
    """
    check_range("cosine", "[0, inf)", min_lr=min_lr)
    check_range("cosine", "(0, inf)", period=1 if period is None else period)
    length = now.total if period is None else period * now.epoch
    t, peak = now.t, lr
    if restart:
        if now.t >= now.total:
            return min_lr
        t, peak = now.t % length, lr * cycle_decay ** (now.t // length)
    return min_lr + 0.5 * (peak - min_lr) * (1 + math.cos(math.pi * t / length))


@schedules.register
def poly(now: Now, lr: float, *, power: float = 0.9, min_lr: float = 0.0) -> float:
    """From lr to min_lr as (1 − t/total)^power (DeepLab, Chen et al. 2016, arXiv 1606.00915)."""
    check_range("poly", "(0, inf)", power=power)
    check_range("poly", "[0, inf)", min_lr=min_lr)
    return min_lr + (lr - min_lr) * (1 - now.t / now.total) ** power


@schedules.register
def one_cycle(
    now: Now,
    lr: float,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: Literal["cos", "linear"] = "cos",
) -> float:
    """Up from lr/div_factor to lr in pct_start of the time, then far down (Smith & Topin 2017).

    As torch's OneCycleLR, whose last value is lr/(div_factor·final_div_factor) at t = total − 1.
    """
    check_range("one_cycle", "[0, 1]", pct_start=pct_start)
    check_range("one_cycle", "(0, inf)", div_factor=div_factor, final_div_factor=final_div_factor)
    start, end, share = lr / div_factor, lr, 1.0
    top, last = pct_start * now.total - 1, now.total - 1
    if now.t <= top and top > 0:
        share = now.t / top
    else:
        start, end = lr, start / final_div_factor
        if last > top:
            share = min((now.t - top) / (last - top), 1.0)
    if anneal == "linear":
        return (end - start) * share + start
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)


@schedules.register
def plateau(
    now: Now,
    lr: float,
    *,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    cooldown: int = 0,
    min_lr: float = 0.0,
    mode: Literal["max", "min"] = "max",
) -> float:
    """lr times factor after more than `patience` evaluations without a better headline metric.

    Better is by `threshold`, relatively, as in torch's ReduceLROnPlateau; `cooldown` evaluations
    after a fall are not counted as bad. The metrics are replayed, so there is no state to save.
    """
    check_range("plateau", "(0, inf)", factor=factor)
    check_range("plateau", "[0, inf)", min_lr=min_lr)
    sign = 1 if mode == "max" else -1
    best, bad, resting = -sign * math.inf, 0, 0
    for metric in now.history:
        if metric is None:
            continue
        if sign * metric > sign * best * (1 + sign * threshold):
            best, bad = metric, 0
        else:
            bad += 1
        if resting:
            resting, bad = resting - 1, 0
        if bad > patience:
            lr, bad, resting = max(lr * factor, min_lr), 0, cooldown
    return lr


def learning_rates(
    schedule: Schedule,
    *,
    lr: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    warmup_lr: float = 0.0,
    warmup: Literal["overlap", "front"] = "overlap",
    cooldown_epochs: int = 0,
    cooldown_lr: float | None = None,
    unit: Literal["epoch", "step"] = "epoch",
) -> Callable[[int, Sequence[float | None]], float]:
    """The function (step, history) -> lr of a run; step counts optimizer steps from 0.

    The warm-up rises linearly from warmup_lr to lr. `overlap` lays it over the schedule's first
    epochs, as timm does; `front` puts it before them and so lengthens the run. After `epochs` the
    schedule keeps its end value for the cool-down, or cooldown_lr if given. With unit "epoch" it
    moves once an epoch. history: the headline metric of each epoch so far, warm-up included.
    """
    check_range("the run", "[0, inf)", lr=lr)
    check_range("the run", "(0, inf)", epochs=epochs, steps_per_epoch=steps_per_epoch)
    epoch = 1 if unit == "epoch" else steps_per_epoch
    total, rise = epochs * epoch, warmup_epochs * epoch
    slope = (lr - warmup_lr) / rise if rise else 0.0
    ahead = warmup_epochs if warmup == "front" else 0

    def at(step: int, history: Sequence[float | None] = ()) -> float:
        t = step // (steps_per_epoch // epoch)
        if t < rise:
            return warmup_lr + t * slope
        t -= ahead * epoch
        if t >= total and cooldown_epochs and cooldown_lr is not None:
            return cooldown_lr
        seen = history[warmup_epochs : ahead + epochs]
        return schedule(Now(min(t, total), total, seen, epoch), lr)

    steps = (ahead + epochs + cooldown_epochs) * steps_per_epoch
    tries = max(2, min(64, 2**16 // (steps // steps_per_epoch)))  # a history costs its length
    for step in sorted({n * (steps - 1) // (tries - 1) for n in range(tries)}):
        try:  # an option out of range, or one that drives the lr there, ends no training later
            value = at(step, [0.0] * (step // steps_per_epoch))
        except (ArithmeticError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            value = f"no number ({error})"
        if not (isinstance(value, float | int) and 0 <= value < math.inf):
            raise UserError(
                f"the schedule's lr at step {step:,} of {steps:,} is {value}; it has to be a "
                "number from 0 up. Change its options."
            )
    return at

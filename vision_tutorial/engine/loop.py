"""The loop. It reads aloud: one call for each thing that happens, and it never asks which track."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ..core.errors import ExitCode
from ..core.processes import StopSignal
from ..core.task import Batch, Meter
from .evaluation import Evaluation, Interrupted
from .step import StepQueue, StepResult, TrainingState, async_steps_of, set_lr, take_step


@dataclass(frozen=True)
class Plan:
    """What is to be done, as functions of the step."""

    steps_per_epoch: int
    epochs: int
    lr: Callable[[int, list[float | None]], float]  # (step, headline metric of each epoch so far)
    batches: Callable[[int, int, int], Iterator[list[Batch]]]  # (start, stop, micro-batches a step)
    batch_size: int  # of all processes together
    evaluate: Callable[[Callable[[], bool], Callable[[int, int], None]], Evaluation]
    meter: Meter
    eval_every: int = 1
    early_stopping: Any = None  # the recipe's

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def headline(self) -> str:
        """The column of the metric by which epochs are compared."""
        return f"val/{self.meter.headline}"

    def converged(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the rows so far have stopped getting better by `early_stopping`."""
        rule = self.early_stopping
        if rule is None:
            return False
        name = "val/loss" if rule.metric == "loss" else self.headline
        sign = 1 if self.meter.higher_is_better and rule.metric != "loss" else -1
        best, since = -math.inf, 0
        for value in (sign * row[name] for row in rows if row.get(name) is not None):
            best, since = (value, 0) if value > best + rule.min_delta else (best, since + 1)
        return since >= rule.patience


@dataclass
class Progress:
    """How far it got: all that a resumed run needs beside the tensors."""

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    items: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    seconds_data: float = 0.0
    seconds_overhead: float = 0.0  # of saving and telling, since the last row
    table: dict[str, list[Any]] = field(default_factory=dict)  # of classes, at the best epoch
    total_seconds: float = 0.0

    def add(self, result: StepResult) -> None:
        """Count a step. The loss of a skipped step is no number and stays out of the mean."""
        self.skipped += result.skipped
        if not result.skipped:
            self.items += result.items
            for name, value in result.losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    @contextmanager
    def overhead(self) -> Iterator[None]:
        """What happens within it is not learning."""
        began = time.perf_counter()
        yield
        self.seconds_overhead += time.perf_counter() - began

    def losses(self) -> dict[str, float]:
        """True means over all items of the epoch's steps, on all processes."""
        return {f"train/{name}": value / self.items for name, value in self.sums.items()}

    def start_epoch(self) -> None:
        self.sums, self.items, self.skipped = {}, 0, 0
        self.seconds = self.seconds_data = self.seconds_overhead = 0.0

    def values(self, name: str) -> list[float | None]:
        """A column of the rows so far, None where an epoch was not evaluated."""
        return [row.get(name) for row in self.rows]


class Recorder:
    """What rank 0 does beside training: save and report. This one does nothing, as other ranks."""

    def save(self, progress: Progress, is_best: bool) -> None:
        """Write a checkpoint."""

    def due(self, progress: Progress) -> bool:
        """Whether a checkpoint within the epoch is due."""
        return False

    def stepped(self, progress: Progress, loss: float | None, lr: float, items: int) -> None:
        """Show a step of `items` images; the loss is that of the last step that was read."""

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""

    def finished_epoch(self, progress: Progress) -> None:
        """Report the last of progress.rows, at once or later: when its checkpoint is safe."""

    def close(self) -> None:
        """Finish what is under way."""


class StopRequest(StopSignal):
    """Polled between steps. A second signal, a second or more after the first, does not wait."""

    def __init__(self, minutes: float | None = None, steps: int | None = None, start: int = 0):
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.last_step = start + steps if steps else None
        self.since = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is not None and now - self.since > 1:  # schedulers send some twice at once
            os._exit(int(ExitCode.PREEMPTED))
        self.signal, self.since = number, now

    def asked(self, step: int) -> bool:
        """Whether the step about to be taken (counted from 0) should be the last."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        return late or self.signal is not None or self.reached(step + 1)

    def reached(self, steps: int) -> bool:
        """Whether `steps` steps are as many as were asked for; the same on all processes."""
        return self.last_step is not None and steps >= self.last_step


def fit(
    training: TrainingState,
    plan: Plan,
    recorder: Recorder,
    progress: Progress,
    stop: StopRequest,
) -> bool:
    """Train from `progress` to the end of `plan`. True when done, False when asked to stop."""
    training.skipped_in_row = progress.skipped_in_row
    training.async_steps = async_steps_of(training)
    if _pending(plan, progress) and not _end_epoch(plan, recorder, progress, stop):
        return False
    if plan.converged(progress.rows):  # before it was interrupted
        return True
    training.model.train()
    queue = StepQueue(training, progress.add)
    began = time.perf_counter() - progress.total_seconds
    clock = time.perf_counter()
    for batches in plan.batches(progress.step, plan.steps, training.accumulation_steps):
        waited = time.perf_counter() - clock
        lr = plan.lr(progress.step, progress.values(plan.headline))
        set_lr(training.optimizer, lr)
        asked = stop.asked(progress.step)
        queue.reports.append(take_step(training, batches, progress.step, asked))
        progress.step += 1
        ended, due = _pending(plan, progress), recorder.due(progress)
        queue.read(behind=0 if ended or due else training.async_steps)
        leaving = queue.stops(progress.step, ended) or stop.reached(progress.step)
        if leaving:
            queue.read(behind=0)
        progress.skipped_in_row = training.skipped_in_row
        now = time.perf_counter()
        progress.seconds += now - clock
        progress.seconds_data += waited
        progress.total_seconds = now - began
        with progress.overhead():
            images = sum(map(len, batches)) * training.distributed.world
            recorder.stepped(progress, queue.loss, lr, images)
        if ended:
            if not _end_epoch(plan, recorder, progress, stop):
                return False
            if plan.converged(progress.rows):
                return True
        elif leaving or due:
            with progress.overhead():
                recorder.save(progress, is_best=False)
        if leaving and progress.step < plan.steps:
            return False
        clock = time.perf_counter()
    return True


def _pending(plan: Plan, progress: Progress) -> bool:
    """Whether an epoch's steps are all taken but its row is not written."""
    return progress.step // plan.steps_per_epoch > len(progress.rows)


def _end_epoch(plan: Plan, recorder: Recorder, progress: Progress, stop: StopRequest) -> bool:
    """Evaluate, write the row, save, then report. False if asked to stop before it was done."""
    epoch, best = len(progress.rows) + 1, False
    evaluation = None
    if epoch % plan.eval_every == 0 or epoch == plan.epochs:
        try:
            evaluation = plan.evaluate(stop.signalled, recorder.evaluating)
        except Interrupted:
            recorder.save(progress, is_best=False)
            return False
        progress.total_seconds += evaluation.seconds
        sign = 1 if plan.meter.higher_is_better else -1
        before = [sign * x for x in progress.values(plan.headline) if x is not None]
        value = sign * evaluation.metrics[plan.meter.headline]
        best = not before or value > max(before)  # the first of equals stays the best
    if best:
        progress.table = evaluation.table
    progress.rows.append(_row(plan, progress, evaluation, epoch))
    progress.start_epoch()
    with progress.overhead():
        recorder.save(progress, is_best=best)
        recorder.finished_epoch(progress)
    return True


def _row(
    plan: Plan, progress: Progress, evaluation: Evaluation | None, epoch: int
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    lr = plan.lr(progress.step - 1, progress.values(plan.headline))
    values = {"epoch": epoch, "step": progress.step, "lr": lr}
    values |= progress.losses() if progress.items else {"train/loss": None}
    if evaluation:
        values |= {f"val/{name}": value for name, value in evaluation.metrics.items()}
    return values | {
        "skipped_steps": progress.skipped,
        "images_per_second": round(progress.items / max(progress.seconds, 1e-9), 1),
        "seconds": round(progress.seconds, 3),
        "seconds_data": round(progress.seconds_data, 3),
        "seconds_device": round(progress.seconds - progress.seconds_data, 3),
        "seconds_eval": round(evaluation.seconds, 3) if evaluation else 0.0,
        "seconds_overhead": round(progress.seconds_overhead, 3),
    }

"""The loop. It reads aloud: one call for each thing that happens, and it never asks which track."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import NonFiniteError, UserError
from ..core.stopping import StopSignal
from ..core.task import Batch, Meter, Task, to_device
from .device_errors import is_out_of_memory
from .distributed import Distributed
from .step import StepResult, TrainingState, async_steps_of, set_lr, take_step

logger = logging.getLogger(__name__)

PATIENCE = 3  # non-finite steps in a row that are skipped before giving up
POLL = 8  # rounds between looking whether somebody wants to stop
WORTH_SAVING = 10.0  # seconds of training that are saved before they are evaluated
MIN_SCALE = 1.0  # with no more than this loss scale, an overflow is not fp16's searching


class Interrupted(Exception):
    """Someone asked to stop in the middle; what was counted so far is dropped."""


@dataclass(frozen=True)
class Evaluation:
    """A pass over a split. `metrics` by name; `table` is one column of numbers per name."""

    metrics: dict[str, float]
    table: dict[str, list[Any]]
    images: int
    seconds: float


def evaluate(
    forward: Callable[[Batch], Tensor],
    model: nn.Module,
    batches: Iterator[list[Batch]],
    rounds: int,
    task: Task,
    criterion: Any,
    distributed: Distributed,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Metrics of `forward(batch) -> logits` over all processes, and the loss of the WeightedSum
    `criterion`.

    rounds: the largest number of lists of batches of any process, so that all meet equally often.
    A batch that is too large for the memory is taken in halves.
    """
    began = time.perf_counter()
    meter, most = task.meter(), math.inf  # images at once
    losses = torch.zeros(2, len(criterion.names), dtype=torch.float64)  # stays on the device
    with evaluating(model), torch.inference_mode():
        for done in range(rounds):
            waiting = deque(next(batches, ()))
            while waiting:
                batch = waiting.popleft()
                if len(batch) > most:
                    waiting.extendleft(reversed(batch.halves()))
                    continue
                try:
                    output = forward(batch).float()
                    found = criterion.sums(output, batch.target)
                    meter.update(output, batch.target)
                except (RuntimeError, MemoryError) as error:
                    if len(batch) == 1 or not is_out_of_memory(error):
                        raise
                    most = (len(batch) + 1) // 2
                    logger.warning("out of memory at %d images; evaluating %d", len(batch), most)
                    torch.cuda.empty_cache()
                    waiting.appendleft(batch)
                    continue
                losses = to_device(losses, found.device) + found
            if done % POLL == 0 and distributed.any(stop()):
                raise Interrupted
            progress(done + 1, rounds)
    counts = distributed.sum(torch.cat([losses.cpu().flatten(), meter.state.cpu()]))
    state = counts[losses.numel() :]
    metrics = {"loss": criterion.total(counts[: losses.numel()].view_as(losses))}
    metrics |= meter.result(state)
    images = int(metrics.pop("images"))
    return Evaluation(metrics, meter.table(state), images, time.perf_counter() - began)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what it was. Nothing is compiled for it: its batches have
    other sizes, and `evaluate` gets the same numbers."""
    before, compiled = model.training, getattr(model, "_compiled_call_impl", None) is not None
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        model.train(before)


@dataclass(frozen=True)
class Plan:
    """What is to be done, as functions of the step."""

    steps_per_epoch: int
    epochs: int
    lr: Callable[[int, list[float | None]], float]  # (step, headline metric of each epoch so far)
    batches: Callable[[int, int, int], Iterator[list[Batch]]]  # (start, stop, micro-batches a step)
    batch_size: int  # of all processes together
    evaluate: Callable[..., Evaluation]  # (stop, progress), as of `evaluate`
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
        """Count a step. The loss of a skipped one is no number and stays out of the means.

        NonFiniteError after PATIENCE bad steps in a row: such weights are never stepped to, saved
        or resumed.
        """
        self.skipped += result.skipped
        if not result.skipped:
            self.items += result.items
            for name, value in result.losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        searching = math.isfinite(result.loss) and result.scale > MIN_SCALE
        bad = result.skipped and not searching
        self.skipped_in_row = self.skipped_in_row + 1 if bad else 0
        if self.skipped_in_row > PATIENCE:
            raise NonFiniteError(
                f"step {result.step + 1}: loss {result.loss:g} or its gradient is not finite, "
                f"{PATIENCE + 1} times in a row; the last checkpoint is good. Lower the lr, add "
                "warm-up, clip, or use fp32."
            )

    @contextmanager
    def overhead(self) -> Iterator[None]:
        """What happens within it is not learning."""
        began = time.perf_counter()
        yield
        self.seconds_overhead += time.perf_counter() - began

    def values(self, name: str) -> list[float | None]:
        """A column of the rows so far, None where an epoch was not evaluated."""
        return [row.get(name) for row in self.rows]


class Recorder:
    """What rank 0 does beside training: save and report. This one does nothing, as other ranks."""

    def save(self, progress: Progress, is_best: bool | None = None) -> None:
        """Write a checkpoint. is_best: at an epoch's end, whether it is the best so far; its row,
        the last of progress.rows, is reported when its checkpoint is safe."""

    def due(self, progress: Progress) -> bool:
        """Whether a checkpoint within the epoch is due."""
        return False

    def stepped(self, progress: Progress, loss: float | None, lr: float) -> None:
        """Show a step; the loss is that of the last step that was read."""

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""

    def close(self) -> None:
        """Finish what is under way."""


class StopRequest(StopSignal):
    """Polled between steps. A second signal, a second or more after the first, does not wait."""

    twice_is_enough = True

    def __init__(self, minutes: float | None = None, steps: int | None = None, start: int = 0):
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.last_step = start + steps if steps else None

    def asked(self, step: int) -> bool:
        """Whether the step about to be taken (counted from 0) should be the last."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        return late or self.signal is not None or self.reached(step + 1)

    def reached(self, steps: int) -> bool:
        """Whether `steps` steps are as many as were asked for; the same on all processes."""
        return self.last_step is not None and steps >= self.last_step


class StepQueue:
    """Reads and counts the results of steps in order, the newest of them later."""

    def __init__(self, progress: Progress, async_steps: int):
        self.progress, self.async_steps = progress, async_steps
        self.results: deque[StepResult] = deque()
        self.loss: float | None = None  # of the last step that was read
        self.stop_at = math.inf  # steps

    def read(self, behind: int = 0) -> None:
        """Read all but the newest `behind` results.

        Any process may have read ahead to save, so a wish to stop counts after `async_steps` more
        steps, the same on all.
        """
        while len(self.results) > behind:
            result = self.results.popleft().read()
            self.progress.add(result)
            self.loss = result.loss
            if result.stop:
                self.stop_at = min(self.stop_at, result.step + 1 + self.async_steps)


def fit(
    training: TrainingState, plan: Plan, recorder: Recorder, progress: Progress, stop: StopRequest
) -> bool:
    """Train from `progress` to the end of `plan`. True when done, False when asked to stop."""
    training.async_steps = async_steps_of(training)
    if _pending(plan, progress) and not _end_epoch(plan, recorder, progress, stop):
        return False
    if plan.converged(progress.rows):  # before it was interrupted
        return True
    training.model.train()
    queue = StepQueue(progress, training.async_steps)
    began = time.perf_counter() - progress.total_seconds
    clock = time.perf_counter()
    for batches in plan.batches(progress.step, plan.steps, training.accumulation_steps):
        waited = time.perf_counter() - clock
        lr = plan.lr(progress.step, progress.values(plan.headline))
        set_lr(training.optimizer, lr)
        asked = stop.asked(progress.step)
        queue.results.append(take_step(training, batches, progress.step, asked))
        progress.step += 1
        ended, due = _pending(plan, progress), recorder.due(progress)
        queue.read(behind=0 if ended or due else training.async_steps)
        # at an epoch's end all processes have read all: a wish counts at once
        wished = queue.stop_at < math.inf if ended else queue.stop_at <= progress.step
        leaving = wished or stop.reached(progress.step)
        if leaving:
            queue.read()
        now = time.perf_counter()
        progress.seconds += now - clock
        progress.seconds_data += waited
        progress.total_seconds = now - began
        with progress.overhead():
            recorder.stepped(progress, queue.loss, lr)
        if ended:
            if not _end_epoch(plan, recorder, progress, stop):
                return False
            if plan.converged(progress.rows):
                return True
        elif leaving or due:
            with progress.overhead():
                recorder.save(progress)
        if leaving and progress.step < plan.steps:
            return False
        clock = time.perf_counter()
    return True


def _pending(plan: Plan, progress: Progress) -> bool:
    """Whether an epoch's steps are all taken but its row is not written."""
    return progress.step // plan.steps_per_epoch > len(progress.rows)


def _end_epoch(plan: Plan, recorder: Recorder, progress: Progress, stop: StopRequest) -> bool:
    """Evaluate, write the row, save, then report. False if asked to stop before it was done.

    Whatever ends the evaluation does not cost the epoch: it is saved before, if it took longer, and
    whenever there is an error.
    """
    epoch, best = len(progress.rows) + 1, False
    evaluation = None
    if epoch % plan.eval_every == 0 or epoch == plan.epochs:
        if progress.seconds > WORTH_SAVING:
            with progress.overhead():
                recorder.save(progress)
        try:
            evaluation = plan.evaluate(stop.signalled, recorder.evaluating)
        except Interrupted:
            recorder.save(progress)
            return False
        except Exception:
            with suppress(UserError):  # the error at hand is the one to tell
                recorder.save(progress)
                recorder.close()
            raise
        progress.total_seconds += evaluation.seconds
        sign = 1 if plan.meter.higher_is_better else -1
        before = [sign * x for x in progress.values(plan.headline) if x is not None]
        value = sign * evaluation.metrics[plan.meter.headline]
        best = not before or value > max(before)  # the first of equals stays the best
    if best:
        progress.table = evaluation.table
    progress.rows.append(_row(plan, progress, evaluation, epoch))
    progress.sums, progress.items, progress.skipped = {}, 0, 0
    progress.seconds = progress.seconds_data = progress.seconds_overhead = 0.0
    with progress.overhead():
        recorder.save(progress, is_best=best)
    return True


def _row(
    plan: Plan, progress: Progress, evaluation: Evaluation | None, epoch: int
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    lr = plan.lr(progress.step - 1, progress.values(plan.headline))
    values = {"epoch": epoch, "step": progress.step, "lr": lr, "train/loss": None}
    values |= {f"train/{name}": value / progress.items for name, value in progress.sums.items()}
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

"""The training loop with its time measured, and the bare loops that it is compared with."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.task import Batch
from ..engine.checkpoint import Checkpoints
from ..engine.distributed import Distributed
from ..engine.evaluation import Evaluation, evaluating
from ..engine.loop import Plan, Progress, Recorder, StopRequest, fit
from ..engine.progress import make_display
from ..engine.recorder import RunRecorder
from ..engine.step import TrainingState
from ..recipe.fields import CheckpointPolicy
from ..runs.wandb_logger import Tracker
from .timed_pairs import Sample

SKIP = 1  # steps after a start that do not count: the loader starts, caches fill


class Watch(Recorder):
    """Another recorder with its time measured: seconds of each step, and of the recorder."""

    def __init__(self, recorder: Recorder, settle: Callable[[], None]):
        self.recorder, self.settle = recorder, settle
        self.start()

    def start(self) -> None:
        """Forget what was counted so far."""
        self.steps: list[float] = []
        self.waits: list[float] = []  # for data, as the loop itself counts them
        self.waited = 0.0
        self.busy = 0.0  # in the recorder
        self.final = False  # whether the step under way is the last
        self.last = time.perf_counter()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What happens within it is no training."""
        began = time.perf_counter()
        yield
        self.busy += time.perf_counter() - began

    def stepped(self, progress: Progress, *rest: Any) -> None:
        with self.recording():
            self.recorder.stepped(progress, *rest)
        if len(self.steps) < SKIP or self.final:
            self.settle()
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.waits.append(progress.seconds_data - self.waited)
        self.last, self.waited = now, progress.seconds_data

    def save(self, progress: Progress, is_best: bool) -> None:
        with self.recording():
            self.recorder.save(progress, is_best)

    def finished_epoch(self, progress: Progress) -> None:
        with self.recording():
            self.recorder.finished_epoch(progress)
        self.last, self.waited = time.perf_counter(), progress.seconds_data

    def due(self, progress: Progress) -> bool:
        return self.recorder.due(progress)


class Until(StopRequest):
    """Asks to stop when the steps that `watch` counts will have taken so many seconds."""

    def __init__(self, watch: Watch, seconds: float):
        super().__init__()
        self.watch, self.seconds = watch, seconds

    def asked(self, step: int) -> bool:
        """Whether the step about to be taken should be the last; one counts at least."""
        steps = self.watch.steps
        # the next will take about as long as the last
        self.watch.final = len(steps) >= SKIP and sum(steps[SKIP:]) + steps[-1] >= self.seconds
        return self.watch.final


class TimedTraining:
    """The real loop with a real recorder, for some seconds at a time."""

    def __init__(
        self,
        training: TrainingState,
        plan: Plan,
        run: Path,
        policy: CheckpointPolicy,
        say: Callable[[str], None],
    ):
        """run: a folder for checkpoints and metrics."""
        self.training, self.plan = training, plan
        self.checkpoints = Checkpoints(run, "timed", keep=policy.keep, say=say)
        given = (self.checkpoints, policy, Tracker(), make_display(False))
        self.watch = Watch(RunRecorder(run, training, *given), settler(training.distributed.device))
        self.progress = Progress()
        self.data_shares: list[float] = []  # of each run: waiting for data

    def run(self, seconds: float, batch_size: int) -> Sample:
        """Go on for some seconds: the images, and the seconds of their steps.

        Evaluation, checkpoints at an epoch's end and the start of the loader are not in them.
        """
        watch = self.watch
        watch.start()
        given = (self.training, self.plan, watch, self.progress)
        fit(*given, Until(watch, seconds))
        self.checkpoints.wait()  # the one of the stop; its writing is not to slow the other side
        took = sum(watch.steps[SKIP:])
        self.data_shares.append(min(sum(watch.waits[SKIP:]) / took, 1.0))
        return Sample(batch_size * len(watch.steps[SKIP:]), took)

    def ends_of_epochs(self, count: int, evaluation: Evaluation) -> list[float]:
        """Seconds in which nothing is trained, to save and print, at so many ends of epochs.

        The epochs are far enough apart for a checkpoint to be written meanwhile.
        """
        plan = replace(self.plan, steps_per_epoch=1, eval_every=1, evaluate=lambda *_: evaluation)
        progress, watch, found = Progress(), self.watch, []
        for _ in range(count):
            watch.start()
            stop = StopRequest(steps=1, start=progress.step)
            fit(self.training, plan, watch, progress, stop)
            self.checkpoints.wait()
            found.append(watch.busy)
        return found


class BareLoop:
    """zero_grad, forward, loss, backward, step on batches that are there already; nothing else."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Tensor, Tensor], tuple[Tensor, Any]],
        batches: Sequence[Batch],
        distributed: Distributed,
    ):
        """batches: the micro-batches of one step."""
        self.model, self.optimizer, self.criterion = model.train(), optimizer, criterion
        self.batches, self.distributed = batches, distributed
        fp16 = distributed.precision == "fp16"
        self.scaler = torch.amp.GradScaler(distributed.device.type, enabled=fp16)

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self.batches:
            with _autocast(self.distributed):
                output = self.model(batch.images)
            loss = self.criterion(output.float(), batch.target)[0] / len(self.batches)
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def run(self, seconds: float) -> Sample:
        """Steps for some seconds, at least one."""
        settle = settler(self.distributed.device)
        for _ in range(SKIP):
            self.step()
        settle()
        steps, began = 0, time.perf_counter()
        while True:
            self.step()
            steps += 1
            if time.perf_counter() - began >= seconds:
                settle()
                images = steps * sum(len(batch.images) for batch in self.batches)
                return Sample(images, time.perf_counter() - began)


def _autocast(distributed: Distributed) -> AbstractContextManager:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if distributed.precision not in kinds:
        return nullcontext()
    return torch.autocast(distributed.device.type, kinds[distributed.precision])


def bare_forward(model: nn.Module, batches: Sequence[Tensor], distributed: Distributed) -> Sample:
    """The model on images that are there already; its output is not used."""
    settle = settler(distributed.device)
    with evaluating(model), torch.inference_mode(), _autocast(distributed):
        settle()
        began = time.perf_counter()
        for images in batches:
            model(images)
        settle()
        return Sample(sum(map(len, batches)), time.perf_counter() - began)


@contextmanager
def seen_by(model: nn.Module) -> Iterator[list[Tensor]]:
    """The batches of images that the model is given meanwhile."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()


def settler(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done what it was given."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None

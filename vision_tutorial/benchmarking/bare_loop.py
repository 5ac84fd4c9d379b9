"""The training loop with its time measured, and the bare loop and forward pass beside it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import build
from ..core.sources import take
from ..core.task import Batch
from ..engine.checkpoint import Checkpoints
from ..engine.distributed import Distributed
from ..engine.loop import Evaluation, Progress, StopRequest, evaluating, fit
from ..engine.progress import make_display
from ..engine.recorder import RunRecorder
from ..recipe.fields import Recipe
from ..runs.wandb_logger import Tracker
from .timed_pairs import Measurement, Timer

FAR = 10**9  # a step that no measurement reaches
ENDLESS = ("epochs=1000000", "checkpoint.every_minutes=null")


def placed(recipe: Recipe) -> Distributed:
    """Device and threads of the recipe, in this process."""
    return Distributed(recipe.precision, recipe.threads, recipe.deterministic, recipe.shards)


class TimedTraining:
    """A training built as `train` builds it, with a real recorder, for some seconds at a time."""

    def __init__(self, recipe: Recipe, run: Path, say: Callable[[str], None]):
        """recipe: with ENDLESS set. run: a folder for checkpoints and metrics."""
        self.recipe = recipe
        self.place = placed(recipe)
        self.splits = build.data(recipe)
        self.training = build.training_state(recipe, self.splits.train, self.place)
        self.plan = build.plan(recipe, self.splits, self.training, self.place)
        if notice := build.fit_memory(recipe, self.training, self.plan):
            say(notice)
        checkpoints = Checkpoints(run, "timed", keep=recipe.checkpoint.keep, say=say)
        given = (checkpoints, recipe.checkpoint, Tracker(), make_display(False))
        self.recorder = RunRecorder(run, self.training, *given)
        self.progress = Progress()
        self.data_shares: list[float] = []  # of each run: waiting for data

    def run(self, seconds: float) -> Measurement:
        """Go on for some seconds: the images, and the seconds of their steps.

        Evaluation, the end of an epoch and the start of the loader are not in them.
        """
        timer, batches = Timer(seconds), self.plan.batches
        plan = replace(self.plan, steps_per_epoch=FAR, epochs=1)  # no epoch ends meanwhile
        plan = replace(plan, batches=lambda *given: timer.passing(batches(*given)))
        fit(self.training, plan, self.recorder, self.progress, StopRequest())
        self.data_shares.append(timer.waited / timer.seconds)
        return Measurement(self.recipe.batch_size * timer.batches, timer.seconds)

    def epoch_ends(self, epochs: int) -> list[float]:
        """Seconds in which nothing is trained, to save and report, at so many ends of epochs.

        The epochs are far enough apart for a checkpoint to be written meanwhile.
        """
        found = self.evaluation(self.recipe.eval_batch_size)()
        plan = replace(self.plan, steps_per_epoch=1, eval_every=1, evaluate=lambda *_: found)
        progress = Progress()
        for step in range(epochs + 2):
            stop = StopRequest(steps=1, start=step)
            fit(self.training, plan, self.recorder, progress, stop)
            self.recorder.checkpoints.wait()
        # a row has what came after the row before; the first save warms up
        return [row["seconds_overhead"] for row in progress.rows[2:]]

    def first_batches(self) -> list[Batch]:
        """The prepared micro-batches of the first step."""
        (batches,) = self.plan.batches(0, 1, self.training.accumulation_steps)
        return batches

    def evaluation(self, images: int) -> Callable[[], Evaluation]:
        """The evaluation of so many images, or of all, as the loop does it after each epoch."""
        val = self.splits.val
        val = take(val, images, self.recipe.seed) if images < len(val) else val
        plan = build.plan(self.recipe, replace(self.splits, val=val), self.training, self.place)
        return lambda: plan.evaluate(lambda: False, lambda done, total: None)


def bare_steps(
    recipe: Recipe, classes: int, batches: Sequence[Batch], place: Distributed
) -> Iterator[int]:
    """zero_grad, forward, loss, backward, step on batches that are there already; nothing else.

    batches: the micro-batches of one step. Yields how many images each step took, without end.
    """
    model = build.place_model(recipe, build.model(recipe, classes), place).train()
    criterion = build.criteria(recipe, place.device)["loss"]
    optimizer = build.optimizer(recipe, model)
    scaler = torch.amp.GradScaler(place.device.type, enabled=place.precision == "fp16")
    while True:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with place.accelerator.autocast():
                output = model(batch.images)
            loss = criterion(output.float(), batch.target)[0] / len(batches)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield sum(len(batch.images) for batch in batches)


def bare_forward(model: nn.Module, batches: Sequence[Tensor], place: Distributed) -> int:
    """The model on images (B, 3, H, W) that are there already; returns how many there were."""
    with evaluating(model), torch.inference_mode(), place.accelerator.autocast():
        for images in batches:
            model(images)
    return sum(map(len, batches))

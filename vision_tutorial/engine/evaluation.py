"""Evaluation: every item counted once, on however many processes."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.counts import exact_sum, wide
from ..core.task import Batch, Task
from .distributed import Distributed

POLL = 8  # rounds between looking whether somebody wants to stop


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
    batches: Iterator[Batch],
    rounds: int,
    task: Task,
    criterion: Callable,
    distributed: Distributed,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Metrics of `forward(batch) -> logits` over all processes, and the criterion's mean.

    rounds: the largest number of batches of any process, so that all meet equally often.
    """
    began = time.perf_counter()
    meter = task.meter()
    loss, items = torch.zeros((), dtype=torch.float64), 0  # stays on the device, as the counts do
    with evaluating(model), torch.inference_mode():
        for done in range(rounds):
            batch = next(batches, None)
            if batch is not None:
                output = forward(batch).float()
                meter.update(output, batch.target)
                mean = wide(criterion(output, batch.target)[0])
                loss = exact_sum(mean * len(batch.target)) + loss
                items += len(batch.target)
            if done % POLL == 0 and distributed.any(stop()):
                raise Interrupted
            progress(done + 1, rounds)
    counts = torch.cat([torch.tensor([loss, items], dtype=torch.float64), meter.state.cpu()])
    counts = distributed.sum(counts)
    total, items = counts[:2].tolist()
    state = counts[2:]
    metrics = {"loss": total / max(items, 1), **meter.result(state)}
    images = int(metrics.pop("images"))
    return Evaluation(metrics, meter.table(state), images, time.perf_counter() - began)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what it was."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


class Timed:
    """A function of images, and how long it took on average."""

    def __init__(self, function: Callable):
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *given: Any) -> Any:
        began = time.perf_counter()
        made = self.function(*given)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return made

    @property
    def mean(self) -> float:
        """Seconds a call."""
        return self.seconds / max(self.calls, 1)


def refined(refine: Callable, output: Tensor, pixels: Tensor) -> Tensor:
    """Logits (B, C, H, W) after `refine(image, probabilities)` of each image, as logarithms;
    pixels uint8 (B, 3, H, W), as the images are."""
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    pairs = zip(images, output.float().softmax(1).cpu(), strict=True)
    made = torch.stack([torch.as_tensor(refine(*pair)) for pair in pairs])
    return made.clamp(min=torch.finfo(made.dtype).tiny).log().to(output.device)


@torch.inference_mode()
def answer_to_blank(model: nn.Module, height: int, width: int) -> str:
    """The shape of what the model says of one blank image, or what it complains of; no trace."""
    blank = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    try:
        with evaluating(model):
            return f"{tuple(model(blank).shape)}"
    except Exception as error:  # networks say "does not fit" in every way there is
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def rounds_of(n: int, batch_size: int, world: int) -> int:
    """How many batches the busiest of `world` processes has."""
    return math.ceil(math.ceil(n / batch_size) / world)

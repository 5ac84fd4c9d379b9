"""Evaluation: every item counted once, on however many processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.task import Batch, Task, exact_sum, wide
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

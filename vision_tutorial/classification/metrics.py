"""Metrics of classification: top-1, top-5, accuracy of each class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.registry import tasks
from ..core.task import Task, exact_sum, tally, to_device, wide

_NEVER = 2**62  # a rank


def ranks(logits: Tensor, target: Tensor) -> Tensor:
    """How many classes of `logits` (B, C) come before each of `target` (B,); int64 (B,).

    A tie counts for the lower class id, as a stable sort would have it, on every device. A logit
    that is not finite is never a hit, and so comes after any number of classes.
    """
    own = logits.gather(1, target[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < target[:, None]))
    return torch.where(torch.isfinite(own[:, 0]), ahead.sum(1), _NEVER)


class Accuracy:
    """Top-1, top-5, per-class accuracy and plain cross-entropy, as sums.

    state float64 (3 + 2C,): top-1 hits, top-5 hits, cross-entropy; per class hits, then items.
    """

    headline = "top1"
    higher_is_better = True

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.state = torch.zeros(3 + 2 * len(classes), dtype=torch.float64)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. output (B, C) logits; target ids (B,)."""
        output, rank = output.float(), ranks(output.float(), target)
        first, fifth = rank < 1, rank < 5
        entropy = exact_sum(F.cross_entropy(output, target, reduction="none"))
        head = torch.stack([wide(first.sum()), wide(fifth.sum()), entropy])
        table = [tally(n, target, len(self.classes)) for n in (first, torch.ones_like(first))]
        self.state = to_device(self.state, head.device) + torch.cat([head, *table])

    def result(self, state: Tensor) -> dict[str, float]:
        """top1, top5 in per cent; cross_entropy in nats; `images` counted."""
        first, fifth, entropy = state[:3].tolist()
        n = state[3:].chunk(2)[1].sum().item()
        return {
            "top1": 100 * first / max(n, 1),
            "top5": 100 * fifth / max(n, 1),
            "cross_entropy": entropy / max(n, 1),
            "images": n,
        }

    def table(self, state: Tensor) -> dict[str, list[Any]]:
        """Per class: name, items, top-1 in per cent (None where the class has no item)."""
        hits, items = (part.tolist() for part in state[3:].chunk(2))
        top1 = [100 * h / n if n else None for h, n in zip(hits, items, strict=True)]
        return {"class": list(self.classes), "images": [int(n) for n in items], "top1": top1}


@tasks.register
def classification(classes: Sequence[str]) -> Task:
    """One class per image: top-1, top-5, per-class accuracy."""
    return Task(classes, Accuracy, dense=False)

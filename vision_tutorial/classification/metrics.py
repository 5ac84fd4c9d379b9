"""Metrics of classification: top-1, top-5, accuracy of each class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.registry import tasks
from ..core.task import Task, exact_sum, tally, to_device, wide

_NEVER = 2**62  # a rank
MATRIX = 200  # classes up to which the confusion matrix is counted


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
    """Top-1, top-5, per-class accuracy, plain cross-entropy and confusion matrix, as sums.

    state float64 (3 + 2C + C²,): top-1 hits, top-5 hits, cross-entropy; per class hits, then items;
    images by truth and prediction, where there are not too many classes for that.
    """

    headline = "top1"
    higher_is_better = True

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.pairs = len(classes) ** 2 if len(classes) <= MATRIX else 0
        self.state = torch.zeros(3 + 2 * len(classes) + self.pairs, dtype=torch.float64)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. output (B, C) logits; target ids (B,)."""
        output, rank = output.float(), ranks(output.float(), target)
        first, fifth = rank < 1, rank < 5
        entropy = exact_sum(F.cross_entropy(output, target, reduction="none"))
        head = torch.stack([wide(first.sum()), wide(fifth.sum()), entropy])
        ones, classes = torch.ones_like(first), len(self.classes)
        table = [tally(n, target, classes) for n in (first, ones)]
        if self.pairs:  # of several that are equally likely the first one, as in `ranks`
            said = output.sort(dim=1, descending=True, stable=True).indices[:, 0]
            table.append(tally(ones, target * classes + said, self.pairs))
        self.state = to_device(self.state, head.device) + torch.cat([head, *table])

    def result(self, state: Tensor) -> dict[str, float]:
        """top1, top5 in per cent; cross_entropy in nats; `images` counted."""
        first, fifth, entropy = state[:3].tolist()
        n = self._of_classes(state)[1].sum().item()
        return {
            "top1": 100 * first / max(n, 1),
            "top5": 100 * fifth / max(n, 1),
            "cross_entropy": entropy / max(n, 1),
            "images": n,
        }

    def table(self, state: Tensor) -> dict[str, list[Any]]:
        """Per class: name, items, top-1 in per cent (None where the class has no item), and how
        many of its images were given each class."""
        hits, items = (part.tolist() for part in self._of_classes(state))
        top1 = [100 * h / n if n else None for h, n in zip(hits, items, strict=True)]
        table = {"class": list(self.classes), "images": [int(n) for n in items], "top1": top1}
        if self.pairs:
            matrix = state[-self.pairs :].long().view(len(items), len(items))
            table["confusion"] = matrix.tolist()
        return table

    def _of_classes(self, state: Tensor) -> Sequence[Tensor]:
        return state[3 : 3 + 2 * len(self.classes)].chunk(2)


@tasks.register
def classification(classes: Sequence[str]) -> Task:
    """One class per image: top-1, top-5, per-class accuracy."""
    return Task(classes, Accuracy, dense=False)

"""Metrics as sums, so that they are exact whatever the split over batches and processes.

Counts are whole numbers. Real-valued sums (a loss) are kept in fixed point, 2^-24 a step: float64
adds multiples of 2^-24 without rounding up to 2^29, so the order of addition cannot matter.
"""

import torch
from torch import Tensor

QUANTUM = 2.0**-24
NEVER = 2**62  # a rank


def wide(values: Tensor) -> Tensor:
    """float64, on the device where it has it (a Mac's GPU has not)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def exact_sum(values: Tensor) -> Tensor:
    """The sum of `values` (any shape) as a float64 scalar that is the same in any order."""
    steps = (wide(values.detach()) / QUANTUM).round()
    return steps.sum() * QUANTUM


def ranks(logits: Tensor, target: Tensor) -> Tensor:
    """How many classes of `logits` (B, C) come before each of `target` (B,); int64 (B,).

    A tie counts for the lower class id, as a stable sort would have it, on every device. A logit
    that is not finite is never a hit, and so comes after any number of classes.
    """
    own = logits.gather(1, target[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < target[:, None]))
    return torch.where(torch.isfinite(own[:, 0]), ahead.sum(1), NEVER)


def topk_hits(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """Which of `target` (B,) are among the k largest of `logits` (B, C); bool (B,)."""
    return ranks(logits, target) < k


def tally(values: Tensor, classes: Tensor, count: int) -> Tensor:
    """The sum of `values` (N,) for each class id below `count`; float64 (count,).

    Unlike bincount it does not ask the device how many classes there are, and wait.
    """
    values = wide(values)
    sums = torch.zeros(count, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, classes.to(values.device), values)

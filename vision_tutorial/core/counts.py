"""Metrics as sums, so that they are exact whatever the split over batches and processes.

Counts are whole numbers. Real-valued sums (a loss) are kept in fixed point, 2^-24 a step: float64
adds multiples of 2^-24 without rounding up to 2^29, so the order of addition cannot matter.
"""

import torch
from torch import Tensor

QUANTUM = 2.0**-24


def wide(values: Tensor) -> Tensor:
    """float64, on the device where it has it (a Mac's GPU has not)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def exact_sum(values: Tensor) -> Tensor:
    """The sum of `values` (any shape) as a float64 scalar that is the same in any order."""
    steps = (wide(values.detach()) / QUANTUM).round()
    return steps.sum() * QUANTUM


def topk_hits(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """How many of `target` (B,) are among the k largest of `logits` (B, C); per sample, bool (B,).

    A tie counts for the lower class id, as a stable sort would have it, on every device.
    """
    own = logits.gather(1, target[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < target[:, None]))
    return (ahead.sum(1) < k) & torch.isfinite(own[:, 0])

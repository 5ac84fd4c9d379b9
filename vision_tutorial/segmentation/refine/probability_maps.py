"""What all refiners take: a class map of probabilities, checked once."""

import torch
from torch import Tensor

from ...core.errors import UserError


def checked(probabilities: Tensor) -> Tensor:
    """Probabilities (C, H, W), or an array of them, as float32; UserError if they are none."""
    found = torch.as_tensor(probabilities).detach()
    if found.ndim != 3 or not found.numel() or not found.is_floating_point():
        raise UserError(
            f"given {found.dtype} of shape {tuple(found.shape)}; probabilities (C, H, W) of one "
            "image are expected."
        )
    low, high = found.min().item(), found.max().item()
    if not (0 <= low and high <= 1.001):  # not so for NaN either; sums of halves may exceed 1
        raise UserError(
            f"given values from {low:.4g} to {high:.4g}; probabilities lie between 0 and 1. "
            "Take the softmax of logits first."
        )
    return found.float()

"""What every loss holds to, so that one registry serves both tracks.

logits (B, C, *S) with any number of spatial axes, none for classification; target class ids (B, *S)
or class map (B, C, *S). Positions that `core.task` calls ignored are dropped before everything,
even where their logits are not finite; means are over the others. With none left the loss is zero
and so is its gradient. Half precision is computed in float32, inside autocast or out of it.
UserError where shapes or options do not fit.
"""

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.task import is_map, valid


def counted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, target, keep): at least float32, and harmless wherever `keep` (B, *S) is False.

    There logits are 0 (so nothing flows back, and no NaN survives), ids are 0 and maps are 0.
    Masking instead of selecting spares the GPU a wait for the number of positions.
    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S). UserError if these do not fit.
    """
    fit(logits, target)
    keep = valid(target)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype) if is_map(target) else target.where(keep, 0)
    return logits.where(keep.unsqueeze(1), 0), target, keep


def fit(logits: Tensor, target: Tensor) -> None:
    """UserError unless target is ids (B, *S) or a class map (B, C, *S) for logits (B, C, *S)."""
    ids = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != (tuple(logits.shape) if is_map(target) else ids):
        kind = "a class map" if is_map(target) else "class ids"
        raise UserError(
            f"{kind} of shape {tuple(target.shape)} for logits of shape {tuple(logits.shape)}; "
            f"class ids are {ids} here, a class map is {tuple(logits.shape)}."
        )


def within(
    loss: str, option: str, value: float, high: float = float("inf"), low: float = 0.0
) -> None:
    """UserError unless `value`, which `option` of `loss` was given, is from `low` to `high`."""
    if not low <= value <= high:
        raise UserError(
            f"{loss}: {option} is {value}; a number from {low:g} to {high:g} is expected."
        )

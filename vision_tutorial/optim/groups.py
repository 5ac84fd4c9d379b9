"""Parameter groups with timm's meaning."""

from fnmatch import fnmatch
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn

from ..core.errors import UserError


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_decay_1d: bool = True,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters, split by who is decayed; by layer too if `layer_decay` is given.

    Spared are biases and other 1-D parameters, and what `model.no_weight_decay()` names. With
    layer_decay d, layer i of n has lr_scale d^(n−1−i) (BEiT, Bao et al. 2021), which the step
    heeds. Call it before the model is wrapped. UserError: nothing to train, or no layers known.
    """
    spared = set(getattr(model, "no_weight_decay", set)())
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{type(model).__name__} has no trainable parameter; unfreeze some.")
    if layer_decay is None:
        return _by_decay(model, weight_decay, no_decay_1d, spared)
    groups = param_groups_layer_decay(
        model,
        weight_decay=weight_decay,
        no_weight_decay_list=spared,
        weight_decay_exclude_1d=no_decay_1d,
        layer_decay=layer_decay,
    )
    if layer_decay != 1 and all(group["lr_scale"] == 1 for group in groups):
        raise UserError(
            f"layer_decay {layer_decay} has no effect: {type(model).__name__} does not tell its "
            "layers apart (timm's group_matcher does); remove layer_decay."
        )
    return groups


def _by_decay(
    model: nn.Module, weight_decay: float, no_decay_1d: bool, spared: set[str]
) -> list[dict[str, Any]]:
    free, decayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = no_decay_1d and (parameter.ndim <= 1 or name.endswith(".bias"))
            named = any(fnmatch(name, pattern) for pattern in spared)
            (free if flat or named or not weight_decay else decayed).append(parameter)
    groups = [
        {"params": free, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]

"""What is done to the gradients before the optimizer steps."""

from collections.abc import Callable

import torch
from torch import nn

from ..recipe.fields import Clip


def clipping(clip: Clip | None) -> Callable[[nn.Module, torch.Tensor], None]:
    """What is done to the gradients, of known norm, before the step; nothing without `clip`."""
    if clip is None:
        return lambda network, norm: None
    if clip.norm is not None:
        known = nn.utils.clip_grads_with_norm_
        return lambda network, norm: known(network.parameters(), clip.norm, norm)
    if clip.value is not None:
        return lambda network, norm: nn.utils.clip_grad_value_(network.parameters(), clip.value)
    from timm.utils.agc import adaptive_clip_grad

    def clip_all_but_the_head(network: nn.Module, norm: torch.Tensor) -> None:
        """As in the paper and in timm."""
        known = hasattr(network, "get_classifier")
        head = {id(p) for p in network.get_classifier().parameters()} if known else set()
        adaptive_clip_grad([p for p in network.parameters() if id(p) not in head], clip.agc)

    return clip_all_but_the_head

"""What a model costs: parameters, and multiply-accumulates (MACs) of one image's forward pass."""

import copy
from itertools import chain

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def cost(model: nn.Module, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(parameters, MACs) of `model` for one RGB image of `image_size` pixels, a side or (H, W).

    Counted by torch's own FlopCounterMode in evaluation mode: convolutions, matrix products and
    attention; norms, activations and pooling are free, as in every paper's table. Nothing is
    computed and no weight is copied: the count runs on a weightless copy on the meta device.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weightless = _weightless(model).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    image = torch.zeros(1, 3, height, width, device="meta", dtype=dtype)
    with FlopCounterMode(display=False) as counter:
        weightless(image)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() // 2  # one MAC is a multiplication and an addition


def _weightless(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters and buffers have shapes but no memory."""
    tensors = chain(model.parameters(), model.buffers())
    # deepcopy takes what its memo holds for the copy, so it never touches the weights
    return copy.deepcopy(model, {id(t): _shape_only(t) for t in tensors})


def _shape_only(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty

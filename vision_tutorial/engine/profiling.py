"""What a model costs (parameters, multiply-accumulates), and what takes a step's time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

SHOWN = 10


@contextmanager
def profiled(enabled: bool) -> Iterator[list[str]]:
    """Lines that name the operations which took longest within it; filled when it ends."""
    lines: list[str] = []
    if not enabled:
        yield lines
        return
    watched = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        watched.append(ProfilerActivity.CUDA)
    with profile(activities=watched) as found:
        yield lines
    lines += _table(found.key_averages())


def _table(events: Any) -> list[str]:
    on_gpu = any(event.self_device_time_total for event in events)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    ranked = sorted(events, key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    return [
        f"{100 * getattr(event, key) / total:5.1f} % {getattr(event, key) / 1e3:9.1f} ms "
        f"{event.count:6d} x  {event.key[:48]}"
        for event in ranked[:SHOWN]
    ]


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

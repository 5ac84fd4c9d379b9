"""What a model costs (parameters, multiply-accumulates), and what takes a step's time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

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
    on_gpu = torch.cuda.is_available()
    watched = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=watched) as found:
        yield lines
    events = found.key_averages()
    on_gpu = any(event.self_device_time_total for event in events)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(event, key) for event in events) or 1
    for event in sorted(events, key=lambda event: -getattr(event, key))[:SHOWN]:
        took = getattr(event, key)
        words = f"{100 * took / total:5.1f} % {took / 1e3:9.1f} ms {event.count:6d} x"
        lines.append(f"{words}  {event.key[:48]}")


def cost(model: nn.Module, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(parameters, MACs) of `model` for one RGB image of `image_size` pixels, a side or (H, W).

    Counted by torch's own FlopCounterMode in evaluation mode: convolutions, matrix products and
    attention; norms, activations and pooling are free, as in every paper's table. Nothing is
    computed: the count runs on a copy on the meta device.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weightless = copy.deepcopy(model).to("meta").eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    image = torch.zeros(1, 3, height, width, device="meta", dtype=dtype)
    with FlopCounterMode(display=False) as counter:
        weightless(image)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() // 2  # one MAC is a multiplication and an addition

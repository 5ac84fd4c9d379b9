"""What a model and its steps cost: parameters, multiply-accumulates, time, memory."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ..core.errors import MemoryExhausted, counted
from .loop import Plan
from .step import TrainingState, forward_backward

SHOWN = 10
DEVICES = ("cuda",)  # which say when their memory is full


@contextmanager
def profiled(enabled: bool) -> Iterator[list[str]]:
    """Lines that name the operations which took longest within it; filled when it ends."""
    lines: list[str] = []
    if not enabled:
        yield lines
        return
    watched = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
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
    rows = layers(model, image_size)
    return sum(row.parameters for row in rows), sum(row.macs for row in rows)


class Layer(NamedTuple):
    """A module of a network, with what is its own and not that of modules in it.

    shape: of its (first) output for one image, without the batch; None where it is not called.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    macs: int


def layers(model: nn.Module, image_size: int | tuple[int, int]) -> list[Layer]:
    """The modules of `model` that hold no others, or have parameters or MACs of their own, in the
    order in which they are called. Each parameter and each MAC is counted once, so their sums are
    `cost`, which says what is counted."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weightless = copy.deepcopy(model).to("meta").eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    image = torch.zeros(1, 3, height, width, device="meta", dtype=dtype)
    shapes: dict[nn.Module, Any] = {}  # in the order of the calls
    flops: Counter[nn.Module] = Counter()
    stack: list[tuple[int, int]] = []  # of the modules under way: flops before, flops of inner ones

    def enter(module: nn.Module, given: Any) -> None:
        shapes.setdefault(module, None)
        stack.append((counter.get_total_flops(), 0))

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        before, inner = stack.pop()
        spent = counter.get_total_flops() - before
        flops[module] += spent - inner
        if stack:
            stack[-1] = (stack[-1][0], stack[-1][1] + spent)
        while isinstance(output, tuple | list | dict) and output:
            output = next(iter(output.values() if isinstance(output, dict) else output))
        if shapes[module] is None and isinstance(output, torch.Tensor):
            shapes[module] = tuple(output.shape[1:])

    for module in weightless.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with FlopCounterMode(display=False) as counter:
        weightless(image)
    names = {module: name for name, module in weightless.named_modules()}
    rows, seen, originals = [], set[int](), dict(model.named_modules())
    for module in [*shapes, *(module for module in names if module not in shapes)]:
        mine = originals[names[module]].parameters(recurse=False)  # a copy's are tied no more
        own = [p for p in mine if id(p) not in seen]
        seen.update(map(id, own))
        size = sum(p.numel() for p in own)
        macs = flops[module] // 2  # one MAC is a multiplication and an addition
        leaf = not any(module.children()) and module in shapes and type(module) is not nn.Identity
        if size or macs or leaf:
            kind = type(module).__name__
            rows.append(Layer(names[module], kind, shapes.get(module), size, macs))
    return rows


def fit_memory(training: TrainingState, plan: Plan) -> str | None:
    """On a GPU, halve the micro-batch until all processes can hold the first one; what to say if it
    was.

    Takes one forward and backward pass of it, outside DDP. MemoryExhausted gives the numbers where
    two images are too much.
    """
    distributed = training.distributed
    if distributed.device.type not in DEVICES or training.shards:
        return None
    size, asked = plan.batch_size // distributed.world, training.accumulation_steps
    steps, ddp_model = asked, training.ddp_model
    training.ddp_model = training.model
    training.snapshot()
    try:
        while distributed.any(not _fits(training, plan, steps)):
            if size % (4 * steps):  # halves must stay even, for mixing and for BatchNorm
                raise MemoryExhausted(
                    f"a micro-batch of {size // steps} does not fit the memory of "
                    f"{distributed.device} and cannot be halved. Use a smaller model, smaller "
                    "images, precision: bf16, or a batch_size with more factors of two."
                )
            steps *= 2
    finally:
        training.ddp_model = ddp_model
        training.restore()
    training.accumulation_steps = steps
    if steps == asked:
        return None
    return (
        f"out of memory at {counted(size // asked, 'image')} a pass; taking {size // steps}, "
        f"{steps} times a step, at the same global batch."
    )


def _fits(training: TrainingState, plan: Plan, steps: int) -> bool:
    try:
        (batches,) = plan.batches(0, 1, steps)
        forward_backward(training, batches[0], step=0, index=0, share=1, sums={}, count=1)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()

"""On a GPU: the largest micro-batch that fits the memory, tried and not guessed."""

import torch

from ..core.errors import MemoryExhausted
from .loop import Plan
from .step import TrainingState, forward_backward

DEVICES = ("cuda",)  # which say when their memory is full


def fit_memory(training: TrainingState, plan: Plan) -> str | None:
    """Halve the micro-batch until all processes can hold the first one; what to say if it was.

    Takes one forward and backward pass of it, outside DDP. MemoryExhausted gives the numbers where
    two images are too much.
    """
    distributed = training.distributed
    if distributed.device.type not in DEVICES or training.shards:
        return None
    size, asked = plan.batch_size // distributed.world, training.accumulation_steps
    steps, ddp_model = asked, training.ddp_model
    training.ddp_model = training.model
    training.buffers.snapshot()
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
        training.buffers.restore()
    training.accumulation_steps = steps
    if steps == asked:
        return None
    return (
        f"out of memory at {size // asked} images a pass; taking {size // steps}, "
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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

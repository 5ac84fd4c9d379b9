"""One optimizer step, plain (DDP) or strict (bit-equal for every number of processes)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.counts import wide
from ..core.errors import MemoryExhausted, NonFiniteError
from ..core.randomness import address
from ..core.task import Batch, Task
from .distributed import Distributed
from .ema import Ema, NoEma

PATIENCE = 3  # non-finite steps in a row that are skipped before giving up
MIN_SCALE = 1.0  # below this loss scale, an overflow is no longer fp16's searching


@dataclass
class Learner:
    """What learns. `model` is the bare network, `replica` what is called (DDP or itself)."""

    model: nn.Module
    replica: nn.Module
    task: Task
    criteria: dict[str, Callable]
    optimizer: torch.optim.Optimizer
    prepare: Callable[[Any, int], Batch]
    clip: Callable[[nn.Module], None]
    ema: Ema | NoEma
    decay: Callable[[int], float]  # of the ema, at a step counted from 1
    seed: int
    parts: int = 1  # micro-batches (or shards) a process takes a step
    shards: int | None = None  # strict: logical parts of the global batch
    skipped_in_row: int = 0
    kept_buffers: list[Tensor] = field(default_factory=list)

    def keep_buffers(self) -> None:
        """Remember the running statistics of before a step."""
        buffers = list(self.model.buffers())
        if not self.kept_buffers:
            self.kept_buffers = [b.clone() for b in buffers]
        elif buffers:
            torch._foreach_copy_(self.kept_buffers, buffers)

    @torch.no_grad()
    def put_back_buffers(self) -> None:
        """Undo what forward passes did to the running statistics."""
        for buffer, kept in zip(self.model.buffers(), self.kept_buffers, strict=True):
            buffer.copy_(kept)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that learn."""
        return [p for p in self.model.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Outcome:
    """Of one step, over all processes: sums of loss x items by name, items, wish to stop."""

    losses: dict[str, float]
    items: int
    skipped: bool
    stop: bool


def take_step(
    learner: Learner, distributed: Distributed, raw: Any, step: int, stop: bool
) -> Outcome:
    """Forward, backward, check, clip, step. NonFiniteError after PATIENCE bad steps in a row."""
    learner.optimizer.zero_grad(set_to_none=True)
    learner.keep_buffers()
    gradients = strict_gradients if learner.shards else plain_gradients
    terms = gradients(learner, distributed, raw, step)
    if not learner.shards:
        distributed.average_buffers(learner.model)
    scaler = distributed.scaler
    if scaler:
        scaler.unscale_(learner.optimizer)
    grads = [p.grad for p in learner.parameters if p.grad is not None]
    finite = math.isfinite(torch.nn.utils.get_total_norm(grads).item())
    outcome = gathered(terms, len(raw), finite, stop, distributed)
    if not outcome.skipped:
        learner.clip(learner.model)
        # some optimizers draw (kron): the same on all processes, whatever their dropout drew
        torch.manual_seed(address(learner.seed, step, "optimizer"))
        scaler.step(learner.optimizer) if scaler else learner.optimizer.step()
        learner.ema.update(learner.model, learner.decay(step + 1))
    else:
        learner.put_back_buffers()
    if scaler:
        scaler.update()
    count_skips(learner, outcome, scaler, step)
    return outcome


def plain_gradients(
    learner: Learner, distributed: Distributed, raw: Any, step: int
) -> dict[str, Tensor]:
    """Mean gradient over micro-batches and processes, by DDP. Returns mean losses by name."""
    first = distributed.rank * learner.parts
    sums: dict[str, Tensor] = {}
    for i, micro in enumerate(raw.parts(learner.parts)):
        last = i + 1 == learner.parts
        with distributed.unsynchronised(learner.replica, not last):
            terms = forward_backward(learner, distributed, micro, step, first + i, learner.parts)
        add_terms(sums, terms, learner.parts)
    return sums


def strict_gradients(
    learner: Learner, distributed: Distributed, raw: Any, step: int
) -> dict[str, Tensor]:
    """Mean gradient and mean buffers over logical shards, added in shard order on every process."""
    mine = learner.parts
    floats = [b for b in learner.model.buffers() if b.is_floating_point()]
    sums: dict[str, Tensor] = {}
    flats = []
    for i, shard in enumerate(raw.parts(mine)):
        learner.put_back_buffers()
        index = distributed.rank * mine + i
        terms = forward_backward(learner, distributed, shard, step, index, learner.shards)
        add_terms(sums, terms, mine)
        flats.append(torch.cat([t.flatten() for t in (*take_gradients(learner), *floats)]))
    whole = summed_in_order(flats, learner.shards, distributed)
    put_flat(whole, [p.grad for p in learner.parameters if p.grad is not None])
    count = sum(b.numel() for b in floats)
    put_flat(whole[len(whole) - count :] / learner.shards, floats)
    return sums


def forward_backward(
    learner: Learner, distributed: Distributed, micro: Any, step: int, index: int, share: int
) -> dict[str, Tensor]:
    """Adds the gradient of loss / share. Dropout's draws are addressed by (seed, step, part)."""
    torch.manual_seed(address(learner.seed, step, index, "model"))
    batch = learner.prepare(micro, step)
    total, terms = learner.task.loss(learner.replica, batch, learner.criteria)
    second = bool(getattr(learner.optimizer, "is_second_order", False))
    distributed.backward(total / share, create_graph=second)
    return {"loss": total.detach(), **{f"loss/{k}": v.detach() for k, v in terms.items()}}


def add_terms(sums: dict[str, Tensor], terms: dict[str, Tensor], parts: int) -> None:
    """Running means over parts."""
    for name, value in terms.items():
        sums[name] = sums.get(name, 0) + wide(value) / parts


def take_gradients(learner: Learner) -> Iterator[Tensor]:
    """Each parameter's gradient, zero where the loss did not reach it; then empties them."""
    for parameter in learner.parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        yield parameter.grad.clone()
        parameter.grad.zero_()


def summed_in_order(flats: Sequence[Tensor], shards: int, distributed: Distributed) -> Tensor:
    """Sum of all shards' vectors, first to last: the same additions on any number of processes."""
    total = torch.zeros_like(flats[0])
    mine = len(flats)
    for shard in range(shards):
        owner, slot = divmod(shard, mine)
        own = owner == distributed.rank
        total += distributed.spread(flats[slot] if own else torch.empty_like(total), owner)
    return total


def put_flat(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write consecutive pieces of `flat` into `tensors`."""
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def gathered(
    terms: dict[str, Tensor], n: int, finite: bool, stop: bool, distributed: Distributed
) -> Outcome:
    """One small sum over processes carries losses, count, trouble and the stop flag."""
    values = torch.stack([wide(v).cpu() for v in terms.values()])
    finite = finite and bool(torch.isfinite(values).all())
    head = torch.tensor([n, not finite, stop], dtype=torch.float64)
    items, bad, stops, *sums = distributed.sum(torch.cat([head, values * n])).tolist()
    losses = dict(zip(terms, sums, strict=True))
    return Outcome(losses, int(items), skipped=bad > 0, stop=stops > 0)


def count_skips(learner: Learner, outcome: Outcome, scaler: Any, step: int) -> None:
    """The non-finite policy: skip a few, then stop; never step on, save or resume such weights."""
    loss = outcome.losses["loss"] / max(outcome.items, 1)
    searching = scaler and math.isfinite(loss) and scaler.get_scale() > MIN_SCALE
    learner.skipped_in_row = learner.skipped_in_row + 1 if outcome.skipped and not searching else 0
    if learner.skipped_in_row > PATIENCE:
        raise NonFiniteError(
            f"step {step + 1}: loss {loss:g} or its gradient is not finite, {PATIENCE + 1} times "
            "in a row; the last checkpoint is good. Lower the lr, add warm-up, clip, or use fp32."
        )


def fitting_parts(
    learner: Learner, distributed: Distributed, raw: Any, parts: int
) -> tuple[int, str | None]:
    """The fewest micro-batches that fit the memory, the same on all processes: tried, not guessed.

    Takes one forward and backward pass of the first batch outside DDP, halving until every process
    says it fits. MemoryExhausted gives the numbers where two pictures are too much.
    """
    asked, replica = parts, learner.replica
    learner.replica = learner.model
    learner.keep_buffers()
    try:
        while distributed.any(not fits(learner, distributed, raw.parts(parts)[0])):
            if len(raw) % (4 * parts):  # halves must stay even, for mixing and for BatchNorm
                raise MemoryExhausted(
                    f"a micro-batch of {len(raw) // parts} does not fit the memory of "
                    f"{distributed.device} and cannot be halved. Use a smaller model, smaller "
                    "pictures, precision: bf16, or a batch_size with more factors of two."
                )
            parts *= 2
    finally:
        learner.replica = replica
        learner.put_back_buffers()
        learner.optimizer.zero_grad(set_to_none=True)
    if parts == asked:
        return parts, None
    return parts, (
        f"out of memory at {len(raw) // asked} pictures a pass; taking {len(raw) // parts}, "
        f"{parts} times a step, at the same global batch."
    )


def fits(learner: Learner, distributed: Distributed, micro: Any) -> bool:
    """Whether one forward and backward pass of `micro` finds the memory it needs."""
    try:
        forward_backward(learner, distributed, micro, 0, 0, 1)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

"""One optimizer step, plain (DDP) or strict (bit-equal for every number of processes)."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..core.counts import wide
from ..core.errors import MemoryExhausted, NonFiniteError
from ..core.randomness import address
from ..core.task import Batch, Task
from .buffers import Buffers, flat, put
from .distributed import Distributed
from .ema import Ema

PATIENCE = 3  # non-finite steps in a row that are skipped before giving up
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
MIN_SCALE = 1.0  # with no more than this loss scale, an overflow is not fp16's searching


@dataclass
class TrainingState:
    """What learns. `model` is the bare network, `replica` what is called (DDP or itself)."""

    model: nn.Module
    replica: nn.Module
    task: Task
    criteria: dict[str, Callable]
    optimizer: torch.optim.Optimizer
    clip: Callable[[nn.Module, Tensor], None]  # given the gradients' norm
    ema: Ema
    decay: Callable[[int], float]  # of the ema, at a step counted from 1
    seed: int
    parts: int = 1  # micro-batches (or shards) a process takes a step
    shards: int | None = None  # strict: logical parts of the global batch
    lag: int = 0  # steps that are under way before the result of one is read; see `lag_of`
    stepped: bool = False  # whether the optimizer has its state
    skipped_in_row: int = 0

    @cached_property
    def buffers(self) -> Buffers:
        """The running statistics."""
        return Buffers(self.model, self.blends)

    @property
    def blends(self) -> nn.ModuleDict:
        """The criteria that may have a state, which is part of the training's."""
        return nn.ModuleDict({k: c for k, c in self.criteria.items() if isinstance(c, nn.Module)})

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Those that learn."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def gradients(self) -> list[Tensor]:
        """Of those that the loss reached."""
        return [p.grad for p in self.parameters if p.grad is not None]


@dataclass(frozen=True)
class Outcome:
    """Of one step, over all processes: sums of loss x items by name, items, wish to stop."""

    step: int
    losses: dict[str, float]
    items: int
    scale: float  # of the loss; 0 where it is not scaled
    skipped: bool
    stop: bool


class Report:
    """What all processes say of one step, on its way from the device; reading it waits for it."""

    def __init__(self, step: int, names: Sequence[str], values: Tensor):
        """values: items, processes in trouble, those that want to stop, scale, losses (`names`)."""
        self.step, self.names = step, names
        self.bad = values[1] > 0
        self.values = values.to("cpu", non_blocking=values.is_cuda)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> Outcome:
        """The report, once it has arrived."""
        if self.arrived:
            self.arrived.synchronize()
        items, bad, stops, scale, *sums = self.values.tolist()
        losses = dict(zip(self.names, sums, strict=True))
        return Outcome(self.step, losses, int(items), scale, skipped=bad > 0, stop=stops > 0)


def take_step(
    learner: TrainingState,
    distributed: Distributed,
    batches: Sequence[Batch],
    step: int,
    stop: bool,
) -> Report:
    """Forward, backward, check, clip, step: unless a loss or gradient is not finite anywhere.

    batches: the process's micro-batches (or shards) of the step.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    for criterion in learner.blends.values():
        criterion.begin_step()
    learner.buffers.keep()
    gradients = strict_gradients if learner.shards else plain_gradients
    terms = gradients(learner, distributed, batches, step)
    if distributed.scaler:
        distributed.scaler.unscale_(learner.optimizer)
    norm = nn.utils.get_total_norm(learner.gradients)
    report = reported(learner, distributed, terms, norm, (step, sum(map(len, batches)), stop))
    if learner.lag and learner.stepped:
        update_unless(report.bad, learner, distributed, norm, step)
    elif report.read().skipped:
        learner.buffers.put_back()
    else:
        update(learner, distributed, norm, step)
        learner.stepped = True
    learner.ema.update(learner.model, learner.decay(step + 1))
    if distributed.scaler:
        distributed.scaler.update()
    return report


def update(learner: TrainingState, distributed: Distributed, norm: Tensor, step: int) -> None:
    """Clip, and let the optimizer step."""
    learner.clip(learner.model, norm)
    # some optimizers draw (kron): the same on all processes, whatever their dropout drew
    distributed.seed(address(learner.seed, step, "optimizer"))
    learner.optimizer.step()  # not the scaler's: it would wait for what `report` says already


def update_unless(
    bad: Tensor, learner: TrainingState, distributed: Distributed, norm: Tensor, step: int
) -> None:
    """`update`, left out by the device itself where `bad` is true: nobody waits for the answer."""
    learner.buffers.put_back(bad)
    learner.optimizer.found_inf = bad.float()  # as GradScaler tells it to fused optimizers
    update(learner, distributed, norm, step)
    learner.optimizer.found_inf = None


def plain_gradients(
    learner: TrainingState, distributed: Distributed, batches: Sequence[Batch], step: int
) -> dict[str, Tensor]:
    """Mean gradient over micro-batches and processes, by DDP. Returns mean losses by name."""
    count = len(batches)
    first = distributed.rank * count
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        last = i + 1 == count
        with distributed.unsynchronised(learner.replica, not last):
            terms = forward_backward(learner, distributed, batch, step, first + i, count)
        add_terms(sums, terms, count)
    return sums


def strict_gradients(
    learner: TrainingState, distributed: Distributed, batches: Sequence[Batch], step: int
) -> dict[str, Tensor]:
    """Mean gradient and mean buffers over logical shards, added in shard order on every process."""
    mine = len(batches)
    sums: dict[str, Tensor] = {}
    flats = []
    for i, shard in enumerate(batches):
        learner.buffers.put_back()
        index = distributed.rank * mine + i
        terms = forward_backward(learner, distributed, shard, step, index, learner.shards)
        add_terms(sums, terms, mine)
        flats.append(flat([*take_gradients(learner), *learner.buffers.floats()]))
    whole = summed_in_order(flats, learner.shards, distributed)
    grads, floats = learner.gradients, learner.buffers.floats()
    count = sum(grad.numel() for grad in grads)
    put(whole[:count], grads)
    put(whole[count:] / learner.shards, floats)
    return sums


def forward_backward(
    learner: TrainingState,
    distributed: Distributed,
    batch: Batch,
    step: int,
    index: int,
    share: int,
) -> dict[str, Tensor]:
    """Adds the gradient of loss / share. Dropout's draws are addressed by (seed, step, part)."""
    distributed.seed(address(learner.seed, step, index, "model"))
    total, terms = learner.task.loss(learner.replica, batch, learner.criteria)
    second = bool(getattr(learner.optimizer, "is_second_order", False))
    distributed.backward(total / share, create_graph=second)
    return {"loss": total.detach(), **{f"loss/{k}": v.detach() for k, v in terms.items()}}


def add_terms(sums: dict[str, Tensor], terms: dict[str, Tensor], parts: int) -> None:
    """Running means over parts."""
    for name, value in terms.items():
        sums[name] = sums.get(name, 0) + wide(value) / parts


def take_gradients(learner: TrainingState) -> Iterator[Tensor]:
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


def reported(
    learner: TrainingState,
    distributed: Distributed,
    terms: dict[str, Tensor],
    norm: Tensor,
    said: tuple[int, int, bool],
) -> Report:
    """One sum over processes carries losses, items, trouble, the stop flag, running statistics.

    said: the step, this process's items, whether it wants to stop.
    """
    step, n, stop = said
    values = torch.stack([wide(value) for value in terms.values()])
    bad = ~(values.isfinite().all() & wide(norm).isfinite())
    # filled there: a number that comes from the host would make the device wait
    head = [values.new_full((), n), bad.double(), values.new_full((), stop)]
    share = values.new_full((), 1 / distributed.world)
    head.append(distributed.scaler.scale(share) if distributed.scaler else 0 * share)
    mine = torch.cat([torch.stack(head), values * n])
    floats = learner.buffers.floats() if distributed.world > 1 and not learner.shards else []
    if not floats:
        return Report(step, list(terms), distributed.sum(mine))
    whole = distributed.sum(torch.cat([mine, *(wide(b).flatten() for b in floats)]))
    put(whole[len(mine) :] / distributed.world, floats)
    return Report(step, list(terms), whole[: len(mine)])


def settle(learner: TrainingState, report: Report) -> Outcome:
    """Read a report, and hold to the non-finite policy: skip a few, then stop.

    Such weights are never stepped to, saved or resumed. NonFiniteError after PATIENCE bad steps in
    a row.
    """
    outcome = report.read()
    loss = outcome.losses["loss"] / max(outcome.items, 1)
    searching = math.isfinite(loss) and outcome.scale > MIN_SCALE
    bad = outcome.skipped and not searching
    learner.skipped_in_row = learner.skipped_in_row + 1 if bad else 0
    if learner.skipped_in_row > PATIENCE:
        raise NonFiniteError(
            f"step {outcome.step + 1}: loss {loss:g} or its gradient is not finite, "
            f"{PATIENCE + 1} times in a row; the last checkpoint is good. Lower the lr, add "
            "warm-up, clip, or use fp32."
        )
    return outcome


class Reader:
    """Reads the reports of steps in order; the newest `lag` of them later."""

    def __init__(self, learner: TrainingState, count: Callable[[Outcome], None]):
        self.learner, self.count = learner, count
        self.reports: deque[Report] = deque()
        self.stop_at = math.inf  # steps
        self.loss: float | None = None  # mean of the last step that was read

    def expect(self, report: Report) -> None:
        """A step is under way."""
        self.reports.append(report)

    def read(self, behind: int) -> None:
        """Read, and count, all but the newest `behind` reports."""
        while len(self.reports) > behind:
            outcome = settle(self.learner, self.reports.popleft())
            self.count(outcome)
            self.loss = outcome.losses["loss"] / outcome.items
            if outcome.stop:
                self.stop_at = min(self.stop_at, outcome.step + 1 + self.learner.lag)

    def stops(self, steps: int, all_read: bool) -> bool:
        """Whether to stop after `steps` steps: the same answer on all processes.

        Any of them may have read ahead to save, so a wish counts once `lag` is over, or where all
        of them have read all.
        """
        return self.stop_at <= steps or (all_read and self.stop_at < math.inf)


def lag_of(learner: TrainingState, distributed: Distributed) -> int:
    """How many steps may be under way before the result of one is read.

    One, where the device itself can leave out a bad step: the host then never makes it wait. The
    CPU has nothing to wait for.
    """
    fused = isinstance(learner.optimizer, FUSED) and all(
        group["fused"] for group in learner.optimizer.param_groups
    )
    return int(distributed.device.type == "cuda" and fused and not learner.shards)


def fitting_parts(
    learner: TrainingState,
    distributed: Distributed,
    prepare: Callable[[int], Sequence[Batch]],
    size: int,
    parts: int,
) -> tuple[int, str | None]:
    """The fewest micro-batches that fit the memory, the same on all processes: tried, not guessed.

    Takes one forward and backward pass of the first of `prepare(parts)`, a step of `size` images,
    outside DDP, halving until every process says it fits. MemoryExhausted gives the numbers where
    two images are too much.
    """
    asked, replica = parts, learner.replica
    learner.replica = learner.model
    learner.buffers.keep()
    try:
        while distributed.any(not fits(learner, distributed, prepare, parts)):
            if size % (4 * parts):  # halves must stay even, for mixing and for BatchNorm
                raise MemoryExhausted(
                    f"a micro-batch of {size // parts} does not fit the memory of "
                    f"{distributed.device} and cannot be halved. Use a smaller model, smaller "
                    "images, precision: bf16, or a batch_size with more factors of two."
                )
            parts *= 2
    finally:
        learner.replica = replica
        learner.buffers.put_back()
        learner.optimizer.zero_grad(set_to_none=True)
    if parts == asked:
        return parts, None
    return parts, (
        f"out of memory at {size // asked} images a pass; taking {size // parts}, "
        f"{parts} times a step, at the same global batch."
    )


def fits(
    learner: TrainingState,
    distributed: Distributed,
    prepare: Callable[[int], Sequence[Batch]],
    parts: int,
) -> bool:
    """Whether one forward and backward pass of one of `parts` finds the memory it needs."""
    try:
        forward_backward(learner, distributed, prepare(parts)[0], 0, 0, 1)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

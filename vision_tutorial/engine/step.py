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
    """What learns. `model` is the bare network, `ddp_model` what is called (DDP or itself)."""

    model: nn.Module
    ddp_model: nn.Module
    task: Task
    criteria: dict[str, Callable]
    optimizer: torch.optim.Optimizer
    clip: Callable[[nn.Module, Tensor], None]  # given the gradients' norm
    ema: Ema
    decay: Callable[[int], float]  # of the ema, at a step counted from 1
    seed: int
    accumulation_steps: int = 1  # micro-batches (or shards) a process takes a step
    shards: int | None = None  # strict: logical parts of the global batch
    async_steps: int = 0  # that are under way before a result is read; see `async_steps_of`
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
class StepResult:
    """Of one step, over all processes: sums of loss x items by name, items, wish to stop."""

    step: int
    losses: dict[str, float]
    items: int
    scale: float  # of the loss; 0 where it is not scaled
    skipped: bool
    stop: bool


class PendingStep:
    """What all processes say of one step, on its way from the device; reading it waits for it."""

    def __init__(self, step: int, names: Sequence[str], values: Tensor):
        """values: items, processes in trouble, those that want to stop, scale, losses (`names`)."""
        self.step, self.names = step, names
        self.bad = values[1] > 0
        self.values = values.to("cpu", non_blocking=values.is_cuda)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> StepResult:
        """The report, once it has arrived."""
        if self.arrived:
            self.arrived.synchronize()
        items, bad, stops, scale, *sums = self.values.tolist()
        losses = dict(zip(self.names, sums, strict=True))
        return StepResult(self.step, losses, int(items), scale, skipped=bad > 0, stop=stops > 0)


def take_step(
    training: TrainingState,
    distributed: Distributed,
    batches: Sequence[Batch],
    step: int,
    stop: bool,
) -> PendingStep:
    """Forward, backward, check, clip, step: unless a loss or gradient is not finite anywhere.

    batches: the process's micro-batches (or shards) of the step.
    """
    training.optimizer.zero_grad(set_to_none=True)
    for criterion in training.blends.values():
        criterion.begin_step()
    training.buffers.snapshot()
    gradients = _strict_gradients if training.shards else _plain_gradients
    terms = gradients(training, distributed, batches, step)
    if distributed.scaler:
        distributed.scaler.unscale_(training.optimizer)
    norm = nn.utils.get_total_norm(training.gradients)
    report = _report_step(training, distributed, terms, norm, (step, sum(map(len, batches)), stop))
    if training.async_steps and training.stepped:
        # the device itself leaves out a bad step: nobody waits for the answer
        training.buffers.restore(report.bad)
        training.optimizer.found_inf = report.bad.float()  # as GradScaler tells fused optimizers
        _update(training, distributed, norm, step)
        training.optimizer.found_inf = None
    elif report.read().skipped:
        training.buffers.restore()
    else:
        _update(training, distributed, norm, step)
        training.stepped = True
    training.ema.update(training.model, training.decay(step + 1))
    if distributed.scaler:
        distributed.scaler.update()
    return report


def _update(training: TrainingState, distributed: Distributed, norm: Tensor, step: int) -> None:
    training.clip(training.model, norm)
    # some optimizers draw (kron): the same on all processes, whatever their dropout drew
    distributed.seed(address(training.seed, step, "optimizer"))
    training.optimizer.step()  # not the scaler's: it would wait for what `report` says already


def _plain_gradients(
    training: TrainingState, distributed: Distributed, batches: Sequence[Batch], step: int
) -> dict[str, Tensor]:
    """Mean gradient over micro-batches and processes, by DDP. Returns mean losses by name."""
    count = len(batches)
    first = distributed.rank * count
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        last = i + 1 == count
        with distributed.unsynchronised(training.ddp_model, not last):
            terms = _forward_backward(training, distributed, batch, step, first + i, count)
        _add_terms(sums, terms, count)
    return sums


def _strict_gradients(
    training: TrainingState, distributed: Distributed, batches: Sequence[Batch], step: int
) -> dict[str, Tensor]:
    """Mean gradient and mean buffers over logical shards, added in shard order on every process."""
    mine = len(batches)
    sums: dict[str, Tensor] = {}
    flats = []
    for i, shard in enumerate(batches):
        training.buffers.restore()
        index = distributed.rank * mine + i
        terms = _forward_backward(training, distributed, shard, step, index, training.shards)
        _add_terms(sums, terms, mine)
        flats.append(flat([*_take_gradients(training), *training.buffers.floats()]))
    whole = _summed_in_order(flats, training.shards, distributed)
    grads, floats = training.gradients, training.buffers.floats()
    count = sum(grad.numel() for grad in grads)
    put(whole[:count], grads)
    put(whole[count:] / training.shards, floats)
    return sums


def _forward_backward(
    training: TrainingState,
    distributed: Distributed,
    batch: Batch,
    step: int,
    index: int,
    share: int,
) -> dict[str, Tensor]:
    """Adds the gradient of loss / share. Dropout's draws are addressed by (seed, step, part)."""
    distributed.seed(address(training.seed, step, index, "model"))
    total, terms = training.task.loss(training.ddp_model, batch, training.criteria)
    second = bool(getattr(training.optimizer, "is_second_order", False))
    distributed.backward(total / share, create_graph=second)
    return {"loss": total.detach(), **{f"loss/{k}": v.detach() for k, v in terms.items()}}


def _add_terms(sums: dict[str, Tensor], terms: dict[str, Tensor], count: int) -> None:
    for name, value in terms.items():
        sums[name] = sums.get(name, 0) + wide(value) / count


def _take_gradients(training: TrainingState) -> Iterator[Tensor]:
    """Each parameter's gradient, zero where the loss did not reach it; then empties them."""
    for parameter in training.parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        yield parameter.grad.clone()
        parameter.grad.zero_()


def _summed_in_order(flats: Sequence[Tensor], shards: int, distributed: Distributed) -> Tensor:
    """Sum of all shards' vectors, first to last: the same additions on any number of processes."""
    total = torch.zeros_like(flats[0])
    mine = len(flats)
    for shard in range(shards):
        owner, slot = divmod(shard, mine)
        own = owner == distributed.rank
        total += distributed.broadcast(flats[slot] if own else torch.empty_like(total), owner)
    return total


def _report_step(
    training: TrainingState,
    distributed: Distributed,
    terms: dict[str, Tensor],
    norm: Tensor,
    said: tuple[int, int, bool],
) -> PendingStep:
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
    floats = training.buffers.floats() if distributed.world > 1 and not training.shards else []
    if not floats:
        return PendingStep(step, list(terms), distributed.sum(mine))
    whole = distributed.sum(torch.cat([mine, *(wide(b).flatten() for b in floats)]))
    put(whole[len(mine) :] / distributed.world, floats)
    return PendingStep(step, list(terms), whole[: len(mine)])


def resolve(training: TrainingState, report: PendingStep) -> StepResult:
    """Read a report, and hold to the non-finite policy: skip a few, then stop.

    Such weights are never stepped to, saved or resumed. NonFiniteError after PATIENCE bad steps in
    a row.
    """
    result = report.read()
    loss = result.losses["loss"] / max(result.items, 1)
    searching = math.isfinite(loss) and result.scale > MIN_SCALE
    bad = result.skipped and not searching
    training.skipped_in_row = training.skipped_in_row + 1 if bad else 0
    if training.skipped_in_row > PATIENCE:
        raise NonFiniteError(
            f"step {result.step + 1}: loss {loss:g} or its gradient is not finite, "
            f"{PATIENCE + 1} times in a row; the last checkpoint is good. Lower the lr, add "
            "warm-up, clip, or use fp32."
        )
    return result


class StepQueue:
    """Reads the reports of steps in order; the newest `async_steps` of them later."""

    def __init__(self, training: TrainingState, count: Callable[[StepResult], None]):
        self.training, self.count = training, count
        self.reports: deque[PendingStep] = deque()
        self.stop_at = math.inf  # steps
        self.loss: float | None = None  # mean of the last step that was read

    def expect(self, report: PendingStep) -> None:
        """A step is under way."""
        self.reports.append(report)

    def read(self, behind: int) -> None:
        """Read, and count, all but the newest `behind` reports."""
        while len(self.reports) > behind:
            result = resolve(self.training, self.reports.popleft())
            self.count(result)
            self.loss = result.losses["loss"] / result.items
            if result.stop:
                self.stop_at = min(self.stop_at, result.step + 1 + self.training.async_steps)

    def stops(self, steps: int, all_read: bool) -> bool:
        """Whether to stop after `steps` steps: the same answer on all processes.

        Any of them may have read ahead to save, so a wish counts after `async_steps` more steps,
        or where all of them have read all.
        """
        return self.stop_at <= steps or (all_read and self.stop_at < math.inf)


def async_steps_of(training: TrainingState, distributed: Distributed) -> int:
    """How many steps may be under way before the result of one is read.

    One, where the device itself can leave out a bad step: the host then never makes it wait. The
    CPU has nothing to wait for.
    """
    fused = isinstance(training.optimizer, FUSED) and all(
        group["fused"] for group in training.optimizer.param_groups
    )
    return int(distributed.device.type == "cuda" and fused and not training.shards)


def fit_accumulation_steps(
    training: TrainingState,
    distributed: Distributed,
    prepare: Callable[[int], Sequence[Batch]],
    size: int,
    steps: int,
) -> tuple[int, str | None]:
    """The fewest micro-batches that fit the memory, the same on all processes: tried, not guessed.

    Takes one forward and backward pass of the first of `prepare(steps)`, a step of `size` images,
    outside DDP, halving until every process says it fits. MemoryExhausted gives the numbers where
    two images are too much.
    """
    asked, ddp_model = steps, training.ddp_model
    training.ddp_model = training.model
    training.buffers.snapshot()
    try:
        while distributed.any(not _fits(training, distributed, prepare, steps)):
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
        training.optimizer.zero_grad(set_to_none=True)
    if steps == asked:
        return steps, None
    return steps, (
        f"out of memory at {size // asked} images a pass; taking {size // steps}, "
        f"{steps} times a step, at the same global batch."
    )


def _fits(
    training: TrainingState,
    distributed: Distributed,
    prepare: Callable[[int], Sequence[Batch]],
    steps: int,
) -> bool:
    """Whether a forward and backward pass of one of `steps` micro-batches fits the memory."""
    try:
        _forward_backward(training, distributed, prepare(steps)[0], 0, 0, 1)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

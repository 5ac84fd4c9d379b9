"""One optimizer step, plain (DDP) or strict (bit-equal for every number of processes)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from ..core.randomness import address
from ..core.task import Batch, Task, wide
from .distributed import Distributed

Shares = dict[str, Tensor]  # by criterion, float32 (terms,)
Place = tuple[dict, str]  # where a tensor is kept: a dictionary and a key
ASYNC_STEPS = 2  # enough for the host to draw the augmentations of many batches at once
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class ModelEma:
    """Exponential moving average of weights and buffers (Polyak & Juditsky 1992).

    Give it the bare model, not its DDP or compiled wrapping, so that names stay the model's own.
    Without a model it averages nothing. The decay is a function of the step, never state: 0 at the
    first; with `warmup` it climbs as 1 - step^(-2/3) to `decay`, as in timm's ModelEmaV3.
    """

    def __init__(self, model: nn.Module | None = None, decay: float = 0.0, warmup: bool = False):
        state = model.state_dict() if model else {}
        self.tensors = {name: t.detach().clone() for name, t in state.items()}
        self.floats = [name for name, t in state.items() if t.is_floating_point()]
        self.others = [name for name in state if name not in set(self.floats)]
        self.places = places_of(model) if model else {}
        self.decay, self.warmup = decay, warmup

    def decay_at(self, step: int) -> float:
        """The decay of update number `step`; the first is 1."""
        if step <= 1:
            return 0.0
        return min(1 - step ** -(2 / 3), self.decay) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """average <- decay * average + (1 - decay) * model; whole numbers are copied."""
        if self.floats:
            now = read(self.places[name] for name in self.floats)
            average = [self.tensors[name] for name in self.floats]
            torch._foreach_lerp_(average, now, 1 - self.decay_at(step))
        if self.others:
            now = read(self.places[name] for name in self.others)
            torch._foreach_copy_([self.tensors[name] for name in self.others], now)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within it `model` has the averaged weights; afterwards its own again, bit for bit."""
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        model.load_state_dict(self.tensors or own)
        try:
            yield
        finally:
            model.load_state_dict(own)


def places_of(model: nn.Module) -> dict[str, Place]:
    """Where the parameters and buffers are kept, by their names in `state_dict`. To read these
    takes a hundredth of its time, and finds a tensor that has been put in another's place."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for tensors in (module._parameters, module._buffers):
            for name in (name for name, tensor in tensors.items() if tensor is not None):
                found[f"{path}.{name}".removeprefix(".")] = tensors, name
    return found


def read(places: Iterable[Place]) -> list[Tensor]:
    """The tensors that are kept there now."""
    return [tensors[name] for tensors, name in places]


@torch.no_grad()
def flat(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all, one behind the other."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def put(values: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write consecutive pieces of `values` into `tensors`; the inverse of `flat`."""
    pieces = values.split([tensor.numel() for tensor in tensors])
    shaped = [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), shaped)


def by_type(places: Iterable[Place]) -> list[list[Place]]:
    """The places in groups of one dtype and device, each of which `flat` takes."""
    found = defaultdict(list)
    for tensors, name in places:
        found[tensors[name].dtype, tensors[name].device].append((tensors, name))
    return list(found.values())


def put_back(kept: Sequence[Tensor], groups: Iterable[list[Tensor]], bad: Tensor | None) -> None:
    """Write `kept`, of `flat`, into the tensors of each group; where `bad` () is given, only if it
    is true, which is read on its device, so nobody waits for it."""
    for values, group in zip(kept, groups, strict=True):
        put(values if bad is None else torch.where(bad, values, flat(group)), group)


@dataclass
class TrainingState:
    """What learns. `model` is the bare network, `ddp_model` what is called (DDP or itself)."""

    distributed: Distributed
    model: nn.Module
    ddp_model: nn.Module
    task: Task
    criteria: dict[str, Callable]
    optimizer: torch.optim.Optimizer
    clip: Callable[[nn.Module, Tensor], None] | None  # given the gradients' norm
    ema: ModelEma
    seed: int
    accumulation_steps: int = 1  # micro-batches (or shards) a process takes a step
    shards: int | None = None  # strict: logical parts of the global batch
    async_steps: int = 0  # that are under way before a result is read; see `async_steps_of`
    uneven: bool = False  # whether images may differ in what of them counts (void, class weights)
    kept: list[Tensor] = field(default_factory=list)  # running statistics, one vector for each type

    @property
    def blends(self) -> nn.ModuleDict:
        """The criteria that may have a state, which is part of the training's."""
        return nn.ModuleDict({k: c for k, c in self.criteria.items() if isinstance(c, nn.Module)})

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def gradients(self) -> list[Tensor]:
        """Of those that the loss reached."""
        return [p.grad for p in self.parameters if p.grad is not None]

    @cached_property
    def _statistics(self) -> list[list[Place]]:
        """Where the running statistics are kept, by their type."""
        found = dict[int, Place]()  # each tensor once
        for module in (*self.model.modules(), *self.blends.modules()):
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (module._buffers, name))
        return by_type(found.values())

    def statistics(self) -> list[list[Tensor]]:
        """The running statistics by type, as they are now."""
        return [read(group) for group in self._statistics]

    @property
    def fused(self) -> bool:
        """Whether the optimizer leaves out a step by itself where its `found_inf` says so."""
        groups = self.optimizer.param_groups
        return isinstance(self.optimizer, FUSED) and all(group["fused"] for group in groups)

    @property
    def can_take_back(self) -> bool:
        """Whether the optimizer's step can be undone: by putting tensors back that it had."""
        second_order = getattr(self.optimizer, "is_second_order", False)
        return self.fused or not (second_order or hasattr(self.optimizer, "sync_lookahead"))

    def learned(self) -> list[list[Place]]:
        """Where weights, and what the optimizer keeps of them, are on the device; by type."""
        device = self.distributed.device.type
        tables = (dict(enumerate(self.parameters)), *self.optimizer.state.values())
        return by_type(
            (table, key)
            for table in tables
            for key, value in table.items()
            if isinstance(value, Tensor) and value.device.type == device
        )

    def floats(self) -> list[Tensor]:
        """Those of the running statistics that have a mean."""
        return [b for group in self.statistics() if group[0].is_floating_point() for b in group]

    def snapshot(self) -> None:
        """Remember the running statistics as they are before a step."""
        self.kept = [flat(group) for group in self.statistics()]

    def restore(self, bad: Tensor | None = None) -> None:
        """Undo what forward passes did to them. bad: as `put_back`."""
        put_back(self.kept, self.statistics(), bad)


class StepResult:
    """What all processes say of one step; on its way from the device until `read` waits for it.

    step: its number, from 0. losses: sums of loss x items by name, over `items` images; loss: the
    mean. skipped: not finite. stop: somebody wants to. scale: of the loss in fp16, else 0.
    """

    def __init__(self, step: int, names: Sequence[str], values: Tensor):
        """values: items, processes in trouble, those that want to stop, scale, losses (`names`)."""
        self.step, self.names = step, names
        self.bad = values[1] > 0  # on the device
        self.values = values.to("cpu", non_blocking=values.is_cuda)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> Self:
        """Itself, with all that it says."""
        if self.arrived:
            self.arrived.synchronize()
        items, bad, stops, self.scale, *sums = self.values.tolist()
        self.items, self.skipped, self.stop = int(items), bad > 0, stops > 0
        self.losses = dict(zip(self.names, sums, strict=True))
        self.loss = self.losses["loss"] / max(self.items, 1)
        return self


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr`, times its own `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def take_step(
    training: TrainingState, batches: Sequence[Batch], step: int, stop: bool
) -> StepResult:
    """Forward, backward, check, clip, step: unless a loss or gradient is not finite anywhere.

    batches: the process's micro-batches (or shards) of the step.
    """
    training.optimizer.zero_grad(set_to_none=True)
    for criterion in training.blends.values():
        criterion.begin_step()
    training.snapshot()
    gradients = _strict_gradients if training.shards else _plain_gradients
    terms = gradients(training, batches, shares_of(training, batches), step)
    scaler = training.distributed.scaler
    if scaler:
        scaler.unscale_(training.optimizer)
    norm = nn.utils.get_total_norm(training.gradients)
    report = _report_step(training, terms, norm, step, sum(map(len, batches)), stop)
    started = bool(training.optimizer.state)  # a step before was good
    ahead = started and training.async_steps
    bad = report.bad if ahead or report.read().skipped else None
    if bad is not None:
        training.restore(bad)
    if bad is None or (started and training.can_take_back):
        if training.clip:
            training.clip(training.model, norm)
        # some optimizers draw (kron): the same on all processes, whatever their dropout drew
        training.distributed.seed(address(training.seed, step, "optimizer"))
        _step_unless(training, bad)
    training.ema.update(step + 1)
    if scaler:
        scaler.update()
    return report


def _step_unless(training: TrainingState, bad: Tensor | None) -> None:
    """The optimizer's step. bad (): where it is given and true, which is read on its device, the
    step is left out, or taken back; an optimizer that counts its steps on the host counts it."""
    if bad is None or training.fused:
        training.optimizer.found_inf = None if bad is None else bad.float()
        training.optimizer.step()  # not the scaler's: it would wait for what `bad` says
        return
    known, groups = set(training.optimizer.state), training.learned()
    before = [flat(read(group)) for group in groups]
    training.optimizer.step()
    put_back(before, map(read, groups), bad)
    if len(training.optimizer.state) > len(known) and bad.item():
        for parameter in set(training.optimizer.state) - known:  # first reached by a bad loss
            del training.optimizer.state[parameter]


def shares_of(training: TrainingState, batches: Sequence[Batch]) -> list[Shares]:
    """What each micro-batch (or shard) has of all that the terms of a step are means over, times
    their number: with these factors the mean over all of them is the mean over the whole batch.

    Without class weights and void each has the same part, and no factor is needed.
    """
    alike = [{} for _ in batches]
    if len(batches) * training.distributed.world == 1 or not training.uneven:
        return alike
    names = list(training.criteria)
    found = [[training.criteria[name].counts(batch.target) for name in names] for batch in batches]
    counts = torch.stack([torch.cat(each) for each in found])  # float64 (batches, terms)
    sums = training.distributed.sum(torch.cat([counts.sum(0), counts.new_full((1,), len(batches))]))
    factors = (counts * sums[-1] / sums[:-1].where(sums[:-1] > 0, 1)).float()
    factors = factors.to(batches[0].target.device)  # from a Mac's CPU, which has float64
    widths = [len(each) for each in found[0]]
    return [dict(zip(names, row.split(widths), strict=True)) for row in factors]


def _plain_gradients(
    training: TrainingState, batches: Sequence[Batch], shares: Sequence[Shares], step: int
) -> dict[str, Tensor]:
    """Mean gradient over micro-batches and processes, by DDP. Returns mean losses by name."""
    count, distributed = len(batches), training.distributed
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        with distributed.unsynchronised(training.ddp_model, i + 1 < count):
            index = distributed.rank * count + i
            forward_backward(training, batch, step, index, count, sums, count, shares[i])
    return sums


def _strict_gradients(
    training: TrainingState, batches: Sequence[Batch], shares: Sequence[Shares], step: int
) -> dict[str, Tensor]:
    """Mean gradient and mean buffers over logical shards, added in shard order on every process."""
    mine, distributed = len(batches), training.distributed
    sums: dict[str, Tensor] = {}
    flats = []
    for i, shard in enumerate(batches):
        training.restore()
        index = distributed.rank * mine + i
        forward_backward(training, shard, step, index, training.shards, sums, mine, shares[i])
        for parameter in training.parameters:
            if parameter.grad is None:  # the loss did not reach it
                parameter.grad = torch.zeros_like(parameter)
        flats.append(flat([*training.gradients, *training.floats()]))
        for grad in training.gradients:
            grad.zero_()
    total = torch.zeros_like(flats[0])
    for shard in range(training.shards):  # first to last on any number of processes
        owner, slot = divmod(shard, mine)
        own = owner == distributed.rank
        total += distributed.broadcast(flats[slot] if own else torch.empty_like(total), owner)
    grads, floats = training.gradients, training.floats()
    count = sum(grad.numel() for grad in grads)
    put(total[:count], grads)
    put(total[count:] / training.shards, floats)
    return sums


def forward_backward(
    training: TrainingState,
    batch: Batch,
    step: int,
    index: int,
    share: int,
    sums: dict[str, Tensor],
    count: int,
    shares: Shares | None = None,
) -> None:
    """Adds the gradient of loss / share, and the losses by name / count to `sums`.

    shares: of `shares_of`. Dropout's draws are addressed by (seed, step, index), the part of the
    global batch.
    """
    training.distributed.seed(address(training.seed, step, index, "model"))
    total, terms = training.task.loss(training.ddp_model, batch, training.criteria, shares or {})
    second = bool(getattr(training.optimizer, "is_second_order", False))
    training.distributed.backward(total / share, create_graph=second)
    for name, value in {"loss": total, **{f"loss/{k}": v for k, v in terms.items()}}.items():
        sums[name] = sums.get(name, 0) + wide(value.detach()) / count


def _report_step(
    training: TrainingState, terms: dict[str, Tensor], norm: Tensor, step: int, n: int, stop: bool
) -> StepResult:
    """One sum over processes carries losses, items (`n` here), trouble, the stop flag, running
    statistics."""
    distributed = training.distributed
    values = torch.stack([wide(value) for value in terms.values()])
    bad = ~(values.isfinite().all() & wide(norm).isfinite())
    # filled there: a number that comes from the host would make the device wait
    head = [values.new_full((), n), bad.double(), values.new_full((), stop)]
    share = values.new_full((), 1 / distributed.world)
    head.append(distributed.scaler.scale(share) if distributed.scaler else 0 * share)
    mine = torch.cat([torch.stack(head), values * n])
    floats = training.floats() if distributed.world > 1 and not training.shards else []
    if not floats:
        return StepResult(step, list(terms), distributed.sum(mine))
    whole = distributed.sum(torch.cat([mine, *(wide(b).flatten() for b in floats)]))
    put(whole[len(mine) :] / distributed.world, floats)
    return StepResult(step, list(terms), whole[: len(mine)])


def async_steps_of(training: TrainingState) -> int:
    """How many steps may be under way before the result of one is read: some, where the device
    itself can leave out a bad step, and so need not wait for the host."""
    on_gpu = training.distributed.device.type == "cuda"
    return ASYNC_STEPS if on_gpu and training.can_take_back and not training.shards else 0

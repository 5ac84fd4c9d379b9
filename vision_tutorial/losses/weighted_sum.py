"""Weighted sums of losses that keep their parts, and may balance them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..core.errors import UserError, check_range
from ..core.registry import losses
from ..core.task import exact, valid, wide
from ..recipe.fields import Balance
from ..recipe.grammar import Options, Term


class WeightedSum(nn.Module):
    """The criterion (logits, target) -> (total, parts) that `terms` describe.

    total is `scale` times the weighted sum, a scalar to differentiate. parts holds, detached, each
    term's raw value under its name (`dice`, and `dice#2` for a second one), and what it adds to the
    total under `dice/weighted`; it is empty for a single term, which is the total. UserError for no
    terms or a name nobody has.

    With `balance`, weights are divided by the mean size of their terms, |value|. They keep the sum
    of the given weights, so terms of equal weight add equally much to the total. A step's weights
    follow from the steps before it, so that they are the same for all its micro-batches and
    processes, and a step that is skipped is not counted. The first steps have the given weights:
    those of a calibration, and as long as a term has never been other than 0.
    """

    def __init__(
        self, terms: Sequence[Term], balance: Balance | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        names = [term.name for term in terms]
        if not any(term.weight for term in terms):
            raise UserError(f"losses {names}: every weight is 0; give at least one a higher one.")
        numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
        self.names = [n if k == 1 else f"{n}#{k}" for n, k in zip(names, numbers, strict=True)]
        self.given, self.scale = [term.weight for term in terms], scale
        self.losses = [losses.build(term.name, **term.options) for term in terms]
        self.balance = balance if len(terms) > 1 else None
        if self.balance:
            # of this step, sums over forward passes: sizes, and 1. The engine treats it as any
            # running statistic: the mean over processes, put back if the step is bad
            self.register_buffer("seen", torch.zeros(len(terms) + 1))
            # of the steps before, equal on all processes; saved, as parameters are
            self.mean = nn.Parameter(torch.zeros(len(terms)), requires_grad=False)
            self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(
        self, logits: Tensor, target: Tensor, shares: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """logits (B, C, *S); target ids (B, *S) or class map (B, C, *S).

        shares (terms,): each term's value is multiplied by its own, so that the mean over the
        passes of a step is the mean over all that counts in it.
        """
        values = [loss(logits, target) for loss in self.losses]
        if shares is not None:
            values = [value * share for value, share in zip(values, shares, strict=True)]
        if self.balance:
            sizes = [value.detach().abs() for value in values]
            self.seen += torch.stack([*sizes, torch.ones_like(sizes[0])])
        shares = [self.scale * w * v for w, v in zip(self.weights(), values, strict=True)]
        parts: dict[str, Tensor] = {}
        for name, value, share in zip(self.names, values, shares, strict=True):
            parts |= {name: value.detach(), f"{name}/weighted": share.detach()}
        return sum(shares), parts if len(values) > 1 else {}

    def counts(self, target: Tensor) -> Tensor:
        """What each term's mean over a batch divides by, float64 (terms,), exact in sums; of a loss
        of the batch as a whole 1, or 0 where nothing counts."""
        found = [_count(loss, target) for loss in self.losses]
        any_counts = valid(target).any()
        return exact(torch.stack([wide(any_counts if n is None else n) for n in found]))

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """The terms' sums and what these are to be divided by, float64 (2, terms): added over the
        batches of an evaluation they give the means. Arguments as of `forward`."""
        rows = []
        for loss in self.losses:
            count = _count(loss, target)
            if count is not None:
                rows.append(torch.stack([wide(loss(logits, target)) * wide(count), wide(count)]))
                continue
            singles = zip(logits.split(1), target.split(1), strict=True)
            values = [(loss(*one), valid(one[1]).any()) for one in singles]
            rows.append(torch.stack([torch.stack([*map(wide, v)]) for v in values]).sum(0))
        return exact(torch.stack(rows, 1))

    def total(self, sums: Tensor) -> float:
        """The weighted sum of the terms' means, of `sums` added up."""
        means = sums[0] / sums[1].where(sums[1] > 0, 1)
        return sum(w * x for w, x in zip(self.given, means.tolist(), strict=True))

    def weights(self) -> Sequence[float] | Tensor:
        """Of the terms, in this step; float32 (terms,) if they are balanced."""
        if not self.balance:
            return self.given
        given = torch.stack([torch.full_like(self.steps, weight) for weight in self.given])
        inverse = given / self.mean
        balanced = inverse * (given.sum() / inverse.sum())
        known = (self.steps >= (self.balance.calibrate or 1)) & (self.mean > 0).all()
        return balanced.where(known, given)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Add what the last step saw, if anything, to the mean; the engine says so each step."""
        if not self.balance:
            return
        sizes, passes = self.seen[:-1], self.seen[-1]
        counts = passes > 0
        rate = 1 / (self.steps + 1)
        if self.balance.calibrate is not None:
            counts &= self.steps < self.balance.calibrate
        else:
            rate = rate.clamp(min=1 - self.balance.ema)
        self.mean.lerp_(sizes / passes.clamp(min=1), rate * counts)
        self.steps += counts
        self.seen.zero_()


def _count(loss: Callable, target: Tensor) -> Tensor | None:
    """What a loss of the registry, with its options, is the mean over; see `pixel.mean_over`."""
    counts = getattr(loss.func, "counts", None)
    return counts and counts(target, **loss.keywords)


def copies(terms: Sequence[Term]) -> int:
    """How many augmented copies of each image the losses need: jsd's num_splits less one."""
    wanted = {term.options["num_splits"] - 1 for term in terms if term.name == "jsd"}
    for count in wanted:
        check_range("jsd", "[2, 64]", num_splits=count + 1)
    if wanted and len(terms) > 1:
        raise UserError("loss: jsd reads a batch of copies, as no other loss does; use it alone.")
    return max(wanted, default=0)


def without_copies(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The losses for an evaluation, where no image has copies: jsd is its cross-entropy."""
    return tuple(
        Term("cross_entropy", t.weight, Options({"label_smoothing": t.options["smoothing"]}))
        if t.name == "jsd"
        else t
        for t in terms
    )

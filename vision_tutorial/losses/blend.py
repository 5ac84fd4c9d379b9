"""Weighted sums of losses that keep their parts."""

from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor

from ..core.errors import UserError
from ..core.grammar import Options, Term
from ..core.registry import losses

Criterion = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def blend(terms: Sequence[Term]) -> Criterion:
    """The criterion (logits, target) -> (total, parts) that `terms` describe.

    total is the weighted sum, a scalar to differentiate. parts holds each term's raw value,
    unweighted and detached, under its name (`dice`, and `dice#2` for a second one); it is empty for
    a single term, whose value is the total's. UserError for no terms or a name nobody has.
    """
    if not terms:
        raise UserError("a blend of no losses; name at least one, such as cross_entropy.")
    if not any(term.weight for term in terms):
        raise UserError("loss: every weight is 0, so nothing would be learned; raise one.")
    names = _names(terms)
    weights = [term.weight for term in terms]
    bound = [losses.bind(term.name, **term.options) for term in terms]

    def criterion(logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        values = [loss(logits, target) for loss in bound]
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        parts = {name: value.detach() for name, value in zip(names, values, strict=True)}
        return total, parts if len(values) > 1 else {}

    return criterion


def copies(terms: Sequence[Term]) -> int:
    """How many augmented copies of each picture the losses need: jsd's num_splits less one."""
    wanted = {term.options["num_splits"] - 1 for term in terms if term.name == "jsd"}
    if wanted and len(terms) > 1:
        raise UserError("loss: jsd reads a batch of copies, as no other loss does; use it alone.")
    return max(wanted, default=0)


def without_copies(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The losses for an evaluation, where no picture has copies: jsd is its cross-entropy."""
    return tuple(
        Term("cross_entropy", t.weight, Options({"label_smoothing": t.options["smoothing"]}))
        if t.name == "jsd"
        else t
        for t in terms
    )


def _names(terms: Sequence[Term]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.name] += 1
        names.append(term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}")
    return names

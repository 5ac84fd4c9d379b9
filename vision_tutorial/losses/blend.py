"""Weighted sums of losses that keep their parts."""

from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor

from ..core.errors import UserError
from ..core.grammar import Term
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
    names = _names(terms)
    weights = [term.weight for term in terms]
    bound = [losses.bind(term.name, **term.options) for term in terms]

    def criterion(logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        values = [loss(logits, target) for loss in bound]
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        parts = {name: value.detach() for name, value in zip(names, values, strict=True)}
        return total, parts if len(values) > 1 else {}

    return criterion


def _names(terms: Sequence[Term]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.name] += 1
        names.append(term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}")
    return names

"""Losses per position (cross-entropy, focal, …), and what all losses of both tracks hold to.

logits (B, C, *S) with any number of spatial axes, none for classification; target class ids (B, *S)
or class map (B, C, *S). Positions that `core.task` calls ignored are dropped before everything,
even where their logits are not finite; means are over the others. With none left the loss is zero
and so is its gradient. Half precision is computed in float32, inside autocast or out of it.
UserError where shapes or options do not fit.

`mean_over` says what a loss is the mean over. The engine takes that mean over all micro-batches and
processes of a step, and over a whole evaluation, however the images are dealt. A loss without it is
of its batch as a whole: in training each forward pass in which anything counts weighs the same, and
an evaluation takes it image by image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError, check_range
from ..core.registry import losses
from ..core.task import is_map, to_device, to_map, valid, wide


def counted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, target, keep): at least float32, and 0 wherever `keep` bool (B, *S) is False.

    Masking instead of selecting spares the GPU a wait for the number of positions.
    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S). UserError if these do not fit.
    """
    whole, ids = tuple(logits.shape), (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != (whole if is_map(target) else ids):
        raise UserError(
            f"{target.dtype} target of shape {tuple(target.shape)} for logits of shape {whole}; "
            f"class ids are {ids} here, a class map is {whole}."
        )
    keep = valid(target)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype) if is_map(target) else target.where(keep, 0)
    return logits.where(keep.unsqueeze(1), 0), target, keep


def mean_over(counts: Callable[..., Tensor | None]) -> Callable[[Callable], Callable]:
    """Mark a loss: `counts(target, **options)` is what its mean divides by, a scalar; None where,
    with these options, it is no such mean."""

    def mark(loss: Callable) -> Callable:
        loss.counts = counts
        return loss

    return mark


def positions(target: Tensor, **options: object) -> Tensor:
    """How many positions count."""
    return valid(target).sum()


def class_weights_of(
    target: Tensor, *, class_weights: list[float] | None = None, **options: object
) -> Tensor:
    """The sum of the class weights of the positions that count; their number without weights."""
    if class_weights is None:
        return positions(target)
    keep = valid(target)
    if is_map(target):
        return wide(target * _per_class(class_weights, target)).sum()
    weights = to_device(torch.tensor(class_weights, dtype=torch.float32), target.device)
    each = weights[target.clamp(0, len(weights) - 1)]  # of too few the loss itself complains
    return wide(each.where(keep, 0)).sum()


@losses.register
@mean_over(class_weights_of)
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: list[float] | None = None,
) -> Tensor:
    """Softmax cross-entropy; class weights give the weighted mean, as in PyTorch.

    Σ_V w_y (−log p_y) / Σ_V w_y; a class map weighs every class by its share. logits (B, C, *S);
    target ids (B, *S) or class map (B, C, *S); one weight per class.
    """
    logits, target, keep = counted(logits, target)
    given = class_weights is not None
    weights = _per_class(class_weights, logits).flatten() if given else None
    values = F.cross_entropy(
        logits, target, weights, reduction="none", label_smoothing=label_smoothing
    )
    return _mean(values, keep, _shares(target, class_weights, logits).sum(1) if given else None)


@losses.register
@mean_over(positions)
def label_smoothing(logits: Tensor, target: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """Cross-entropy against (1−ε)·target + ε/C (Szegedy et al. 2015, arXiv 1512.00567).

    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S).
    """
    check_range("label_smoothing", "[0, 1]", epsilon=epsilon)
    return cross_entropy(logits, target, label_smoothing=epsilon)


@losses.register
@mean_over(positions)
def focal(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: list[float] | None = None
) -> Tensor:
    """Softmax cross-entropy that looks away from easy positions (Lin et al. 2017, 1708.02002).

    −α_y (1−p_y)^γ log p_y, and its expectation under a class map; gamma 0 is cross-entropy. The
    mean is over the positions, not over alpha. logits (B, C, *S); target ids (B, *S) or class map
    (B, C, *S); one alpha per class.
    """
    check_range("focal", "[0, inf)", gamma=gamma)
    logits, target, keep = counted(logits, target)
    log_p = F.log_softmax(logits, 1)
    if not is_map(target):
        log_p = log_p.gather(1, target.unsqueeze(1))
    # 1 − p keeps its digits near p = 1 this way. It never reaches 0, where γ < 1 has no slope.
    doubt = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
    return _mean(-(_shares(target, alpha, logits) * doubt**gamma * log_p).sum(1), keep)


@losses.register
def ohem(
    logits: Tensor, target: Tensor, *, threshold: float = 0.7, min_kept: int = 100_000
) -> Tensor:
    """Cross-entropy over the hardest positions (online hard example mining, 1604.03540).

    Those of p_y < threshold, and at least the `min_kept` of least p_y: the mean of −log p_y over
    them. Under a class map p_y is exp(−cross-entropy). logits (B, C, *S); target ids (B, *S) or
    class map (B, C, *S). The hardest are those of one forward pass (a micro-batch of a
    process), in an evaluation those of each image.
    """
    check_range("ohem", "[0, 1]", threshold=threshold)
    check_range("ohem", "[1, inf)", min_kept=min_kept)
    logits, target, keep = counted(logits, target)
    values = F.cross_entropy(logits, target, reduction="none")
    known = values.detach()
    ranked = known.where(keep, -torch.inf).flatten()
    least = ranked.kthvalue(max(ranked.numel() - min_kept + 1, 1)).values  # that must be kept
    easy = ((-known).exp() >= threshold) & (known < least)  # never so where the loss is NaN
    return _mean(values, keep & ~easy)


@losses.register
@mean_over(positions)
def focal_ovr(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.5
) -> Tensor:
    """Sigmoid focal loss, each class against the rest (Lin et al. 2017, 1708.02002).

    −α_t (1−p_t)^γ log p_t per class, and its expectation under a class map; alpha weighs the class
    and 1 − alpha the rest; the mean is over positions and classes. logits (B, C, *S); target ids
    (B, *S) or class map (B, C, *S), which may name several classes at once.
    """
    check_range("focal_ovr", "[0, inf)", gamma=gamma)
    check_range("focal_ovr", "[0, 1]", alpha=alpha or 0.0)
    logits, target, keep = counted(logits, target)
    share = to_map(target, logits.shape[1]).to(logits.dtype)
    log_p, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    own, rest = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    values = own * share * (gamma * log_rest).exp() * log_p
    values = values + rest * (1 - share) * (gamma * log_p).exp() * log_rest
    return _mean(-values.mean(1), keep)


@losses.register
@mean_over(positions)
def bce(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.0,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    class_weights: list[float] | None = None,
    pos_weight: float | None = None,
) -> Tensor:
    """Binary cross-entropy, each class against the rest (ResNet strikes back, 2110.00476; timm's).

    The target is smoothed to (1−s)·target + s/C; above `target_threshold`, if given, it counts as 1
    and else as 0. The mean is over positions and classes, or over positions alone of the sum over
    classes. logits (B, C, *S); target ids (B, *S) or class map (B, C, *S), which may name several
    classes at once.
    """
    check_range("bce", "[0, 1]", smoothing=smoothing)
    logits, target, keep = counted(logits, target)
    classes = logits.shape[1]
    share = to_map(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    if target_threshold is not None:
        share = (share > target_threshold).to(logits.dtype)
    values = F.binary_cross_entropy_with_logits(
        logits,
        share,
        None if class_weights is None else _per_class(class_weights, logits),
        pos_weight=None if pos_weight is None else logits.new_full((), pos_weight),
        reduction="none",
    )
    return _mean(values.sum(1) if sum_classes else values.mean(1), keep)


@losses.register
def jsd(
    logits: Tensor,
    target: Tensor,
    *,
    num_splits: int = 3,
    alpha: float = 12.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy on clean images + α·Jensen-Shannon divergence to copies (AugMix; timm's).

    The batch is `num_splits` versions of the same images, one after the other, the clean ones
    first (Hendrycks et al. 2020, arXiv 1912.02781). logits (B, C, *S); target ids (B, *S) or class
    map (B, C, *S), of which the clean part is read.
    """
    if num_splits < 2 or len(logits) % num_splits:
        raise UserError(f"jsd: num_splits {num_splits} must be 2 or more and divide {len(logits)}.")
    clean = target[: len(target) // num_splits]
    versions = [counted(version, clean) for version in logits.chunk(num_splits)]
    log_p = torch.stack([F.log_softmax(version, 1) for version, _, _ in versions])
    p = log_p.exp()
    log_mean = p.mean(0).clamp(1e-7, 1).log()  # timm's floor: keeps the divergence from exploding
    divergence = (p * (log_p - log_mean)).sum(2).mean(0)
    hit = cross_entropy(logits[: len(clean)], clean, label_smoothing=smoothing)
    return hit + alpha * _mean(divergence, versions[0][2])


def _mean(values: Tensor, keep: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ values / Σ weights over the positions in `keep`, all (B, *S); 0 where nothing counts."""
    total = (keep if weights is None else weights.where(keep, 0)).sum()
    return values.where(keep, 0).sum() / total.where(total > 0, 1)


def _shares(target: Tensor, weights: list[float] | None, logits: Tensor) -> Tensor:
    """What each class counts: w_y (B, 1, *S) for class ids, w_c·share_c (B, C, *S) for a map."""
    if is_map(target):
        return target if weights is None else target * _per_class(weights, logits)
    if weights is None:
        return logits.new_ones(())
    return _per_class(weights, logits).flatten()[target].unsqueeze(1)


def _per_class(values: list[float], logits: Tensor) -> Tensor:
    """One weight a class, shaped (C, 1, …) to multiply logits (B, C, *S)."""
    if len(values) != logits.shape[1] or min(values) < 0:
        raise UserError(
            f"weights {values} for {logits.shape[1]} classes; give each a number from 0 up."
        )
    weights = to_device(torch.tensor(values, dtype=logits.dtype), logits.device)
    return weights.view(-1, *[1] * (logits.ndim - 2))

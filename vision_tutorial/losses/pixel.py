"""Losses that look at one position at a time and take the mean: cross-entropy, focal, their kin.

`masking` says what all of them hold to.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError
from ..core.registry import losses
from ..core.task import is_map, to_map
from .masking import counted, within


@losses.register
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
    within("cross_entropy", "label_smoothing", label_smoothing, 1)
    logits, target, keep = counted(logits, target)
    weights = _per_class(class_weights, logits)
    values = F.cross_entropy(
        logits, target, weights, label_smoothing=label_smoothing, reduction="none"
    )
    if weights is None:
        return _mean(values, keep)
    return _mean(values, keep, _shares(target, weights, logits).sum(1))


@losses.register
def label_smoothing(logits: Tensor, target: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """Cross-entropy against (1−ε)·target + ε/C (Szegedy et al. 2015, arXiv 1512.00567).

    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S).
    """
    within("label_smoothing", "epsilon", epsilon, 1)
    return cross_entropy(logits, target, label_smoothing=epsilon)


@losses.register
def focal(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: list[float] | None = None
) -> Tensor:
    """Softmax cross-entropy that looks away from easy positions (Lin et al. 2017, 1708.02002).

    −α_y (1−p_y)^γ log p_y, and its expectation under a class map; gamma 0 is cross-entropy. The
    mean is over the positions, not over alpha. logits (B, C, *S); target ids (B, *S) or class map
    (B, C, *S); one alpha per class.
    """
    within("focal", "gamma", gamma)
    logits, target, keep = counted(logits, target)
    log_p = F.log_softmax(logits, 1)
    if not is_map(target):
        log_p = log_p.gather(1, target.unsqueeze(1))
    # 1 − p keeps its digits near p = 1 this way. It never reaches 0, where γ < 1 has no slope.
    doubt = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
    shares = _shares(target, _per_class(alpha, logits), logits)
    return _mean(-(shares * doubt**gamma * log_p).sum(1), keep)


@losses.register
def ohem(
    logits: Tensor, target: Tensor, *, threshold: float = 0.7, min_kept: int = 100_000
) -> Tensor:
    """Cross-entropy over the hardest positions (online hard example mining, 1604.03540).

    Those of p_y < threshold, and at least the `min_kept` of least p_y: the mean of −log p_y over
    them. Under a class map p_y is exp(−cross-entropy). logits (B, C, *S); target ids (B, *S) or
    class map (B, C, *S). The hardest are those of this process's batch: per rank under DDP.
    """
    within("ohem", "threshold", threshold, 1)
    within("ohem", "min_kept", min_kept, low=1)
    logits, target, keep = counted(logits, target)
    values = F.cross_entropy(logits, target, reduction="none")
    known = values.detach()
    ranked = known.where(keep, -torch.inf).flatten()
    least = ranked.kthvalue(max(ranked.numel() - min_kept + 1, 1)).values  # that must be kept
    easy = ((-known).exp() >= threshold) & (known < least)  # never so where the loss is NaN
    return _mean(values, keep & ~easy)


@losses.register
def focal_ovr(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.5
) -> Tensor:
    """Sigmoid focal loss, each class against the rest (Lin et al. 2017, 1708.02002).

    −α_t (1−p_t)^γ log p_t per class, and its expectation under a class map; alpha weighs the class
    and 1 − alpha the rest; the mean is over positions and classes. logits (B, C, *S); target ids
    (B, *S) or class map (B, C, *S), which may name several classes at once.
    """
    within("focal_ovr", "gamma", gamma)
    within("focal_ovr", "alpha", alpha or 0.0, 1)
    logits, target, keep = counted(logits, target)
    share = to_map(target, logits.shape[1]).to(logits.dtype)
    log_p, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    own, rest = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    values = own * share * (gamma * log_rest).exp() * log_p
    values = values + rest * (1 - share) * (gamma * log_p).exp() * log_rest
    return _mean(-values.mean(1), keep)


@losses.register
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
    within("bce", "smoothing", smoothing, 1)
    logits, target, keep = counted(logits, target)
    classes = logits.shape[1]
    share = to_map(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    if target_threshold is not None:
        share = (share > target_threshold).to(logits.dtype)
    weights = _per_class(class_weights, logits)
    weights = None if weights is None else _along_classes(weights, logits)
    positive = None if pos_weight is None else logits.new_tensor(pos_weight)
    values = F.binary_cross_entropy_with_logits(
        logits, share, weights, pos_weight=positive, reduction="none"
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
        raise UserError(
            f"jsd: a batch of {len(logits)} is not made of {num_splits} versions of its images; "
            "num_splits is at least 2 and divides the batch."
        )
    clean = target[: len(target) // num_splits]
    versions = [counted(version, clean) for version in logits.chunk(num_splits)]
    log_p = torch.stack([F.log_softmax(version, 1) for version, _, _ in versions])
    p = log_p.exp()
    log_mean = p.mean(0).clamp(1e-7, 1).log()  # timm's floor: keeps the divergence from exploding
    divergence = (p * (log_p - log_mean)).sum(2).mean(0)
    keep = versions[0][2]
    hit = cross_entropy(logits[: len(clean)], clean, label_smoothing=smoothing)
    return hit + alpha * _mean(divergence, keep)


def _mean(values: Tensor, keep: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ values / Σ weights over the positions in `keep`, all (B, *S); 0 where nothing counts."""
    total = (keep if weights is None else weights.where(keep, 0)).sum()
    return values.where(keep, 0).sum() / total.where(total > 0, 1)


def _shares(target: Tensor, weights: Tensor | None, logits: Tensor) -> Tensor:
    """What each class counts: w_y (B, 1, *S) for class ids, w_c·share_c (B, C, *S) for a map."""
    if is_map(target):
        return target if weights is None else target * _along_classes(weights, logits)
    if weights is None:
        return logits.new_ones(())
    return weights[target].unsqueeze(1)


def _along_classes(values: Tensor, logits: Tensor) -> Tensor:
    """(C,) shaped to multiply (B, C, *S)."""
    return values.view(-1, *[1] * (logits.ndim - 2))


def _per_class(values: list[float] | None, logits: Tensor) -> Tensor | None:
    if values is None:
        return None
    if len(values) != logits.shape[1] or min(values) < 0:
        raise UserError(
            f"weights {values} for {logits.shape[1]} classes; give each a number from 0 up."
        )
    return logits.new_tensor(values)

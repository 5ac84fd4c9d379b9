"""Losses that look at one position at a time and take the mean: cross-entropy, focal, their kin.

All share one contract. logits (B, C, *S) with any number of spatial axes, none for classification;
target class ids (B, *S) or class map (B, C, *S). Positions that `core.targets` calls ignored are
dropped before everything, even where their logits are not finite; the mean is over the others. With
none left the loss is zero and so is its gradient. Half precision is computed in float32, inside
autocast or out of it. UserError where shapes or options do not fit.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError
from ..core.registry import losses
from ..core.targets import is_map, to_map, valid


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
    _within("cross_entropy", "label_smoothing", label_smoothing, 1)
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
    _within("label_smoothing", "epsilon", epsilon, 1)
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
    _within("focal", "gamma", gamma)
    logits, target, keep = counted(logits, target)
    log_p = F.log_softmax(logits, 1)
    if not is_map(target):
        log_p = log_p.gather(1, target.unsqueeze(1))
    # 1 − p keeps its digits near p = 1 this way. It never reaches 0, where γ < 1 has no slope.
    doubt = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
    shares = _shares(target, _per_class(alpha, logits), logits)
    return _mean(-(shares * doubt**gamma * log_p).sum(1), keep)


@losses.register
def focal_ovr(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.5
) -> Tensor:
    """Sigmoid focal loss, each class against the rest (Lin et al. 2017, 1708.02002).

    −α_t (1−p_t)^γ log p_t per class, and its expectation under a class map; alpha weighs the class
    and 1 − alpha the rest; the mean is over positions and classes. logits (B, C, *S); target ids
    (B, *S) or class map (B, C, *S), which may name several classes at once.
    """
    _within("focal_ovr", "gamma", gamma)
    _within("focal_ovr", "alpha", alpha or 0.0, 1)
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
    _within("bce", "smoothing", smoothing, 1)
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
    """Cross-entropy on clean pictures + α·Jensen-Shannon divergence to copies (AugMix; timm's).

    The batch is `num_splits` versions of the same pictures, one after the other, the clean ones
    first (Hendrycks et al. 2020, arXiv 1912.02781). logits (B, C, *S); target ids (B, *S) or class
    map (B, C, *S), of which the clean part is read.
    """
    if num_splits < 2 or len(logits) % num_splits:
        raise UserError(
            f"jsd: a batch of {len(logits)} is not made of {num_splits} versions of its pictures; "
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


def counted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, target, keep): at least float32, and harmless wherever `keep` (B, *S) is False.

    There logits are 0 (so nothing flows back, and no NaN survives), ids are 0 and maps are 0.
    Masking instead of selecting spares the GPU a wait for the number of positions.
    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S). UserError if these do not fit.
    """
    _fit(logits, target)
    keep = valid(target)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype) if is_map(target) else target.where(keep, 0)
    return logits.where(keep.unsqueeze(1), 0), target, keep


def _fit(logits: Tensor, target: Tensor) -> None:
    ids = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != (tuple(logits.shape) if is_map(target) else ids):
        kind = "a class map" if is_map(target) else "class ids"
        raise UserError(
            f"{kind} of shape {tuple(target.shape)} for logits of shape {tuple(logits.shape)}; "
            f"class ids are {ids} here, a class map is {tuple(logits.shape)}."
        )


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


def _within(loss: str, option: str, value: float, high: float = float("inf")) -> None:
    if not 0 <= value <= high:
        raise UserError(f"{loss}: {option} is {value}; a number from 0 to {high:g} is expected.")

"""Losses that look at whole regions: how well what was predicted overlaps with what is there.

`pixel` says what all losses hold to. p is the softmax of the logits and g the class map of the
target. Per class over the counted positions: TP = Σ pg, FP = Σ p(1−g), FN = Σ (1−p)g.

reduce  `batch`: one region of a class over all images; `image`: one in each, then the mean over
        the images in which anything counts. With no spatial axes, an image is one position.
classes `present`: the mean over the classes that occur there in the target; `all`: over all, which
        also tells a network of an absent class that it should not be there.

A batch is what one process passes forward at once: under DDP the losses of a `batch` are per rank,
and with accumulation per micro-batch, as BatchNorm is; an evaluation takes them image by image. The
mean of ratios is not the ratio of means. Those of an `image` are the same however images are dealt.

With soft targets (mixing, smoothing) the definitions hold as they stand, though of them only the
squared dice is 0 at p = g; lovasz has no meaning there and refuses.
"""

from typing import Literal

import torch
from torch import Tensor

from ..core.errors import UserError, check_range
from ..core.registry import losses
from ..core.task import is_map, to_map, valid
from .pixel import counted, mean_over


def images(target: Tensor, *, reduce: str = "batch", **options: object) -> Tensor | None:
    """In how many images anything counts, where the loss is the mean over images."""
    return valid(target).view(len(target), -1).any(1).sum() if reduce == "image" else None


@losses.register
@mean_over(images)
def dice(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1.0,
    squared: bool = False,
    reduce: Literal["batch", "image"] = "batch",
    classes: Literal["present", "all"] = "present",
) -> Tensor:
    """1 − (2 Σpg + s)/(Σp + Σg + s); `squared`: Σp² + Σg² below (V-Net, 1606.04797).

    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S).
    """
    check_range("dice", "[0, inf)", smooth=smooth)
    p, g = _masses(logits, target)
    both = p * g
    miss = (p - g).square() if squared else (p - both) + (g - both)
    return _overlap_loss(2 * both, miss, g, smooth, 1, reduce, classes)


@losses.register
@mean_over(images)
def jaccard(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1.0,
    reduce: Literal["batch", "image"] = "batch",
    classes: Literal["present", "all"] = "present",
) -> Tensor:
    """1 − (Σpg + s)/(Σp + Σg − Σpg + s): intersection over union, softly (Rahman & Wang 2016).

    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S).
    """
    check_range("jaccard", "[0, inf)", smooth=smooth)
    return tversky(logits, target, alpha=1, beta=1, smooth=smooth, reduce=reduce, classes=classes)


@losses.register
@mean_over(images)
def tversky(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    gamma: float = 1.0,
    reduce: Literal["batch", "image"] = "batch",
    classes: Literal["present", "all"] = "present",
) -> Tensor:
    """(1 − (TP + s)/(TP + α FP + β FN + s))^γ (Tversky loss, 1706.05721; focal, 1810.07842).

    alpha weighs what is wrongly there, beta what is missed: ½, ½ is dice, 1, 1 is jaccard. The
    exponent is per class; the focal paper writes 1/γ, so its 4/3 is 0.75 here. logits (B, C, *S);
    target ids (B, *S) or class map (B, C, *S).
    """
    check_range("tversky", "[0, inf)", alpha=alpha, beta=beta, smooth=smooth, gamma=gamma)
    p, g = _masses(logits, target)
    both = p * g
    miss = alpha * (p - both) + beta * (g - both)
    return _overlap_loss(both, miss, g, smooth, gamma, reduce, classes)


@losses.register
@mean_over(images)
def tanimoto(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1.0,
    gamma: float = 1.0,
    reduce: Literal["batch", "image"] = "batch",
    classes: Literal["present", "all"] = "present",
) -> Tensor:
    """Tversky's with α = β = 1, which is jaccard^γ per class; the name in the students' diary.

    logits (B, C, *S); target ids (B, *S) or class map (B, C, *S).
    """
    check_range("tanimoto", "[0, inf)", smooth=smooth, gamma=gamma)
    return tversky(
        logits, target, alpha=1, beta=1, smooth=smooth, gamma=gamma, reduce=reduce, classes=classes
    )


@losses.register
@mean_over(images)
def lovasz(
    logits: Tensor,
    target: Tensor,
    *,
    reduce: Literal["batch", "image"] = "batch",
    classes: Literal["present", "all"] = "present",
) -> Tensor:
    """Lovász-softmax: the Jaccard loss of sets, extended to errors |g − p| (1705.08790).

    logits (B, C, *S); target ids (B, *S), or a class map (B, C, *S) that is one-hot: errors of
    shares are no sets, so UserError for a mixed one.
    """
    p, g = _masses(logits, target)
    if is_map(target) and not torch.equal((g == 1).sum(1).clamp(max=1), (g != 0).sum(1)):
        raise UserError("lovasz: targets are mixed. Use jaccard, or leave mixup out of the recipe.")
    if reduce == "batch":
        p, g = (mass.transpose(0, 1).flatten(1).unsqueeze(0) for mass in (p, g))
    worst, order = (p - g).abs().sort(-1, descending=True)
    # How much the Jaccard loss grows with each position that is got wrong, worst first (Algorithm
    # 1). 1 − I/U is not subtracted from the one before, which would leave few digits: I or U
    # change by one, so the difference is 1/U, or I/(U (U−1)).
    own = (g > 0).gather(-1, order)
    lost = own.cumsum(-1, dtype=torch.int32)  # exact, where float32 ends at 2^24
    size, mass = lost[..., -1:], g.sum(-1)
    rank = torch.arange(1, own.shape[-1] + 1, dtype=torch.int32, device=own.device)
    union = (size + rank - lost).to(p.dtype)
    growth = torch.where(own, 1.0, (size - lost) / (union - 1).clamp(min=1)) / union
    # one position that is taken for an absent class makes the whole loss: the largest error
    values = (worst * growth).sum(-1).where(mass > 0, worst[..., 0])
    return _mean(values, mass, classes)


def _masses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What is predicted and what is there, (B, C, N); both 0 where nothing counts."""
    logits, target, keep = counted(logits, target)
    p, g = logits.softmax(1), to_map(target, logits.shape[1]).to(logits.dtype)
    p, g = (m.where(keep.unsqueeze(1), 0).reshape(*logits.shape[:2], -1) for m in (p, g))
    return p, g


def _overlap_loss(
    hit: Tensor, miss: Tensor, g: Tensor, smooth: float, gamma: float, reduce: str, classes: str
) -> Tensor:
    """(1 − (hit + s)/(hit + miss + s))^γ of sums over (B, C, N), without the subtraction."""
    sums = [values.sum(2) for values in (hit, miss, g)]
    hit, miss, mass = sums if reduce == "image" else [s.sum(0, keepdim=True) for s in sums]
    whole = hit + miss + smooth
    values = miss / whole.where(whole > 0, 1)
    if gamma != 1:  # at 0, γ < 1 has no slope
        values = values.clamp(min=torch.finfo(values.dtype).tiny) ** gamma
    return _mean(values, mass, classes)


def _mean(values: Tensor, mass: Tensor, classes: str) -> Tensor:
    """Over the classes of each group, then over groups in which anything counts; of (G, C)."""
    counts = mass > 0
    if classes == "all":
        counts = counts.any(1, keepdim=True).expand_as(counts)
    means = values.where(counts, 0).sum(1) / counts.sum(1).clamp(min=1)
    return means.sum() / counts.any(1).sum().clamp(min=1)

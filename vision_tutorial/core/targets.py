"""Class ids <-> class maps: the one place where a target changes form.

Class ids are integers (B, *S) with `IGNORE` where nothing counts. A class map is float (B, C, *S),
one distribution over C classes per position; it is all zero where nothing counts.
"""

import torch
from torch import Tensor

from .images import VOID

# Not segmentation's 255, which is a real class id in ImageNet; masks are translated when they load.
IGNORE = -100


def is_map(target: Tensor) -> bool:
    """Whether `target` is a class map (floating point) rather than class ids."""
    return target.is_floating_point()


def is_spatial(target: Tensor) -> bool:
    """Whether there is a class for each position, and not one for the whole image."""
    return target.ndim > (2 if is_map(target) else 1)


def to_map(target: Tensor, classes: int) -> Tensor:
    """Class ids (B, *S) -> one-hot class map float32 (B, classes, *S); a map passes through."""
    if is_map(target):
        return target
    counts = (target != IGNORE).unsqueeze(1)
    empty = torch.zeros(len(target), classes, *target.shape[1:], device=target.device)
    return empty.scatter_(1, target.unsqueeze(1).where(counts, 0), counts.float())


def to_ids(target: Tensor) -> Tensor:
    """Class map (B, C, *S) -> ids (B, *S) of the largest share, IGNORE where nothing counts."""
    if not is_map(target):
        return target
    return target.argmax(1).where(valid(target), IGNORE)


def from_masks(masks: Tensor) -> Tensor:
    """Masks uint8 (B, H, W) as they lie in files -> class ids int64, IGNORE where they are VOID."""
    return masks.long().masked_fill_(masks == VOID, IGNORE)


def to_masks(ids: Tensor) -> Tensor:
    """Class ids (B, H, W) -> masks uint8 as they lie in files, VOID where they are IGNORE."""
    return ids.masked_fill(ids == IGNORE, VOID).to(torch.uint8)


def sampled(values: Tensor, height: int, width: int) -> Tensor:
    """(…, H, W) -> (…, height, width) by nearest neighbours, row ⌊i·H/height⌋, as OpenCV and
    torch's `interpolate` choose it; the same pixels of logits and of ids."""
    rows, columns = (
        (torch.arange(wanted, device=values.device) * side).div(wanted, rounding_mode="floor")
        for side, wanted in zip(values.shape[-2:], (height, width), strict=True)
    )
    return values[..., rows[:, None], columns]


def valid(target: Tensor) -> Tensor:
    """Which positions count; bool (B, *S) for both forms."""
    return (target != 0).any(1) if is_map(target) else target != IGNORE


def paste(target: Tensor, partner: Tensor, keep: Tensor) -> Tensor:
    """`target` where `keep` is true and `partner` elsewhere; both ids (B, *S) or both maps.

    keep: bool, broadcasts against *S, e.g. (1, H, W).
    """
    return target.where(keep.unsqueeze(1) if is_map(target) else keep, partner)


def mix(target: Tensor, partner: Tensor, share: Tensor | float, classes: int) -> Tensor:
    """`share` of `target` and the rest of `partner`, as a class map (B, classes, *S).

    share: a number, or a tensor that broadcasts against the class map, e.g. (B, 1) or (B, 1, H, W).
    """
    share = torch.as_tensor(share, dtype=torch.float32, device=target.device)
    return share * to_map(target, classes) + (1 - share) * to_map(partner, classes)

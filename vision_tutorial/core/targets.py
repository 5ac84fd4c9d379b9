"""Class ids <-> class maps: the one place where a target changes form.

Class ids are integers (B, *S) with `IGNORE` where nothing counts. A class map is float (B, C, *S),
one distribution over C classes per position; it is all zero where nothing counts.
"""

import torch
from torch import Tensor

# Not segmentation's 255, which is a real class id in ImageNet; masks are translated when they load.
IGNORE = -100
VOID = 255  # where nothing counts in a mask uint8, as it lies in files


def is_map(target: Tensor) -> bool:
    """Whether `target` is a class map (floating point) rather than class ids."""
    return target.is_floating_point()


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


def sampled(values: Tensor, size: int) -> Tensor:
    """(…, H, W) -> (…, size, size) by nearest neighbours, pixel ⌊i·H/size⌋, as OpenCV and torch's
    `interpolate` choose it; the same pixels of logits and of ids."""
    rows, columns = (
        (torch.arange(size, device=values.device) * side).div(size, rounding_mode="floor")
        for side in values.shape[-2:]
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

"""CutMix and Mixup with a share (and box) of its own for each image, or each pair of mirrors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import targets
from ..core.randomness import address
from .augmentation.operation import RandomStream

ATTEMPTS = 64  # of a gamma; one in twenty fails, at most


@dataclass(frozen=True)
class Each:
    """A mixer by name (`cutmix`, or one that blends), its Beta's alpha, and how often it mixes."""

    name: str
    alpha: float
    p: float


def mix_each(
    terms: Sequence[Each],
    weights: np.ndarray,
    in_pairs: bool,
    images: Tensor,
    target: Tensor,
    classes: int,
    seed: int,
    step: int,
    items: Tensor,
) -> tuple[Tensor, Tensor]:
    """images uint8 (B, C, H, W), target ids or map -> mixed images, class map (B, classes, *S).

    items int64 (B, 2): the address of each image's draws. in_pairs: mirrors share their draws.
    Masks stay class ids if CutMix is all there is.
    """
    draws = RandomStream(owners(items.numpy(), in_pairs), address(seed, "mix"))
    u = draws(4)
    which = np.searchsorted(np.cumsum(weights)[:-1], u[:, 0], side="right")
    share = beta(draws, np.array([term.alpha for term in terms])[which])
    share[u[:, 1] >= np.array([term.p for term in terms])[which]] = 1.0
    cuts = np.array([term.name == "cutmix" for term in terms])[which]
    inside = boxes(images.shape[-2:], np.where(cuts, share, 1.0), u[:, 2:]).to(images.device)
    mixed = torch.where(inside, images.flip(0), images)
    blended = torch.from_numpy(np.flatnonzero(~cuts & (share < 1))).to(images.device)
    part = torch.from_numpy(share.astype(np.float32)).to(images.device)[blended, None, None, None]
    one, other = images[blended].float(), images.flip(0)[blended].float()
    mixed[blended] = (one * part + other * (1 - part)).round_().to(images.dtype)
    if targets.is_spatial(target) and all(term.name == "cutmix" for term in terms):
        return mixed, targets.paste(target, target.flip(0), ~inside[:, 0])
    kept = 1 - inside.float()
    kept[blended] = part
    if not targets.is_spatial(target):
        kept = kept.mean((-2, -1))  # one label for the image: by area
    return mixed, targets.mix(target, target.flip(0), kept, classes)


def owners(items: np.ndarray, in_pairs: bool) -> np.ndarray:
    """Whose draws each image takes: its own, or those of the first, by index, of its pair."""
    mirror = items[::-1]
    return np.where(in_pairs & (mirror[:, 1:] < items[:, 1:]), mirror, items)


def boxes(size: tuple[int, int], share: np.ndarray, centres: np.ndarray) -> Tensor:
    """Where the mirror shows: bool (B, 1, H, W), H·√(1-share) x W·√(1-share) around centres."""
    lines = []
    for length, u in zip(size, centres.T, strict=True):
        half = (length * np.sqrt(1 - share)).astype(np.int64) // 2
        centre = (u * length).astype(np.int64)
        place = np.arange(length)
        lines.append((place >= (centre - half)[:, None]) & (place < (centre + half)[:, None]))
    return torch.from_numpy(lines[0][:, None, :, None] & lines[1][:, None, None, :])


def beta(draws: RandomStream, alpha: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) for each image, float64 (B,): of two gammas, the first one's share."""
    one, other = gamma(draws, alpha, 1), gamma(draws, alpha, 2)
    return one / (one + other)


def gamma(draws: RandomStream, alpha: np.ndarray, lane: int) -> np.ndarray:
    """Gamma(alpha) for each image (Marsaglia and Tsang 2000); attempts take every other block."""
    raised = np.where(alpha < 1, alpha + 1, alpha)
    d = raised - 1 / 3
    found = np.ones(len(alpha))
    left = np.arange(len(alpha))
    for attempt in range(ATTEMPTS):
        u = draws.of(left)(4, block=2 * attempt + lane)
        x = np.sqrt(-2 * np.log1p(-u[:, 0])) * np.cos(2 * np.pi * u[:, 1])
        v = (1 + x / np.sqrt(9 * d[left])) ** 3
        safe = np.maximum(v, 1e-300)
        bound = x**2 / 2 + d[left] * (1 - v + np.log(safe))
        good = (v > 0) & (np.log1p(-u[:, 2]) < bound)
        rows = left[good]
        lift = np.where(alpha[rows] < 1, (1 - u[good, 3]) ** (1 / alpha[rows]), 1.0)
        found[rows] = d[rows] * v[good] * lift
        left = left[~good]
        if not len(left):
            break
    return np.maximum(found, 1e-300)  # of a very small alpha, both may be 0

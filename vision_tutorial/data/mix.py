"""CutMix and Mixup: batches in which each image meets its mirror, sample i and sample B-1-i.

In mode `batch` every draw is addressed by (seed, step) and is the same for the whole global batch;
in modes `pair` and `elem` it is a pair's or an image's own, by its address. Either way a part of
the batch that keeps mirror pairs together (a process's share, a micro-batch) is mixed as the whole
would be. The modes are timm's.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import task as targets
from ..core.errors import UserError, check_range
from ..core.randomness import address, generator
from ..core.registry import mixers
from ..recipe.grammar import Term
from .augmentation.operation import RandomStream

Share = Tensor | float
ATTEMPTS = 64  # of a gamma; one in twenty fails, at most


@mixers.register
def cutmix(
    images: Tensor,
    rng: np.random.Generator,
    *,
    alpha: float = 1.0,
    p: float = 1.0,
    mode: Literal["batch", "pair", "elem"] = "batch",
) -> tuple[Tensor, Share]:
    """Paste one box of the mirror image into every image (Yun et al. 2019).

    images (B, C, H, W) of any type -> images, and 1.0, or which pixels are kept: bool (1, 1, H, W).
    The box has H·√(1-λ) x W·√(1-λ) pixels, λ ~ Beta(alpha, alpha), around a
    uniform centre, clipped; p is the probability that a batch is mixed at all. mode: one λ and box
    for the batch, for each mirror pair, or for each image.
    """
    if rng.random() >= p:
        return images, 1.0
    share, size = rng.beta(alpha, alpha), images.shape[-2:]
    rows, columns = (slice(*box_ends(side, share, rng.integers(side))) for side in size)
    mixed = images.clone()
    mixed[..., rows, columns] = images[..., rows, columns].flip(0)
    kept = torch.ones(1, 1, *size, dtype=torch.bool, device=images.device)
    kept[..., rows, columns] = False
    return mixed, kept


@mixers.register
def mixup(
    images: Tensor,
    rng: np.random.Generator,
    *,
    alpha: float = 1.0,
    p: float = 1.0,
    mode: Literal["batch", "pair", "elem"] = "batch",
) -> tuple[Tensor, Share]:
    """Blend every image with its mirror, rounded to whole grey levels (Zhang et al. 2018).

    images uint8 (B, C, H, W) -> images, and the share λ ~ Beta(alpha, alpha) that each image
    keeps; p is the probability that a batch is mixed at all. mode: one λ for the batch, for each
    mirror pair, or for each image.
    """
    if rng.random() >= p:
        return images, 1.0
    share = float(rng.beta(alpha, alpha))
    blend = images.float() * share + images.flip(0).float() * (1 - share)
    return blend.round_().to(images.dtype), share


def box_ends(
    length: int, share: float | np.ndarray, centre: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 of CutMix's rows or columns: length·√(1-share) around `centre`, clipped.

    As in the paper's code and timm up to 1.0.30: half a side is cut // 2, so sides are even; timm
    1.0.31 gives odd ones their last pixel back.
    """
    half = (length * np.sqrt(1 - share)).astype(np.int64) // 2
    return np.maximum(centre - half, 0), np.minimum(centre + half, length)


class Mix:
    """A recipe's mixers as one function.

    Each batch (or each image, by their mode) is given to one of them, drawn by weight, and its
    class ids become a class map. No terms: nothing is mixed. UserError for a bad option, modes that
    differ, or weights that are all zero.
    """

    def __init__(self, terms: Sequence[Term] | None):
        self.terms = terms or ()
        if not terms:
            return
        weights = np.array([term.weight for term in terms], dtype=np.float64)
        if not weights.sum() > 0:
            raise UserError("mix: every weight is 0; give one of them more, or leave `mix` out.")
        self.weights = weights / weights.sum()
        self.mixers = [mixers.build(term.name, **term.options) for term in terms]
        modes = set()
        for term, mixer in zip(terms, self.mixers, strict=True):
            timms = term.name in ("cutmix", "mixup")
            if timms:
                check_range(term.name, "(0, inf)", alpha=term.options.get("alpha", 1.0))
                check_range(term.name, "[0, 1]", p=term.options.get("p", 1.0))
            # of a mixer of one's own, `mode` means nothing here
            modes.add(term.options.get("mode", "batch") if timms else "batch")
            # a bad option of its own shows now and not in the first batch
            mixer(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), generator(0, "probe"))
        if len(modes) > 1:
            named = " and ".join(sorted(modes))
            raise UserError(f"mix: modes {named} do not go together; use one.")
        (self.mode,) = modes

    def __call__(
        self,
        images: Tensor,
        target: Tensor,
        classes: int,
        seed: int,
        step: int,
        items: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """images uint8 (B, C, H, W), target ids (B, *S) -> mixed, class map (B, classes, *S).

        items int64 (B, 2): (epoch, index) of each image, for modes `pair` and `elem`. Masks are
        pasted as pixels are, and stay class ids, unless two labels are blended.
        """
        if not self.terms:
            return images, target
        if self.mode == "batch":
            rng = generator(seed, step, "mix")
            mixer = self.mixers[rng.choice(len(self.mixers), p=self.weights)]
            images, share = mixer(images, rng)
        else:
            images, share = self._each(images, items.numpy(), address(seed, "mix"))
        if target.ndim > 1:
            if not isinstance(share, Tensor) and share == 1:
                return images, target
            if isinstance(share, Tensor) and share.dtype == torch.bool:
                return images, target.where(share[:, 0], target.flip(0))
        elif isinstance(share, Tensor):
            share = share.float().mean((-2, -1))  # one label for the image: by area
        if not isinstance(share, Tensor):
            share = float(np.float32(share))  # a number of the host's, but float32's
        own = targets.to_map(target, classes)
        return images, share * own + (1 - share) * own.flip(0)

    def _each(self, images: Tensor, items: np.ndarray, key: int) -> tuple[Tensor, Tensor]:
        """A mixer, a share and a box for each image or pair: images, and what they keep: bool
        (B, 1, H, W) if CutMix is all there is, else float."""
        if self.mode == "pair":  # mirrors share the draws of the one that is first by index
            items = np.where(items[::-1, 1:] < items[:, 1:], items[::-1], items)
        draws = RandomStream(items, key)
        u = draws(4)
        which = np.searchsorted(np.cumsum(self.weights)[:-1], u[:, 0], side="right")
        alpha, p = (
            np.array([term.options.get(name, 1.0) for term in self.terms])[which]
            for name in ("alpha", "p")
        )
        share = beta(draws, alpha)
        share[u[:, 1] >= p] = 1.0
        cuts = np.array([term.name == "cutmix" for term in self.terms])[which]
        lines, device = [], images.device
        for length, middle in zip(images.shape[-2:], u[:, 2:].T, strict=True):
            centre, place = (middle * length).astype(np.int64), np.arange(length)
            first, last = box_ends(length, np.where(cuts, share, 1.0), centre)
            lines.append((place >= first[:, None]) & (place < last[:, None]))
        box = lines[0][:, None, :, None] & lines[1][:, None, None, :]
        inside = targets.to_device(box, device)
        mixed = torch.where(inside, images.flip(0), images)
        if all(term.name == "cutmix" for term in self.terms):
            return mixed, ~inside
        blended = targets.to_device(np.flatnonzero(~cuts & (share < 1)), device)
        part = targets.to_device(share.astype(np.float32), device)[blended, None, None, None]
        one, other = images[blended].float(), images.flip(0)[blended].float()
        mixed[blended] = (one * part + other * (1 - part)).round_().to(images.dtype)
        kept = 1 - inside.float()
        kept[blended] = part
        return mixed, kept


def beta(draws: RandomStream, alpha: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) for each image, float64 (B,): of two gammas, the first one's share."""
    one, other = _gamma(draws, alpha, 1), _gamma(draws, alpha, 2)
    return one / (one + other)


def _gamma(draws: RandomStream, alpha: np.ndarray, lane: int) -> np.ndarray:
    """Gamma(alpha) for each image (Marsaglia and Tsang 2000); attempts take every other block."""
    d = np.where(alpha < 1, alpha + 1, alpha) - 1 / 3
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

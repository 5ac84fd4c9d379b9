"""CutMix and Mixup: batches in which each image meets its mirror, sample i and sample B-1-i.

In mode `batch` every draw is addressed by (seed, step) and is the same for the whole global batch;
in modes `pair` and `elem` it is a pair's or an image's own, by its address. Either way a part of
the batch that keeps mirror pairs together (a process's share, a micro-batch) is mixed as the whole
would be. The modes are timm's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import task as targets
from ..core.errors import UserError
from ..core.randomness import address, generator
from ..core.registry import mixers
from ..recipe.grammar import Term
from .augmentation.operation import RandomStream, check, check_name

Share = Tensor | float
Mixer = Callable[[Tensor, np.random.Generator], tuple[Tensor, Share]]
# images, target, classes, seed, step, items -> images, target
Mix = Callable[[Tensor, Tensor, int, int, int, Tensor | None], tuple[Tensor, Tensor]]
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
    for the batch, for each mirror pair, or for each image. UserError for an option out of range.
    """
    _check_options("cutmix", alpha, p, mode)
    if rng.random() >= p:
        return images, 1.0
    rows, columns = draw_box(*images.shape[-2:], rng.beta(alpha, alpha), rng)
    mixed = images.clone()
    mixed[..., rows, columns] = images[..., rows, columns].flip(0)
    kept = torch.ones(1, 1, *images.shape[-2:], dtype=torch.bool, device=images.device)
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
    mirror pair, or for each image. UserError if alpha or p are out of range.
    """
    _check_options("mixup", alpha, p, mode)
    if rng.random() >= p:
        return images, 1.0
    share = float(rng.beta(alpha, alpha))
    blend = images.float() * share + images.flip(0).float() * (1 - share)
    return blend.round_().to(images.dtype), share


def draw_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """CutMix's rows and columns, as in the paper's code and timm up to 1.0.30.

    Half a side is cut // 2, so sides are even; timm 1.0.31 gives odd ones their last pixel back.
    """
    sides = []
    for length in (height, width):
        half = int(length * np.sqrt(1 - share)) // 2
        centre = int(rng.integers(length))
        sides.append(slice(max(centre - half, 0), min(centre + half, length)))
    return sides[0], sides[1]


def _check_options(entry: str, alpha: float, p: float, mode: str) -> None:
    check_name(f"mode of {entry}", mode, ("batch", "pair", "elem"))
    if not alpha > 0:
        raise UserError(f"{entry}: alpha is {alpha}; use more than 0, or leave {entry} out of mix.")
    check(entry, "p", p, 0, 1)


def mix(terms: Sequence[Term] | None) -> Mix:
    """A recipe's mixers as one function, a `Mix`.

    Each batch (or each image, by their mode) is given to one of them, drawn by weight, and its
    class ids become a class map. No terms: nothing is mixed. UserError for a bad option, modes that
    differ, or weights that are all zero.
    """
    if not terms:
        return leave
    weights = np.array([term.weight for term in terms], dtype=np.float64)
    if not weights.sum() > 0:
        raise UserError("mix: every weight is 0; give one of them more, or leave `mix` out.")
    bound = [mixers.build(term.name, **term.options) for term in terms]
    for mixer in bound:  # so that a bad option shows now and not in the first batch
        mixer(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), generator(0, "probe"))
    # of a mixer of one's own, `mode` means nothing here
    timms = ("cutmix", "mixup")
    modes = {t.options.get("mode", "batch") if t.name in timms else "batch" for t in terms}
    if len(modes) > 1:
        raise UserError(f"mix: modes {' and '.join(sorted(modes))} do not go together; use one.")
    if modes == {"batch"}:
        return partial(_mix_batch, bound, weights / weights.sum())
    return partial(_mix_each, terms, weights / weights.sum(), modes == {"pair"})


def leave(
    images: Tensor,
    target: Tensor,
    classes: int,
    seed: int,
    step: int,
    items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix nothing: the images and class ids as they are."""
    return images, target


def _mix_batch(
    choices: Sequence[Mixer],
    probabilities: np.ndarray,
    images: Tensor,
    target: Tensor,
    classes: int,
    seed: int,
    step: int,
    items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """images uint8 (B, C, H, W), target ids or map -> mixed images, class map (B, classes, *S).

    Masks are pasted as pixels are, and stay class ids, unless two labels are blended.
    """
    rng = generator(seed, step, "mix")
    mixer = choices[rng.choice(len(choices), p=probabilities)]
    images, share = mixer(images, rng)
    if targets.is_spatial(target):
        if not isinstance(share, Tensor) and share == 1:
            return images, target
        if isinstance(share, Tensor) and share.dtype == torch.bool:
            return images, targets.paste(target, target.flip(0), share[:, 0])
    elif isinstance(share, Tensor):
        share = share.float().mean((-2, -1))  # one label for the image: by area
    return images, targets.mix(target, target.flip(0), share, classes)


# -- a share and a box for each image, or for each pair ------------------------------------------


def _mix_each(
    terms: Sequence[Term],
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
    own = items.numpy()
    first_of_pair = np.where(own[::-1, 1:] < own[:, 1:], own[::-1], own)  # by index
    draws = RandomStream(first_of_pair if in_pairs else own, address(seed, "mix"))
    u = draws(4)
    which = np.searchsorted(np.cumsum(weights)[:-1], u[:, 0], side="right")
    alpha, p = (
        np.array([term.options.get(name, 1.0) for term in terms])[which] for name in ("alpha", "p")
    )
    share = beta(draws, alpha)
    share[u[:, 1] >= p] = 1.0
    cuts = np.array([term.name == "cutmix" for term in terms])[which]
    inside = _boxes(images.shape[-2:], np.where(cuts, share, 1.0), u[:, 2:]).to(images.device)
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


def _boxes(size: tuple[int, int], share: np.ndarray, centres: np.ndarray) -> Tensor:
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
    one, other = _gamma(draws, alpha, 1), _gamma(draws, alpha, 2)
    return one / (one + other)


def _gamma(draws: RandomStream, alpha: np.ndarray, lane: int) -> np.ndarray:
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

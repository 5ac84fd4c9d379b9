"""Image and mask together, one pair at a time: for sources in files, and any chain of entries.

Operations with a batched form draw batched ops: the image takes them all, the mask those that move
pixels. Others touch the image alone and must leave its pixels in their places. What a pair becomes
is a function of the seed and its (epoch, index).
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.errors import UserError
from ...core.randomness import address
from ...recipe.grammar import Choice
from ..executors.dispatch import carry_out, carry_out_masks
from ..loader import Item, seed_generators
from .operation import AugmentationPlan, in_words, keyed

ALONE = np.zeros(1, np.int64)  # the rows of a batch of one


def joint(
    chain: Sequence[Choice], seed: int
) -> Callable[[Image.Image, np.ndarray, Item], tuple[Tensor, np.ndarray]]:
    """The joint form of a chain, but for what acts on the normalised image.

    What is returned makes of an image and its mask uint8 (H, W) the image uint8 (3, h, w) and the
    mask (h, w). UserError names an entry that would move pixels without telling where to.
    """
    steps = []
    for key, choice, made in keyed(chain, seed):
        if made.stage == "image" and not made.sample:
            raise UserError(
                f"{in_words(choice)} has no form for masks. Take rotate, random_scale, "
                "hflip and color_jitter, or rand_augment or trivial_augment; an entry of your own "
                'that moves no pixel says so with stage = "colour".'
            )
        if made.stage != "tensor":
            steps.append((key, made))
    parts: list[AugmentationPlan | tuple[int, Callable]] = []
    for sampled, group in groupby(steps, lambda step: bool(step[1].sample)):
        if sampled:
            parts.append(AugmentationPlan(tuple((key, made.sample) for key, made in group)))
        else:
            parts += [(key, made.reference) for key, made in group]

    def augment(image: Image.Image, mask: np.ndarray, item: Item) -> tuple[Tensor, np.ndarray]:
        pixels = np.array(image)
        for part in parts:
            if isinstance(part, AugmentationPlan):
                ops = part.ops(np.array([item]), pixels.shape[:2])
                made = carry_out(pixels[None], ALONE, ops, threads=1)[0]
                pixels = made.permute(1, 2, 0).numpy()
                mask = carry_out_masks(mask[None], ALONE, ops)[0]
            else:
                key, transform = part
                seed_generators(address(key, *item))
                pixels = np.array(transform(Image.fromarray(pixels)))
        return torch.from_numpy(pixels).permute(2, 0, 1), mask

    return augment

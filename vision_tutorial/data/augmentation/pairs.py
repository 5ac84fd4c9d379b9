"""Image and mask together, one pair at a time: for sources in files, and any chain of entries.

Operations with a batched form draw batched ops: the image takes them all, the mask those that move
pixels. Others touch the image alone and must leave its pixels in their places. What a pair becomes
is a function of the seed and its (epoch, index).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.errors import UserError
from ...core.randomness import address
from ...recipe.grammar import Choice
from ..executors.dispatch import carry_out, carry_out_masks
from ..loader import Item, seed_generators
from .operation import AugmentationPlan, in_words, operation, stream_key

ALONE = np.zeros(1, np.int64)  # the rows of a batch of one


@dataclass(frozen=True)
class Joint:
    """A chain for one image and its mask; each part with the key of its draws."""

    parts: tuple[AugmentationPlan | tuple[int, Callable], ...]

    def __call__(
        self, image: Image.Image, mask: np.ndarray, item: Item
    ) -> tuple[Tensor, np.ndarray]:
        """Image uint8 (3, h, w), mask uint8 (h, w)."""
        pixels = np.array(image)
        for part in self.parts:
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


def joint(chain: Sequence[Choice], seed: int) -> Joint:
    """The joint form of a chain, but for what acts on the normalised image.

    UserError names an entry that would move pixels without telling where to.
    """
    sampled, parts = [], []
    for place, choice in enumerate(chain):
        made, key = operation(choice), stream_key(seed, place, choice.name)
        if sample := made.sample or made.sample_one:
            sampled.append((key, sample))
            continue
        if made.stage == "tensor":
            continue
        if made.stage != "colour":
            raise UserError(
                f"{in_words(choice)} has no form for masks. Take rotate, random_scale, "
                "hflip and color_jitter, or rand_augment or trivial_augment; an entry of your own "
                'that moves no pixel says so with stage = "colour".'
            )
        if sampled:
            parts.append(AugmentationPlan(tuple(sampled)))
        sampled = []
        parts.append((key, made.reference))
    if sampled:
        parts.append(AugmentationPlan(tuple(sampled)))
    return Joint(tuple(parts))

"""Image and mask together, one pair at a time: for sources in files, and any chain of entries.

Entries that have a batched form (`drawing.py`) are drawn as slots: the image takes them all, the
mask those that move pixels (`masks.py`). Others touch the image alone and must leave its pixels
in their places. What a pair becomes is a function of the seed and its (epoch, index).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.errors import UserError
from ...core.randomness import address
from ...core.registry import augments
from ...recipe.grammar import Choice
from ..loader import Item, seed_generators
from ..pipeline import carry_out
from .batched_ops import Op, Slot, slot
from .mask_ops import carried_out
from .sampling import DRAWERS, ERASING, FILTERS, Drawer, Draws, Program, Size

ALONE = np.zeros(1, np.int64)  # the rows of a batch of one
Step = Drawer | Callable[[Image.Image], Image.Image]


def random_scale(*, scale: Sequence[float], interpolation: str) -> Drawer:
    """Both sides by one factor. No batched form: every image has a size of its own."""

    def draw(draws: Draws, source: Size) -> list[Slot]:
        factor = scale[0] + (scale[1] - scale[0]) * draws(1).item()
        size = tuple(max(1, round(factor * side)) for side in source)
        return [slot(1, Op.RESAMPLE, size, 0, 0, *source, int(FILTERS[interpolation]))]

    return draw


@dataclass(frozen=True)
class Joint:
    """A chain for one image and its mask; each part with the key of its draws."""

    parts: tuple[Program | tuple[int, Callable], ...]

    def __call__(
        self, image: Image.Image, mask: np.ndarray, item: Item
    ) -> tuple[Tensor, np.ndarray]:
        """Image uint8 (3, h, w), mask uint8 (h, w)."""
        pixels = np.array(image)
        for part in self.parts:
            if isinstance(part, Program):
                slots = part.slots(np.array([item]), pixels.shape[:2])
                made = carry_out(pixels[None], ALONE, slots, threads=1)[0]
                pixels = made.permute(1, 2, 0).numpy()
                mask = carried_out(mask[None], ALONE, slots)[0]
            else:
                key, transform = part
                seed_generators(address(key, *item))
                pixels = np.array(transform(Image.fromarray(pixels)))
        return torch.from_numpy(pixels).permute(2, 0, 1), mask


def joint(chain: Sequence[Choice], seed: int) -> Joint:
    """The joint form of a chain, but for what acts on the normalised image.

    UserError names an entry that would move pixels without telling where to.
    """
    steps = [
        (address(seed, place, choice.name, "pictures"), step(choice))
        for place, choice in enumerate(chain)
        if choice.name not in ERASING
    ]
    parts = []
    for stage, some in groupby(steps, lambda pair: getattr(pair[1], "stage", "drawn")):
        if stage == "drawn":
            parts.append(Program(tuple(some), ()))
        elif stage == "colour":
            parts += some
    return Joint(tuple(parts))


def step(choice: Choice) -> Step:
    """What draws an entry's slots, or the entry's own transform."""
    form = {**DRAWERS, "random_scale": random_scale}.get(choice.name)
    drawer = form(**choice.options) if form else None
    if drawer is not None:
        return drawer
    transform = augments.build(choice.name, **choice.options)()
    if getattr(transform, "stage", "image") == "image":
        shown = ", ".join(f"{key}: {value}" for key, value in choice.options.items())
        raise UserError(
            f"augment: {choice.name} ({shown}) has no form for masks. Take rotate, random_scale, "
            "hflip and color_jitter, or rand_augment or trivial_augment; an entry of your own "
            'that moves no pixel says so with stage = "colour".'
        )
    return transform

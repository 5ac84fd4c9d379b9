"""Masks as images: a palette that every viewer shows, and overlays."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..core.atomic import make_folder, replacing
from ..core.task import VOID

# uint8 (256, 3): PASCAL VOC's colours, class 0 black, 255 nearly white. Bits 0, 3, 6 of a class id
# are the highest bits of red, bits 1, 4, 7 of green, 2, 5 of blue.
_BITS = (np.arange(256)[:, None, None] >> np.arange(9).reshape(3, 3)) & 1  # (id, place, channel)
PALETTE = (_BITS << np.array([[7], [6], [5]])).sum(1).astype(np.uint8)


def image_of(mask: np.ndarray) -> Image.Image:
    """Class ids uint8 (H, W) as a palette image: the numbers stay what they are."""
    made = Image.fromarray(mask)
    made.putpalette(PALETTE.tobytes())
    return made


def overlay(image: np.ndarray, mask: np.ndarray, strength: float = 0.5) -> Image.Image:
    """The image uint8 (H, W, 3) with each class's colour laid over it, and white outlines.

    mask uint8 (H, W). Class 0 and void pixels are left as they are.
    """
    shown = (mask != 0) & (mask != VOID)
    mixed = image * (1 - strength) + PALETTE[mask] * strength
    made = np.where(shown[..., None], mixed, image)
    rim = np.zeros_like(shown)
    rim[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    rim[1:] |= mask[1:] != mask[:-1]
    made[rim] = 255
    return Image.fromarray(made.round().astype(np.uint8))


def save(image: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    make_folder(path.parent)
    with replacing(path) as temporary:
        image.save(temporary, "PNG")

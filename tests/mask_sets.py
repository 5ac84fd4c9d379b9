"""Small sets of images and masks in files, and what is asked of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.sources import Source

SIZE = (6, 4)  # width, height


def drawn(folder: Path, masks: Path, name: str, ids: list[int], size=SIZE, seed: int = 0) -> None:
    """An image of noise, losslessly, and its mask of these ids."""
    rng = np.random.default_rng([seed, *name.encode()])
    for parent in ((folder / name).parent, (masks / name).parent):
        parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    mask = rng.choice(np.array(ids, np.uint8), size[::-1])
    mask.flat[: len(ids)] = ids
    Image.fromarray(mask).save((masks / name).with_suffix(".png"))


def same(one: Source, other: Source) -> None:
    """Equal images, masks, names, digest."""
    assert len(one) == len(other) and one.digest() == other.digest()
    assert (one.name, one.classes, one.dense) == (other.name, other.classes, other.dense)
    assert one.targets.tolist() == other.targets.tolist()
    for index in range(len(one)):
        (image, mask), (image_, mask_) = one[index], other[index]
        assert image.mode == image_.mode == "RGB" and mask.dtype == mask_.dtype == np.uint8
        assert image.tobytes() == image_.tobytes() and one.key(index) == other.key(index)
        np.testing.assert_array_equal(mask, mask_)


def refused(entry, split: str = "train", **options) -> str:
    """The one line that the entry answers with."""
    with pytest.raises(UserError) as caught:
        entry(split, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message

"""Images in two sets: trained on pseudo labels of evaluation images, scores mean little."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple

import numpy as np

_Named = tuple[str, np.ndarray]  # an image uint8 (H, W, 3) and its file's name


class LeakedImage(NamedTuple):
    """An unlabelled image that an evaluation image resembles, and in what."""

    name: str
    evaluation: str
    same: Literal["pixels", "name"]


def leaked_images(unlabelled: Iterable[_Named], evaluation: Iterable[_Named]) -> list[LeakedImage]:
    """Which unlabelled images have the pixels of an evaluation image, or else its name.

    Pixels are compared by SHA-256 after decoding, so that another file format hides nothing, but
    another size or JPEG quality does; names without folder and ending. One image at a time is
    held in memory.
    """
    by_pixels, by_name = {}, {}
    for name, image in evaluation:
        by_pixels[_digest(image)] = by_name[PurePath(name).stem] = name
    found = []
    for name, image in unlabelled:
        if other := by_pixels.get(_digest(image)):
            found.append(LeakedImage(name, other, "pixels"))
        elif other := by_name.get(PurePath(name).stem):
            found.append(LeakedImage(name, other, "name"))
    return found


def leak_warning(found: Sequence[LeakedImage]) -> str | None:
    """One line for the person who makes pseudo labels; None if there are none."""
    if not found:
        return None
    pixels = sum(leak.same == "pixels" for leak in found)
    first = found[0]
    return (
        f"{len(found)} of the unlabelled images are among the evaluation images ({pixels} by "
        f"their pixels, {len(found) - pixels} by name only), such as {first.name} "
        f"({first.evaluation}); trained on them, scores there mean little. Leave them out."
    )


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    return digest.digest()

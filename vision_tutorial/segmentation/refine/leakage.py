"""Pictures in two sets: trained on pseudo labels of evaluation pictures, scores mean little."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple

import numpy as np

Named = tuple[str, np.ndarray]  # a picture uint8 (H, W, 3) and its file's name


class Twin(NamedTuple):
    """An unlabelled picture that an evaluation picture resembles, and in what."""

    name: str
    evaluation: str
    same: Literal["pixels", "name"]


def twins(unlabelled: Iterable[Named], evaluation: Iterable[Named]) -> list[Twin]:
    """Which unlabelled pictures have the pixels of an evaluation picture, or else its name.

    Pixels are compared by SHA-256 after decoding, so that another file format hides nothing, but
    another size or JPEG quality does; names without folder and ending. One picture at a time is
    held in memory.
    """
    by_pixels, by_name = {}, {}
    for name, picture in evaluation:
        by_pixels[_digest(picture)] = by_name[PurePath(name).stem] = name
    found = []
    for name, picture in unlabelled:
        if other := by_pixels.get(_digest(picture)):
            found.append(Twin(name, other, "pixels"))
        elif other := by_name.get(PurePath(name).stem):
            found.append(Twin(name, other, "name"))
    return found


def about_twins(found: Sequence[Twin]) -> str | None:
    """One line about the twins for the person who makes pseudo labels; None if there are none."""
    if not found:
        return None
    pixels = sum(twin.same == "pixels" for twin in found)
    first = found[0]
    return (
        f"{len(found)} of the unlabelled pictures are among the evaluation pictures ({pixels} by "
        f"their pixels, {len(found) - pixels} by name only), such as {first.name} "
        f"({first.evaluation}); trained on them, scores there mean little. Leave them out."
    )


def _digest(picture: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{picture.shape}".encode())
    digest.update(np.ascontiguousarray(picture))
    return digest.digest()

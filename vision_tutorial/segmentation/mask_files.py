"""Sources of segmentation: images in files with a mask each, and two sources as one."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..core.errors import UserError
from ..core.images import VOID, read_image, read_mask
from ..core.sources import Source
from .coco_masks import Drawn


@dataclass(frozen=True)
class MaskFiles:
    """Masks in PNG files, of `classes` classes; `void` is an id of theirs that does not count."""

    paths: Sequence[Path]
    classes: int
    void: int | None = None

    def __getitem__(self, index: int) -> np.ndarray:
        return read_mask(self.paths[index], self.classes, self.void)

    def digest(self) -> str:
        names = (path.name for path in self.paths)
        return _digest(f"{self.classes} {self.void}", names, self.paths)


@dataclass(frozen=True)
class DenseFiles:
    """Images in files and their masks, decoded when asked for."""

    name: str
    paths: Sequence[Path]
    keys: Sequence[str]
    classes: tuple[str, ...]
    masks: MaskFiles | Drawn
    dense: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= VOID:
            raise UserError(
                f"{self.name}: {len(self.classes)} classes; masks of 8 bits hold 1 to {VOID}, "
                "beside the id where nothing counts. Merge or drop some."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, mask = read_image(self.paths[index]), self.masks[index]
        if mask.shape[::-1] != image.size:
            raise UserError(
                f"{self.paths[index]}: {image.width}x{image.height} pixels, its mask or "
                f"annotation has {mask.shape[1]}x{mask.shape[0]}; they belong to another image, "
                "or one of the two was resized. Replace one."
            )
        return image, mask

    @property
    def targets(self) -> np.ndarray:
        """Nothing to keep in shares: a hold-out is drawn at random."""
        return np.zeros(len(self), np.int64)

    def key(self, index: int) -> str:
        return self.keys[index]

    def digest(self) -> str:
        return _digest(self.masks.digest(), self.keys, self.paths)


class Joined:
    """Two sources of the same classes, one behind the other."""

    dense = True

    def __init__(self, name: str, first: Source, second: Source):
        self.name, self.first, self.second = name, first, second
        self.classes = first.classes
        self.targets = np.concatenate([first.targets, second.targets])

    def __len__(self) -> int:
        return len(self.targets)

    def _find(self, index: int) -> tuple[Source, int]:
        split = len(self.first)
        return (self.first, index) if index < split else (self.second, index - split)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        source, place = self._find(index)
        return source[place]

    def key(self, index: int) -> str:
        source, place = self._find(index)
        return source.key(place)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.first.digest()} {self.second.digest()}".encode()).hexdigest()


def _digest(head: str, names: Iterable[str], paths: Sequence[Path]) -> str:
    """A hash of `head`, and of the files' names and sizes."""
    digest = hashlib.sha256(head.encode())
    for name, path in zip(names, paths, strict=True):
        digest.update(f"{name}:{path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()

"""Sources of segmentation: images in files with a mask each, and two sources as one."""

import hashlib
from collections.abc import Sequence
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
        digest = hashlib.sha256(f"{self.classes} {self.void}".encode())
        for path in self.paths:
            digest.update(_line(path.name, path))
        return digest.hexdigest()


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
        digest = hashlib.sha256(self.masks.digest().encode())
        for key, path in zip(self.keys, self.paths, strict=True):
            digest.update(_line(key, path))
        return digest.hexdigest()


@dataclass(frozen=True)
class Joined:
    """Two sources of the same classes, one behind the other."""

    name: str
    first: Source
    second: Source
    dense: ClassVar[bool] = True

    @property
    def classes(self) -> tuple[str, ...]:
        return self.first.classes

    @property
    def targets(self) -> np.ndarray:
        return np.concatenate([self.first.targets, self.second.targets])

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        source, place = self._find(index)
        return source[place]

    def key(self, index: int) -> str:
        source, place = self._find(index)
        return source.key(place)

    def _find(self, index: int) -> tuple[Source, int]:
        split = len(self.first)
        return (self.first, index) if index < split else (self.second, index - split)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.first.digest()} {self.second.digest()}".encode()).hexdigest()


def _line(name: str, path: Path) -> bytes:
    return f"{name}:{path.stat().st_size}\n".encode(errors="surrogateescape")

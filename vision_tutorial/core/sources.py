"""Where pixels come from: pictures in memory or in files, with one target each.

A dataset entry returns a `Source`. The loader asks it for `(picture, target)` by index and never
learns what kind it is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .errors import UserError

MAX_PIXELS = 64_000_000  # a larger picture is a mistake or an attack


class Source(Protocol):
    """Pictures by index."""

    name: str
    classes: tuple[str, ...]
    targets: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """The RGB picture and its target: a class id, or a mask (H, W) of class ids."""

    def digest(self) -> str:
        """A hash of the data itself (or of names and sizes, for files), for the fingerprint."""


@dataclass(frozen=True)
class ArraySource:
    """Pictures in memory. images uint8 (N, H, W, 3); targets int64 (N,); masks uint8 (N, H, W)."""

    name: str
    images: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    masks: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.targets))
        return digest.hexdigest()


@dataclass(frozen=True)
class FileSource:
    """Pictures in files, decoded when asked for. targets int64 (N,)."""

    name: str
    paths: Sequence[Path]
    targets: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_picture(self.paths[index]), int(self.targets[index])

    def digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.targets))
        for path in self.paths:
            digest.update(f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Subset:
    """Some items of another source, in the given order."""

    source: Source
    indices: np.ndarray

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def targets(self) -> np.ndarray:
        return self.source.targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return self.source[int(self.indices[index])]

    def digest(self) -> str:
        digest = hashlib.sha256(self.source.digest().encode())
        digest.update(np.ascontiguousarray(self.indices, dtype=np.int64))
        return digest.hexdigest()


def read_picture(path: Path) -> Image.Image:
    """Decode the whole file to RGB (Pillow's `verify()` would pass half a JPEG)."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {picture.width}x{picture.height} pixels; at most {MAX_PIXELS:,} "
                    "are read. Make the picture smaller."
                )
            return picture.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        raise UserError(f"{path}: not a readable picture ({error}). Replace or remove it.") from error

"""Where pixels come from: images in memory or in files, with one target each.

A dataset entry returns a `Source`. The loader asks it for `(image, target)` by index and never
learns what kind it is.
"""

import copyreg
import hashlib
import logging
import mmap
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .errors import StorageError, UserError
from .images import VOID, read_image
from .randomness import generator

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Images by index. Several threads may ask at once."""

    name: str
    classes: tuple[str, ...]
    targets: np.ndarray  # int64 (N,): the classes that a hold-out keeps in their shares
    dense: bool  # whether the target of an image is a mask

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """The RGB image, and its class id or mask uint8 (H, W), VOID where nothing counts."""

    def key(self, index: int) -> str:
        """What the image is called: its file's name, or its number."""

    def digest(self) -> str:
        """A hash of the data itself (or of names and sizes, for files), for the fingerprint."""


@dataclass(frozen=True)
class ArraySource:
    """Images in memory, or mapped into it. images uint8 (N, H, W, 3); targets int64 (N,); masks
    uint8 (N, H, W), which are the targets of a `dense` set. known_digest: from a mapped set's
    manifest, which spares reading it through. keys: the images' names, where not numbers."""

    name: str
    images: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    masks: np.ndarray | None = field(default=None, repr=False)
    known_digest: str | None = field(default=None, repr=False)
    dense: bool = False
    keys: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        target = self.masks[index] if self.dense else int(self.targets[index])
        return Image.fromarray(self.images[index]), target

    def key(self, index: int) -> str:
        return self.keys[index] if self.keys else str(index)

    def digest(self) -> str:
        if self.known_digest:
            return self.known_digest
        digest = hashlib.sha256()
        for array in (self.images, self.targets, self.masks):
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def _by_name(array: np.memmap) -> tuple:
    """How a mapped array is sent to another process: as the call that maps its file again, and only
    a piece of one, or one whose file is gone, by value."""
    whole = isinstance(array.base, mmap.mmap) and array.filename
    if not whole or not os.path.exists(array.filename):
        return np.asarray(array).__reduce__()
    return np.memmap, (array.filename, array.dtype, "r", array.offset, array.shape)


copyreg.pickle(np.memmap, _by_name)  # a loader process that is not forked is sent its source


@dataclass(frozen=True)
class FileSource:
    """Images in files, decoded when asked for. targets int64 (N,); dense: masks in which nothing
    counts instead, since there are none."""

    name: str
    paths: Sequence[Path]
    targets: np.ndarray
    classes: tuple[str, ...]
    dense: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        return self.paths[index].name

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = read_image(self.paths[index])
        if self.dense:
            return image, np.full((image.height, image.width), VOID, np.uint8)
        return image, int(self.targets[index])

    def digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.targets))
        for path in self.paths:
            line = f"{path.parent.name}/{path.name}:{path.stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))  # names need not be UTF-8
        return digest.hexdigest()


class Subset:
    """Some items of another source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.name, self.classes, self.dense = source.name, source.classes, source.dense
        self.targets = source.targets[indices]

    def origin(self, index: int) -> tuple[Source, int]:
        """The source and the index there of what stands at `index`."""
        return self.source, int(self.indices[index])

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return self.source[int(self.indices[index])]

    def digest(self) -> str:
        digest = hashlib.sha256(self.source.digest().encode())
        digest.update(np.ascontiguousarray(self.indices, dtype=np.int64))
        return digest.hexdigest()


def base(source: Source) -> Source:
    """What lies under any subsets."""
    while isinstance(source, Subset):
        source = source.source
    return source


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split `source` in two, (the rest, `fraction` of it), each class in its share; by `seed`."""
    n = len(source)
    held = round(fraction * n) if 0 < fraction < 1 else 0
    if not 0 < held < n:
        raise UserError(
            f"cannot hold out {fraction} of {n} items; give a fraction between 0 and 1 that leaves "
            "at least one item on each side."
        )
    chosen = _stratified(source.targets, held, seed, "hold_out")
    return Subset(source, np.setdiff1d(np.arange(n), chosen)), Subset(source, chosen)


def take(source: Source, n: int, seed: int) -> Subset:
    """`n` items of `source`, each class in its share; which ones, `seed` decides."""
    if not 1 <= n <= len(source):
        raise UserError(f"cannot take {n} of {len(source)} items; give 1 to {len(source)}.")
    return Subset(source, _stratified(source.targets, n, seed, "take"))


def _stratified(targets: np.ndarray, n: int, seed: int, purpose: str) -> np.ndarray:
    """Indices of n items in ascending order, int64; each class's count within 1 of its share."""
    classes, counts = np.unique(targets, return_counts=True)
    shares = counts * n
    quotas, remainders = shares // len(targets), shares % len(targets)
    # Who gets the places that are left: the largest remainders; equal ones in an order by seed,
    # or else the first classes would be favoured.
    shuffle = generator(seed, purpose).permutation(len(classes))
    by_need = shuffle[np.argsort(-remainders[shuffle], kind="stable")]
    quotas[by_need[: n - quotas.sum()]] += 1
    chosen = [
        generator(seed, purpose, int(label)).permutation(np.flatnonzero(targets == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def data_root(root: str | None = None) -> Path:
    """The folder of the data sets: `root`, else $VISION_TUTORIAL_DATA, else a cache folder."""
    given = root or os.environ.get("VISION_TUTORIAL_DATA")
    return expanded(given) if given else cache_folder()


def data_folder(root: str) -> Path:
    """The folder `root` if there is one, else the folder of that name among the data sets."""
    path = expanded(root)
    return path if path.is_dir() else data_root() / path  # which is an absolute path itself


def expanded(path: str | Path) -> Path:
    """`path` with `~` as the home folder; as it is for an account without one."""
    return Path(os.path.expanduser(path))


def cache_folder() -> Path:
    """Where data sets lie, and what was made of them: below ~/.cache, or $XDG_CACHE_HOME.

    For an account that cannot write there it is a temporary folder, and a warning says so.
    """
    own = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vision_tutorial"
    if own.is_absolute() and (os.path.isdir(own) or may_write(own)):
        return own
    return _spare(own)


@cache
def _spare(own: Path) -> Path:
    """A temporary folder of this account alone, in place of `own`."""
    try:
        user = getattr(os, "getuid", int)()
        folder = Path(tempfile.gettempdir(), f"vision-tutorial-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        if facts.st_uid != user or facts.st_mode & 0o170022 != stat.S_IFDIR:  # set by another user
            folder = Path(tempfile.mkdtemp(prefix="vision-tutorial-"))
    except OSError as error:
        raise StorageError(
            f"neither {own} nor a temporary folder can be written ({error}). Set XDG_CACHE_HOME or "
            "TMPDIR to a folder that can."
        ) from error
    logger.warning("%s cannot be written: what is kept between runs goes to %s", own, folder)
    return folder


def may_write(path: Path) -> bool:
    """Whether this process may make `path`, or files in it, as far as permissions say."""
    return os.access(next(filter(os.path.exists, (path, *path.parents))), os.W_OK | os.X_OK)


def check_split(split: str) -> None:
    """Refuse any split but "train" and "test"."""
    if split not in ("train", "test"):
        raise UserError(f"no split called '{split}'; a data set has 'train' and 'test'.")

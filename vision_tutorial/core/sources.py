"""Where pixels come from: images in memory or in files, with one target each.

A dataset entry returns a `Source`. The loader asks it for `(image, target)` by index and never
learns what kind it is.
"""

import copyreg
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image
from rich.console import Console
from rich.progress import track

from .atomic import write_json
from .errors import StorageError, UserError, all_at_once, short, some
from .folders import cache_folder
from .images import MAX_PIXELS, VOID, formats, pages, read_image, said_of
from .processes import usable_cores
from .randomness import generator

_DECODED = 2 << 30  # bytes of files up to which all are decoded before a training
_SLOW = 0.5  # seconds from which on the outcome of a check is remembered


class Source(Protocol):
    """Images by index. Several threads may ask at once."""

    name: str
    classes: tuple[str, ...]
    targets: np.ndarray  # int64 (N,): the classes that a hold-out keeps in their shares
    dense: bool  # whether the target of an image is a mask
    notices: tuple[str, ...]  # what is to be said of the data before it is used
    left_out: tuple[str, ...]  # files that could not be read and were left out, as was asked for

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
    notices: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

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
    counts instead, since there are none. root: images are called by their paths from there."""

    name: str
    paths: Sequence[Path]
    targets: np.ndarray
    classes: tuple[str, ...]
    dense: bool = False
    root: Path | None = None
    notices: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        path = self.paths[index]
        return Path(os.path.relpath(path, self.root)).as_posix() if self.root else path.name

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = read_image(self.paths[index])
        if self.dense:
            return image, np.full((image.height, image.width), VOID, np.uint8)
        return image, int(self.targets[index])

    def checked(
        self, who: str, skipped: Mapping[str, int], skip: bool, *option: str
    ) -> "FileSource":
        """Without the files that cannot be read, which are a UserError unless `skip`; see
        `check_readable`. skipped: of `images_in`, to be said."""
        names = [self.key(index) for index in range(len(self))]
        files = [(path,) for path in self.paths]
        good, said = check_readable(who, files, names, skipped, skip, *option)
        paths = [self.paths[index] for index in good]
        return replace(self, paths=paths, targets=self.targets[good], **said)

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
        self.notices, self.left_out = notices(source), getattr(source, "left_out", ())

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


def origins(source: Source) -> list[tuple[Source, int]]:
    """Of each item what lies under subsets and joints: the source that has it, and its index."""
    found = []
    for index in range(len(source)):
        leaf = source
        while hasattr(leaf, "origin"):
            leaf, index = leaf.origin(index)
        found.append((leaf, index))
    return found


def leaves(source: Source) -> list[Source]:
    """The sources that `origins` names."""
    return list({id(leaf): leaf for leaf, _ in origins(source)}.values())


def kept_at(source: Source, kind: str) -> Path:
    """Where that which is made of `source` is kept: by its digest and the times of its
    `timed_files`, which may change and keep their size."""
    stamp = hashlib.sha256(source.digest().encode())
    for path in (path for leaf in leaves(source) for path in getattr(leaf, "timed_files", ())):
        stamp.update(path.stat().st_mtime_ns.to_bytes(8, "little", signed=True))
    return cache_folder() / kind / f"{source.name}-{stamp.hexdigest()[:16]}"


def notices(*sources: Source) -> tuple[str, ...]:
    """What is to be said of the data, each line once; a student's own may have nothing to say."""
    return tuple(dict.fromkeys(line for one in sources for line in getattr(one, "notices", ())))


# -- which files cannot be read --------------------------------------------------------------------


def check_readable(
    who: str,
    files: Sequence[Sequence[Path]],
    names: Sequence[str],
    skipped: Mapping[str, int],
    skip: bool | None,
    option: str = "skip_unreadable: true",
) -> tuple[list[int], dict[str, tuple[str, ...]]]:
    """Look at all files before any is needed: the numbers of the good ones, and a source's
    `notices` and `left_out`. UserError that lists the bad ones, unless `skip`, which is None where
    there is no such `option`.

    files: of each image, and its mask. They are decoded if skipping or if they are not too large,
    else their heads are read. What takes long is remembered until a file changes. skipped: of
    `images_in`, to be said.
    """
    stats = [path.stat() if path.is_file() else None for each in files for path in each]
    whole = skip or sum(stat.st_size for stat in stats if stat) <= _DECODED
    paged: list[int] = []

    def look(index: int) -> None:
        if pages(files[index][0]):
            paged.append(index)
        for path in files[index] if whole else ():
            read_image(path)

    rules = (PIL.__version__, MAX_PIXELS, formats(), whole)  # by which they are judged
    stamp = hashlib.sha256(repr(rules).encode())
    for path, stat in zip((path for each in files for path in each), stats, strict=True):
        line = f"{path.absolute()} {stat and (stat.st_size, stat.st_mtime_ns)}\n"
        stamp.update(line.encode(errors="surrogateescape"))
    kept, began = cache_folder() / "checked" / f"{stamp.hexdigest()[:32]}.json", time.monotonic()
    try:
        found, count = json.loads(kept.read_text("utf-8"))
        bad = {int(index): text for index, text in found.items()}
    except (OSError, ValueError):
        bad, count = failures(look, len(files), f"checking {who}"), len(paged)
        if time.monotonic() - began > _SLOW:
            with suppress(OSError, UserError):  # a later start would only be slower
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_json(kept, [bad, count])
    left_out, lines = tuple(names[index] for index in bad), [*said_of(skipped, who)]
    if count:
        lines.append(f"{who}: of {count:,} with several pages or frames, the first is taken")
    if bad and (not skip or len(bad) == len(files)):
        or_skip = f", or leave such images out: {option}." if skip is not None else "."
        texts = [text.replace("remove it.", f"remove it{or_skip}") for text in bad.values()]
        raise all_at_once(texts, "images")
    if bad:
        part = f"{len(bad):,} of {len(files):,}"
        listed = some([short(name, 80) for name in left_out])
        lines.append(f"{who}: {part} left out, unreadable: {listed}")
    good = [index for index in range(len(files)) if index not in bad]
    return good, {"notices": tuple(lines), "left_out": left_out}


def failures(look: Callable[[int], object], count: int, title: str) -> dict[int, str]:
    """What is wrong with which of `count` items: the UserErrors of `look`, asked on all cores."""
    found: dict[int, str] = {}

    size = count // 1000 + 1  # of a thread's task; a million of tasks would fill the memory

    def some_of_them(first: int) -> None:
        for index in range(first, min(first + size, count)):
            try:
                look(index)
            except StorageError:
                raise
            except UserError as error:
                found[index] = str(error)

    console = Console(stderr=True)
    bar = {"console": console, "transient": True, "disable": not console.is_terminal}
    with ThreadPoolExecutor(len(usable_cores())) as pool:  # Pillow lets go of Python's lock
        tasks = range(0, count, size)
        for _ in track(pool.map(some_of_them, tasks), title, len(tasks), **bar):
            pass
    return dict(sorted(found.items()))


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


def check_split(split: str) -> None:
    """Refuse any split but "train" and "test"."""
    if split not in ("train", "test"):
        raise UserError(f"no split called '{split}'; a data set has 'train' and 'test'.")

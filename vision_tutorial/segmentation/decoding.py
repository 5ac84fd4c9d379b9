"""Images decoded once: into memory where they fit, else into files that are mapped.

An epoch would decode all of them again. What is kept is what was read, bit for bit, and has the
digest of the files: a run may go on with either form.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from filelock import FileLock

from ..core import arrays
from ..core.errors import StorageError, UserError
from ..core.images import image_size
from ..core.sources import ArraySource, Source, base
from .mask_files import DenseFiles, Joined


def decoded(source: Source, cache: Literal["auto", "memory", "disk", "none"]) -> Source:
    """`source` in arrays, if its images are of one size; `none`, or `auto` if they are not: as
    it is. `auto` keeps up to a quarter of the available memory there, and more on the disk."""
    if cache == "none":
        return source
    sizes = (size for leaf in _leaves(source) for size in _sizes(leaf))
    width, height = next(sizes)
    other = next((size for size in sizes if size != (width, height)), None)
    if other:
        if cache == "auto":
            return source
        raise UserError(
            f"{source.name}: cache is {cache}, which needs images of one size; there are "
            f"{width}x{height} and {other[0]}x{other[1]}. Use cache: none, or resize the files."
        )
    needed = len(source) * width * height * 4  # three channels, and the mask
    if cache == "disk" or (cache == "auto" and needed > available() / 4):
        return _on_disk(source)
    images = np.empty((len(source), height, width, 3), np.uint8)
    masks = np.empty((len(source), height, width), np.uint8)
    arrays.fill(source, images, masks)
    return ArraySource(
        source.name,
        images,
        source.targets,
        source.classes,
        masks,
        known_digest=source.digest(),
        dense=True,
        keys=arrays.names_of(source),
    )


def _on_disk(source: Source) -> ArraySource:
    """The same in the cache folder, written at first and mapped from then on."""
    digest = source.digest()
    stamp = hashlib.sha256(digest.encode())
    for leaf in _leaves(source):
        files = [*leaf.paths, *leaf.masks.paths] if isinstance(leaf, DenseFiles) else []
        for path in files:  # a file may change and keep its size
            stamp.update(path.stat().st_mtime_ns.to_bytes(8, "little", signed=True))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "vision_tutorial" / "decoded" / f"{source.name}-{stamp.hexdigest()[:16]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of several processes one writes, the others wait
            if not (folder / arrays.MANIFEST).exists():
                arrays.write(folder, source.name, {"train": source})
    except (OSError, StorageError) as error:
        raise StorageError(
            f"{source.name}: decoded images cannot be kept ({error}). Set XDG_CACHE_HOME to a "
            "folder that has room, or cache: none."
        ) from error
    return replace(arrays.load(folder, "train"), known_digest=digest)


def available() -> int:
    """Bytes of main memory that are free."""
    return psutil.virtual_memory().available


def _leaves(source: Source) -> list[Source]:
    """What lies under subsets and joints."""
    source = base(source)
    if isinstance(source, Joined):
        return [*_leaves(source.first), *_leaves(source.second)]
    return [source]


def _sizes(leaf: Source) -> Iterator[tuple[int, int]]:
    """(width, height) of the images."""
    if isinstance(leaf, DenseFiles):
        return map(image_size, leaf.paths)
    return (leaf[index][0].size for index in range(len(leaf)))

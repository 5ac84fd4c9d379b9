"""The `arrays` folder: a data set as plain NumPy files that are mapped, not read, into memory.

    root/arrays.json    name, classes, and of each split the shape and SHA-256 of its arrays
    root/train/         images.npy uint8 (N, H, W, 3)   targets.npy int64 (N,)
    root/test/          masks.npy uint8 (N, H, W), if there are masks: the targets of a dense set

Larger sets than the memory stream, and several processes share the pages of one. Nothing in such a
folder can execute code: files that hold Python objects are refused.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from errno import ENOSPC
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from .atomic import free_space, new_folder, regular, write_json
from .errors import UserError, all_at_once, short
from .images import check_ids
from .sources import ArraySource, Source, failures

MANIFEST = "arrays.json"
SMALL = 512 << 20  # bytes that are hashed in about a second
DTYPES = {"images": np.dtype(np.uint8), "targets": np.dtype("<i8"), "masks": np.dtype(np.uint8)}
AGAIN = "copy it again, or pack it again (vision-tutorial pack)"

_strict = ConfigDict(frozen=True, strict=True, extra="forbid")


class Stored(BaseModel, **_strict):
    """One array: its shape, and the SHA-256 of its numbers."""

    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    sha256: str


class Split(BaseModel, **_strict):
    """The arrays of one split, and the digest of the source that they make."""

    images: Stored
    targets: Stored
    masks: Stored | None = None
    keys: tuple[str, ...] | None = None
    digest: str


class Manifest(BaseModel, **_strict):
    """What arrays.json says."""

    format: Literal["vision_tutorial.arrays/1"] = "vision_tutorial.arrays/1"
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    dense: bool = False
    splits: Annotated[dict[Literal["train", "test"], Split], Field(min_length=1)]


# -- reading ---------------------------------------------------------------------------------------


def counts(root: Path) -> dict[str, int]:
    """How many images each split of a folder has, from its manifest alone."""
    splits = _manifest(root / MANIFEST).splits
    return {name: split.images.shape[0] for name, split in splits.items()}


def load(root: Path, split: str, verify: bool | Literal["auto"] = "auto") -> ArraySource:
    """One split, mapped. `verify` compares digests: "auto" does so up to half a GiB."""
    manifest = _manifest(root / MANIFEST)
    if split not in manifest.splits:
        raise UserError(f"{root}: has no split '{split}', only {', '.join(manifest.splits)}.")
    facts, classes = manifest.splits[split], manifest.classes
    n, height, width = (*facts.images.shape, 0, 0)[:3]
    if manifest.dense and not facts.masks or len(facts.keys or range(n)) != n:
        raise UserError(f"{root / MANIFEST}: masks or keys of '{split}' are missing; {AGAIN}.")
    names = [name for name in DTYPES if getattr(facts, name)]
    paths = {name: root / split / f"{name}.npy" for name in names}
    arrays = {name: _mapped(paths[name], name, _shape(name, n, height, width)) for name in names}
    if verify is True or (verify == "auto" and sum(a.nbytes for a in arrays.values()) <= SMALL):
        for name, array in arrays.items():
            if _digest_of(array) != getattr(facts, name).sha256:
                problem = f"damaged: not the SHA-256 that {MANIFEST} has"
                raise UserError(f"{paths[name]}: {problem}; {AGAIN}.")
        if manifest.dense:
            _check_masks(arrays["masks"], classes, str(paths["masks"]))
    arrays["targets"] = np.array(arrays["targets"])  # few and often asked for
    check_ids(arrays["targets"], len(classes), str(paths["targets"]), void=None)
    more = {"known_digest": facts.digest, "dense": manifest.dense, "keys": facts.keys}
    return ArraySource(manifest.name, classes=classes, **arrays, **more)


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(regular(path).read_bytes())
    except OSError as error:
        todo = "name a folder that `vision-tutorial pack` made"
        raise UserError(f"cannot read {path} ({error.strerror}); {todo}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        words = short(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 200)
        raise UserError(f"{path}: {words}; {AGAIN}.") from error


def _shape(name: str, n: int, height: int, width: int) -> tuple[int, ...]:
    return {"images": (n, height, width, 3), "targets": (n,), "masks": (n, height, width)}[name]


def _mapped(path: Path, name: str, shape: tuple[int, ...]) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(regular(path), "r")
    except Exception as error:  # NumPy raises whatever it likes on a damaged header
        problem = f"not a whole NumPy file ({short(str(error), 120)})"
        raise UserError(f"{path}: {problem}; {AGAIN}.") from error
    if (array.dtype, array.shape) != (DTYPES[name], shape) or not array.flags.c_contiguous:
        raise UserError(
            f"{path}: holds {array.dtype} {array.shape}; {MANIFEST} needs {DTYPES[name]} {shape}, "
            f"the last axis without gaps; {AGAIN}."
        )
    return array


def _check_masks(masks: np.ndarray, classes: tuple[str, ...], where: str) -> None:
    for index, mask in enumerate(masks):  # of a mapped array, one at a time
        check_ids(mask, len(classes), f"{where}, mask {index}")


def _digest_of(array: np.ndarray) -> str:
    # of the numbers, not of the file: NumPy's versions differ in their headers
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


# -- writing ---------------------------------------------------------------------------------------


def write(root: Path, name: str, splits: Mapping[str, Source]) -> Manifest:
    """Write sources as an arrays folder, all of it or nothing. Images must be of one size."""
    first = next(iter(splits.values()))
    with new_folder(root) as work:
        found = {split: _write_split(work / split, source) for split, source in splits.items()}
        manifest = Manifest(name=name, classes=first.classes, dense=first.dense, splits=found)
        write_json(work / MANIFEST, manifest.model_dump(exclude_none=True))
    return manifest


def _write_split(folder: Path, source: Source) -> Split:
    folder.mkdir()
    n, (width, height) = len(source), source[0][0].size
    in_memory = isinstance(source, ArraySource)
    with_masks = source.dense or in_memory and source.masks is not None
    arrays = {
        name: _new_array(folder / f"{name}.npy", DTYPES[name], _shape(name, n, height, width))
        for name in list(DTYPES)[: 2 + with_masks]
    }
    if in_memory:
        for name, array in arrays.items():
            array[:] = getattr(source, name)
    else:
        arrays["targets"][:] = source.targets
        fill(source, arrays["images"], arrays.get("masks"))
    if source.dense:
        _check_masks(arrays["masks"], source.classes, source.name)
    for array in arrays.values():
        array.flush()
    made = ArraySource(source.name, **arrays, classes=source.classes)
    stored = {key: Stored(shape=a.shape, sha256=_digest_of(a)) for key, a in arrays.items()}
    return Split(**stored, keys=names_of(source) if source.dense else None, digest=made.digest())


def names_of(source: Source) -> tuple[str, ...] | None:
    """What the images are called; None where only by number. Names need not be UTF-8."""
    numbers = range(len(source))
    names = tuple(source.key(number).encode(errors="replace").decode() for number in numbers)
    return None if names == tuple(map(str, numbers)) else names


def fill(source: Source, images: np.ndarray, masks: np.ndarray | None = None) -> None:
    """Decode every image into images uint8 (N, H, W, 3), and every mask, on all cores."""
    height, width = images.shape[1:3]

    def decode(index: int) -> None:
        image, target = source[index]
        if image.size != (width, height):
            raise UserError(
                f"{source.name}, image {index}: {image.width}x{image.height} pixels, the "
                f"first has {width}x{height}; an arrays folder needs one size. Resize them first."
            )
        images[index] = np.asarray(image)
        if masks is not None:
            masks[index] = target

    if bad := failures(decode, len(source), f"reading {source.name}"):
        raise all_at_once(list(bad.values()), "images")


def _new_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new file to fill through memory, its room reserved.

    A full disk is an OSError here; while filling it would be a signal that kills the process.
    """
    size = math.prod(shape) * dtype.itemsize
    if free_space(path.parent) < size:
        raise OSError(ENOSPC, f"{size / 2**20:,.0f} MiB are needed, fewer are free", str(path))
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array

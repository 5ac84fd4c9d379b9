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
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from errno import EINVAL, ENOSPC, EOPNOTSUPP
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from rich.progress import track

from .atomic import free_space, sync_folder, write_json
from .errors import StorageError, UserError, short
from .images import VOID
from .processes import usable_cores
from .sources import ArraySource, Source

MANIFEST = "arrays.json"
MOST_MANIFEST = 64 << 20  # bytes
SMALL = 512 << 20  # bytes that are hashed in about a second
DTYPES = {"images": np.dtype(np.uint8), "targets": np.dtype("<i8"), "masks": np.dtype(np.uint8)}
AGAIN = "copy it again, or pack it again (vision-tutorial pack)"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=10**12)]


class Facts(BaseModel):
    """JSON with known keys of known types; anything else is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Stored(Facts):
    """One array: its shape, and the SHA-256 of its numbers."""

    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)]
    sha256: Digest


class Split(Facts):
    """The arrays of one split, and the digest of the source that they make."""

    images: Stored
    targets: Stored
    masks: Stored | None = None
    keys: tuple[str, ...] | None = None
    digest: Digest

    @model_validator(mode="after")
    def _belong_together(self) -> "Split":
        n, *size = self.images.shape
        if len(size) != 3 or size[2] != 3:
            raise ValueError(f"images have the shape {self.images.shape}, not (N, H, W, 3)")
        for name, wanted in (("targets", (n,)), ("masks", (n, *size[:2]))):
            stored = getattr(self, name)
            if stored and stored.shape != wanted:
                raise ValueError(f"{name} have the shape {stored.shape}; the images need {wanted}")
        if self.keys is not None and len(self.keys) != n:
            raise ValueError(f"{len(self.keys)} keys for {n} images")
        return self

    def arrays(self) -> dict[str, Stored]:
        """Those that there are, by name."""
        found = {name: getattr(self, name) for name in DTYPES}
        return {name: stored for name, stored in found.items() if stored}


class Manifest(Facts):
    """What arrays.json says."""

    format: Literal["vision_tutorial.arrays/1"] = "vision_tutorial.arrays/1"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=1_000_000)]
    dense: bool = False
    splits: Annotated[dict[Literal["train", "test"], Split], Field(min_length=1)]

    @model_validator(mode="after")
    def _dense_has_masks(self) -> "Manifest":
        if self.dense and not all(split.masks for split in self.splits.values()):
            raise ValueError("masks are missing")
        return self


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
    facts = manifest.splits[split]
    mapped = {
        name: _mapped_array(root / split / f"{name}.npy", name, stored.shape)
        for name, stored in facts.arrays().items()
    }
    if verify is True or (verify == "auto" and sum(a.nbytes for a in mapped.values()) <= SMALL):
        for name, array in mapped.items():
            digest, expected = _digest_of(array), facts.arrays()[name].sha256
            if digest != expected:
                raise UserError(
                    f"{root / split / name}.npy: damaged: its SHA-256 is {digest[:16]}…, it should "
                    f"be {expected[:16]}…; {AGAIN}."
                )
        if manifest.dense:
            _check_ids(mapped["masks"], len(manifest.classes), str(root / split / "masks.npy"))
    targets = np.array(mapped["targets"])  # few and often asked for
    least, most = int(targets.min()), int(targets.max())
    if least < 0 or most >= len(manifest.classes):
        raise UserError(
            f"{root / split / 'targets.npy'}: class ids from {least} to {most}, but {MANIFEST} "
            f"names {len(manifest.classes)} classes. {AGAIN.capitalize()}."
        )
    return ArraySource(
        manifest.name,
        mapped["images"],
        targets,
        manifest.classes,
        mapped.get("masks"),
        known_digest=facts.digest,
        dense=manifest.dense,
        keys=facts.keys,
    )


def _manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_MANIFEST + 1)
    except FileNotFoundError as error:
        raise UserError(f"no {path}; name a folder that `vision-tutorial pack` made.") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from error
    if len(content) > MOST_MANIFEST:
        raise UserError(f"{path}: more than {MOST_MANIFEST:,} bytes; that is no manifest.")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(word) for word in first["loc"])
        words = short(f"{where}: {first['msg']}" if where else first["msg"], 200)
        raise UserError(f"{path}: {words}. {AGAIN.capitalize()}.") from error


def _mapped_array(path: Path, name: str, shape: tuple[int, ...]) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, "r")
        length = path.stat().st_size
    except FileNotFoundError as error:
        raise UserError(f"no {path}; {AGAIN}.") from error
    except Exception as error:  # NumPy raises whatever it likes on a damaged header
        raise UserError(
            f"{path}: not a whole NumPy file ({short(str(error), 120)}); {AGAIN}."
        ) from error
    if array.dtype != DTYPES[name]:
        raise UserError(f"{path}: holds {array.dtype}; {name} are {DTYPES[name]}.")
    if array.shape != shape or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran's order"
        raise UserError(f"{path}: its shape is {array.shape}{order}, {MANIFEST} says {shape}.")
    if length != array.offset + array.nbytes:
        raise UserError(
            f"{path}: {length:,} bytes, it should have {array.offset + array.nbytes:,}; {AGAIN}."
        )
    return array


def _check_ids(masks: np.ndarray, classes: int, where: str) -> None:
    for index, mask in enumerate(masks):  # of a mapped array, one at a time
        strange = mask[(mask >= classes) & (mask != VOID)]
        if strange.size:
            raise UserError(
                f"{where}, mask {index}: class id {strange[0]}, but there are {classes} classes "
                f"(and {VOID} where nothing counts). Correct the data set, and pack it again."
            )


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
    in_memory = isinstance(source, ArraySource)
    n, (width, height) = len(source), source[0][0].size
    has_masks = source.dense or in_memory and source.masks is not None
    shapes = {"images": (n, height, width, 3), "targets": (n,)}
    shapes |= {"masks": (n, height, width)} if has_masks else {}
    arrays = {name: _new_array(folder / f"{name}.npy", name, shapes[name]) for name in shapes}
    if in_memory:
        for name, array in arrays.items():
            array[:] = getattr(source, name)
    else:
        arrays["targets"][:] = source.targets
        fill(source, arrays["images"], arrays.get("masks"))
    if source.dense:
        _check_ids(arrays["masks"], len(source.classes), source.name)
    for array in arrays.values():
        array.flush()
    sync_folder(folder)
    made = ArraySource(source.name, **arrays, classes=source.classes)
    stored = {key: Stored(shape=a.shape, sha256=_digest_of(a)) for key, a in arrays.items()}
    return Split(**stored, keys=names_of(source) if source.dense else None, digest=made.digest())


def names_of(source: Source) -> tuple[str, ...] | None:
    """What the images are called; None where only by number. Names need not be UTF-8."""
    keys = (source.key(index).encode(errors="replace").decode() for index in range(len(source)))
    named = tuple(keys)
    return None if named == tuple(map(str, range(len(source)))) else named


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

    console = Console(stderr=True)
    with ThreadPoolExecutor(len(usable_cores())) as pool:  # Pillow lets go of Python's lock
        made = pool.map(decode, range(len(source)))
        bar = {"console": console, "transient": True, "disable": not console.is_terminal}
        for _ in track(made, f"reading {source.name}", len(source), **bar):
            pass


def _new_array(path: Path, name: str, shape: tuple[int, ...]) -> np.memmap:
    """A new file to fill through memory, its room reserved.

    A full disk is an OSError here; while filling it would be a signal that kills the process.
    """
    size = math.prod(shape) * DTYPES[name].itemsize
    if free_space(path.parent) < size:
        raise OSError(ENOSPC, f"{size / 2**20:,.0f} MiB are needed, fewer are free", str(path))
    array = np.lib.format.open_memmap(path, "w+", DTYPES[name], shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
            except OSError as error:
                if error.errno not in (EINVAL, EOPNOTSUPP):  # a file system that cannot reserve
                    raise
    return array


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when it is whole, and nothing when it is not."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"there is a {target} already; name another, or remove it.")
    work = target.with_name(f".{target.name}-{uuid4().hex[:8]}")
    try:
        work.mkdir(parents=True)
        yield work
        sync_folder(work)
        if target.is_dir():
            target.rmdir()
        os.replace(work, target)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {target} ({error.strerror or error}). Make room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)

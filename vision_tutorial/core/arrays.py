"""The `arrays` folder: a data set as plain NumPy files that are mapped, not read, into memory.

    root/arrays.json    name, classes, and of each split the shape and SHA-256 of its arrays
    root/train/         images.npy uint8 (N, H, W, 3)   targets.npy int64 (N,)
    root/test/          masks.npy uint8 (N, H, W), if there are masks

Larger sets than the memory stream, and several processes share the pages of one. Nothing in such a
folder can execute code: files that hold Python objects are refused.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOSPC, EOPNOTSUPP
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import StorageError, UserError, short
from .runs import write_json
from .sources import ArraySource, Source
from .writing import free_space, sync_folder

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


Kind = TypeVar("Kind", bound=Facts)


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


# -- reading ---------------------------------------------------------------------------------------


def load(root: Path, split: str, verify: bool | Literal["auto"] = "auto") -> ArraySource:
    """One split, mapped. `verify` compares digests: "auto" does so up to half a GiB."""
    manifest = read_facts(root / MANIFEST, Manifest)
    if split not in manifest.splits:
        raise UserError(f"{root}: has no split '{split}', only {', '.join(manifest.splits)}.")
    facts = manifest.splits[split]
    mapped = {
        name: mapped_array(root / split / f"{name}.npy", name, stored.shape)
        for name, stored in facts.arrays().items()
    }
    if verify is True or (verify == "auto" and sum(a.nbytes for a in mapped.values()) <= SMALL):
        for name, array in mapped.items():
            verified(root / split / f"{name}.npy", array, facts.arrays()[name])
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


def read_facts(path: Path, kind: type[Kind]) -> Kind:
    """The JSON file `path` as `kind`; one line says what is wrong with it."""
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
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(word) for word in first["loc"])
        words = short(f"{where}: {first['msg']}" if where else first["msg"], 200)
        raise UserError(f"{path}: {words}. {AGAIN.capitalize()}.") from error


def mapped_array(path: Path, name: str, shape: tuple[int, ...], mode: str = "r") -> np.memmap:
    """The file's numbers, as they lie on the disk; its header must say what the manifest says."""
    try:
        array = np.lib.format.open_memmap(path, mode)
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


def verified(path: Path, array: np.ndarray, stored: Stored) -> None:
    """Refuse an array whose numbers are not those that were packed."""
    found = digest_of(array)
    if found != stored.sha256:
        raise UserError(
            f"{path}: damaged: its SHA-256 is {found[:16]}…, it should be "
            f"{stored.sha256[:16]}…; {AGAIN}."
        )


def digest_of(array: np.ndarray) -> str:
    """SHA-256 of the numbers; not of the file, since NumPy's versions differ in their headers."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


# -- writing ---------------------------------------------------------------------------------------


def write(root: Path, name: str, splits: Mapping[str, Source]) -> Manifest:
    """Write sources as an arrays folder, all of it or nothing. Pictures must be of one size."""
    classes = next(iter(splits.values())).classes
    with new_folder(root) as work:
        found = {split: _write_split(work / split, source) for split, source in splits.items()}
        manifest = Manifest(name=name, classes=classes, splits=found)
        write_json(work / MANIFEST, manifest.model_dump(exclude_none=True))
    return manifest


def _write_split(folder: Path, source: Source) -> Split:
    folder.mkdir()
    n, first = len(source), np.asarray(source[0][0])
    images = new_array(folder / "images.npy", "images", (n, *first.shape))
    targets = new_array(folder / "targets.npy", "targets", (n,))
    targets[:] = source.targets
    masks = source.masks if isinstance(source, ArraySource) else None
    if isinstance(source, ArraySource):
        images[:] = source.images
    else:
        for index in range(n):
            picture = np.asarray(source[index][0])
            if picture.shape != first.shape:
                raise UserError(
                    f"{source.name}, picture {index}: {picture.shape[1]}x{picture.shape[0]} "
                    f"pixels, the first has {first.shape[1]}x{first.shape[0]}; an arrays folder "
                    "needs one size. Resize them first."
                )
            images[index] = picture
    arrays = {"images": images, "targets": targets}
    if masks is not None:
        arrays["masks"] = new_array(folder / "masks.npy", "masks", masks.shape)
        arrays["masks"][:] = masks
    for array in arrays.values():
        array.flush()
    sync_folder(folder)
    made = ArraySource(source.name, images, targets, source.classes, arrays.get("masks"))
    stored = {key: Stored(shape=a.shape, sha256=digest_of(a)) for key, a in arrays.items()}
    return Split(**stored, digest=made.digest())


def new_array(path: Path, name: str, shape: tuple[int, ...]) -> np.memmap:
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
    work = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        work.chmod(0o777 & ~_umask())  # mkdtemp's are for their owner alone
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
        if work is not None:
            with suppress(OSError):
                shutil.rmtree(work)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

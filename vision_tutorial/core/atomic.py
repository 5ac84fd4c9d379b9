"""Files that are whole or absent, whatever happens to the process or the disk."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import StorageError, UserError

BINARY = getattr(os, "O_BINARY", 0)  # Windows would write \r\n


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a failed write into a StorageError that names the file, the reason and the room left."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason} ({free_space(path) / 2**30:.1f} GiB free there). "
            "Make room, or choose another folder."
        ) from error


def free_space(path: Path) -> float:
    """Bytes free on the disk of `path` or of its nearest existing parent; NaN if nobody knows."""
    path = next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path.cwd())
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return math.nan


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and bring it to the disk; not atomic. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write to an open file until all is written."""
    rest = memoryview(data)
    while rest:  # the system may take less than it was given, and takes at most 2 GiB
        rest = rest[os.write(handle, rest) :]


def write_text(path: Path | str, text: str) -> None:
    """Replace a file as a whole: readers see the old text or the new, also after a crash."""
    with replacing(path) as temporary:
        write_bytes(temporary, text.encode())


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary name to write to, which takes the place of `path` when all went well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with storage(path):
        try:
            temporary.unlink(missing_ok=True)  # left by a process that died here
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when it is whole, and nothing when it is not."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"there is a {target} already; name another, or remove it.")
    work = target.with_name(f".{target.name}-{uuid4().hex[:8]}")
    with storage(target):
        try:
            work.mkdir(parents=True)
            yield work
            for folder, _, _ in os.walk(work):
                sync_folder(Path(folder))
            if target.is_dir():
                target.rmdir()
            os.replace(work, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Replace a JSON file as a whole; what JSON cannot say (NaN, infinity) becomes null."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file; a missing or damaged file is a UserError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}. Is this a run folder, and whole?") from error


def plain(value: Any) -> Any:
    """`value` in JSON's types: NaN and infinities null, scalars of numpy and torch numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return plain(value.item()) if hasattr(value, "item") else value

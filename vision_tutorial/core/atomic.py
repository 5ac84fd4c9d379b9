"""Files that are whole or absent, whatever happens to the process or the disk."""

import errno
import json
import math
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from .errors import StorageError, UserError
from .names import READABLE

BINARY = getattr(os, "O_BINARY", 0)  # Windows would write \r\n
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFCHR: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
_HERE = f"{zlib.crc32(platform.node().encode()):08x}"  # a process id means something on its machine
_LEFT = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-\d+\.tmp")
_NUMBERS = count()


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a failed write into a StorageError that names the file, the reason and, if that is what
    lacks, the room left."""
    try:
        yield
    except BrokenPipeError:  # who reads our output has seen enough
        raise
    except OSError as error:
        reason, todo = error.strerror or str(error), "Choose another folder."
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            reason += f" ({free_space(path) / 2**30:.1f} GiB free there)"
            todo = "Make room, or choose another folder."
        raise StorageError(f"cannot write {path}: {reason}. {todo}") from error


def free_space(path: Path) -> float:
    """Bytes free on the disk of `path` or of its nearest existing parent; NaN if nobody knows."""
    path = next((p for p in (path, *path.absolute().parents) if os.path.isdir(p)), Path.cwd())
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
        write_bytes(temporary, text.encode("utf-8", READABLE))


def kind(path: Path | str) -> str:
    """What a path leads to, through links: file, folder, device, FIFO, socket …; "" if nothing."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "disk")


def regular(path: Path) -> Path:
    """`path`, unless it leads to what may be read for ever, such as a FIFO: UserError."""
    if (found := kind(path)) not in ("file", ""):
        raise UserError(f"{path} is a {found}; a file is expected. Name another.")
    return path


def check_folder(path: Path) -> Path:
    """`path`, unless something other than a folder is there: UserError."""
    found = "standard output" if str(path) == "-" else kind(path)
    if found not in ("folder", ""):
        raise UserError(f"{path} is a {found}; a folder is expected. Name another.")
    return path


def make_folder(path: Path) -> Path:
    """`path`, which is a folder from now on; of a dangling link, its target is made."""
    with storage(path):
        os.makedirs(os.path.realpath(check_folder(path)), exist_ok=True)
    return path


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary name to write to, which takes the place of `path` when all went well.

    Where `path` is a link, its target is replaced. What cannot be replaced is written to when all
    went well: a device, a FIFO, standard output (`-`). UserError for a folder or a socket.
    """
    path = Path(path)
    with storage(path):
        found = "stream" if is_stdout(path) else kind(path)
        if found in ("stream", "device", "FIFO"):
            with tempfile.TemporaryDirectory(prefix="vision-tutorial-") as folder:
                yield Path(folder) / "output"
                _pour(Path(folder) / "output", path)
            return
        path = Path(os.path.realpath(regular(path)))
        temporary = _temporary(path)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def is_stdout(path: Path | str) -> bool:
    """Whether `path` is `-`, or the file that standard output goes to (/dev/stdout)."""
    with suppress(OSError):
        return str(path) == "-" or os.path.samestat(os.stat(path), os.fstat(1))
    return False


def _pour(source: Path, path: Path) -> None:
    """Write what is in a file to a device, a FIFO or standard output."""
    data = source.read_bytes()
    if is_stdout(path):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        handle = os.open(path, os.O_WRONLY | BINARY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        print(f"waiting for somebody to read {path}", file=sys.stderr, flush=True)
        handle = os.open(path, os.O_WRONLY | BINARY)
    try:
        os.set_blocking(handle, True)
        write_all(handle, data)
    finally:
        os.close(handle)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when it is whole, and nothing when it is not."""
    if check_folder(target).exists() and any(target.iterdir()):
        raise UserError(f"there is a {target} already; name another, or remove it.")
    target = Path(os.path.realpath(target))
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = _temporary(target)
        try:
            work.mkdir()
            yield work
            for folder, _, _ in os.walk(work):
                sync_folder(Path(folder))
            if target.is_dir():
                target.rmdir()
            os.replace(work, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other process takes, for what will become `path`."""
    _tidy(path.parent, int(time.monotonic()))
    made = path.with_name(f".{path.name[:60]}.{_HERE}-{os.getpid()}-{next(_NUMBERS)}.tmp")
    _remove(made)  # left by a process that died here and had our number
    return made


@lru_cache(8)  # a look at the folder once a second, not for each of its thousands of files
def _tidy(folder: Path, second: int) -> None:
    """Remove what dead processes of this machine left half written; of others, after an hour."""
    import psutil

    for path in folder.glob(".*.tmp"):
        if found := _LEFT.fullmatch(path.name):
            with suppress(OSError):
                dead = found[1] == _HERE and not psutil.pid_exists(int(found[2]))
                if dead or (path.is_file() and time.time() - path.stat().st_mtime > 3600):
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Replace a JSON file as a whole; what JSON cannot say (NaN, infinity) becomes null."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file; a missing or damaged file is a UserError."""
    try:
        return json.loads(regular(Path(path)).read_text(encoding="utf-8"))
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

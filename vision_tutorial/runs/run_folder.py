"""The run folder: what a training was, what it did, how it ended. Pure Python, no torch.

    runs/<recipe>/<id>/  recipe.yaml  fingerprint.json  status.json  metrics.jsonl  summary.json
                         LOCK  ckpt/

Every file here is whole or absent whatever happens to the process: it is written under a temporary
name, brought to the disk, and renamed. Only metrics.jsonl grows, one synced line at a time.
"""

import datetime
import json
import os
import platform
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ..core.atomic import BINARY, plain, storage, sync_folder, write_all, write_json, write_text
from ..core.errors import StorageError, UserError

_Status = Literal["running", "done", "paused", "preempted", "failed"]
TIMED = (  # of a row of metrics.jsonl: what the clock says, and so never the same twice
    "images_per_second",
    "seconds",
    "seconds_data",
    "seconds_device",
    "seconds_eval",
    "seconds_overhead",
)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


# -- metrics.jsonl ---------------------------------------------------------------------------------


def append_row(path: Path | str, row: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl, on the disk when this returns; all of it or nothing."""
    path = Path(path)
    with storage(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
        before = os.fstat(handle).st_size
        try:
            write_all(handle, _line(row).encode())
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)  # half a line would spoil the next one
            raise
        finally:
            os.close(handle)


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace metrics.jsonl as a whole: at resume, without the lines after the checkpoint."""
    write_text(path, "".join(map(_line, rows)))


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, [] if there is none; a last line torn by a crash is left out."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}). Remove it.") from error
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


# -- the folder ------------------------------------------------------------------------------------


def check_name(kind: str, name: str) -> str:
    """`name` if it is safe as the name of a folder, else a UserError."""
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise UserError(
            f"'{name}' cannot be the name of a {kind}: 1 to 64 letters, digits, '.', '_' or '-'."
        )
    return name


def new_run(root: Path | str, recipe_name: str, id: str | None = None) -> Path:
    """Make `root/recipe_name/id`; without an id one from the clock (UTC), so that ids sort by time.

    Two processes that ask at the same moment get two folders.
    """
    folder = Path(root) / check_name("recipe", recipe_name)
    while True:
        now = datetime.datetime.now(datetime.UTC)
        run = folder / check_name("run", now.strftime("%Y%m%d-%H%M%S-%f") if id is None else id)
        try:
            with storage(run):
                folder.mkdir(parents=True, exist_ok=True)
                run.mkdir()
                sync_folder(folder)
            return run
        except StorageError as error:
            if not isinstance(error.__cause__, FileExistsError) or not run.is_dir():
                raise
            if id:
                raise UserError(f"there is a run {run} already. Name another id.") from error


def recipe_file(run: Path) -> Path:
    """The recipe of a run folder."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: no run folder; give one that `train` made (it prints `run: …`).")
    return run / "recipe.yaml"


def set_status(run: Path, status: _Status, **facts: Any) -> None:
    """Write status.json: the status, when it became so, and facts such as `exit_code`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(Path(run) / "status.json", {"status": status, "since": now, **facts})


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold LOCK, so that two trainings cannot write one run folder; UserError if it is held.

    The system lets go of it when this process ends, however it ends. It is the process that holds
    it (POSIX record locks), not an open file that loader workers would inherit and keep.
    """
    path = Path(run) / "LOCK"
    with storage(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _take(handle, path):
            holder = os.read(handle, 200).decode(errors="replace")
            by = f" by {holder}" if holder else ""
            raise UserError(f"{run} is in use{by}. Wait for it, or start another run.")
        now = datetime.datetime.now().isoformat(" ", "seconds")
        with storage(path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()} since {now}".encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows locks bytes; one far behind the text, which must stay readable
        import msvcrt

        os.lseek(handle, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some network file systems have no locks: better unlocked than not
        warnings.warn(f"{path}: no lock here ({error}); run one training at a time.", stacklevel=3)
    return True

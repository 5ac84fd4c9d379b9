"""Run folders: what a training was, what it did, how it ended. Pure Python, no torch.

Every file here is whole or absent whatever happens to the process. Only metrics.jsonl grows, one
synced line at a time.
"""

import datetime
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ..core.atomic import (
    BINARY,
    check_folder,
    make_folder,
    plain,
    read_json,
    regular,
    storage,
    sync_folder,
    write_all,
    write_json,
    write_text,
)
from ..core.errors import UserError, counted, short, shown, visible
from ..core.folders import STARTED_IN
from ..core.names import checked_name

_Status = Literal["running", "done", "paused", "preempted", "failed"]
TIMED = (  # of a row of metrics.jsonl: what the clock says, and so never the same twice
    "images_per_second",
    "seconds",
    "seconds_data",
    "seconds_device",
    "seconds_eval",
    "seconds_overhead",
)


def append_row(path: Path | str, row: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl, on the disk when this returns; all of it or nothing."""
    path = regular(Path(path))
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


def append_log(run: Path | str, line: str) -> None:
    """Add a line to the run's log.txt, after the local time. What fails here stops no training."""
    now = datetime.datetime.now().isoformat(" ", "seconds")
    with suppress(OSError, UserError):
        with regular(Path(run) / "log.txt").open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{now}  {visible(line)}\n")


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace metrics.jsonl as a whole: at resume, without the lines after the checkpoint."""
    write_text(path, "".join(map(_line, rows)))


def read_rows(path: Path | str, strict: bool = True) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, [] if there is none; a last line torn by a crash is left out.

    Any other damaged line is a UserError, or left out too where not `strict`.
    """
    path, rows = Path(path), []
    if not path.is_file() or not (strict or os.access(path, os.R_OK)):
        return []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if strict else lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if strict:
                raise UserError(f"{path}, line {number}: not JSON ({error}). Remove it.") from error
    return [row for row in rows if isinstance(row, dict)]


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file; {} if there is none, UserError if it is damaged."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path.name} holds {shown(value)}, no object")
    return value


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


def check_name(kind: str, name: str) -> str:
    """`name`, composed (NFC), if it is safe as the name of a folder; else a UserError."""
    try:
        return checked_name(name)
    except ValueError as error:
        raise UserError(f"'{short(name, 80)}' cannot be the name of a {kind}: {error}.") from error


def new_run(root: Path | str, recipe_name: str, id: str | None = None) -> Path:
    """Make `root/recipe_name/id`; without an id one from the clock, so that ids sort by time.

    Two processes that ask at the same moment get two folders.
    """
    folder = check_folder(Path(root)) / check_name("recipe", recipe_name)
    while True:
        clock = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
        run = folder / check_name("run", clock if id is None else id)
        with storage(run):
            make_folder(folder)
            try:
                run.mkdir()
            except FileExistsError:
                if not id:
                    continue
                check_free(run)
            sync_folder(folder)
        return run


def check_free(run: Path) -> None:
    """UserError if there is such a run; none is a folder of one killed before it wrote a recipe."""
    found = run.iterdir() if run.is_dir() else [run] * run.exists()
    if any(path.name != "LOCK" and path.suffix != ".py" for path in found):
        raise UserError(f"there is a run {run} already. Name another id.")


def recipe_file(run: Path) -> Path:
    """The recipe of a run folder."""
    if not (run / "recipe.yaml").is_file():
        todo = "give one that `train` made (it prints `run: …`)"
        if inner := sorted(run.glob("*/recipe.yaml")):
            todo = f"it holds {counted(len(inner), 'run')}, such as {inner[-1].parent}"
        raise UserError(f"{run}: no run folder; {todo}.")
    with suppress(UserError):
        where = json_object(run / "fingerprint.json").get("folder")
        if isinstance(where, str):
            STARTED_IN.append(Path(where))  # relative paths in the recipe were typed there
    return run / "recipe.yaml"


def set_status(run: Path, status: _Status, **facts: Any) -> None:
    """Write status.json: the status, when it became so, and facts such as `exit_code`."""
    since = _now().isoformat(timespec="seconds")
    write_json(Path(run) / "status.json", {"status": status, "since": since, **facts})
    if "error" in facts:
        append_log(run, f"{status}: {facts['error']}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


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
            holder = os.read(handle, 200).decode(errors="replace") or "another process"
            raise UserError(f"{run} is in use by {holder}. Wait for it, or start another run.")
        now = datetime.datetime.now().isoformat(" ", "seconds")
        with storage(path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()} since {now}".encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> bool:
    try:
        if (
            sys.platform == "win32"
        ):  # it locks bytes: one far behind the text, which must stay readable
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.lseek(handle, 0, os.SEEK_SET)
        return False
    except OSError as error:  # some network file systems have no locks: better unlocked than not
        warnings.warn(f"{path}: no lock here ({error}); run one training at a time.", stacklevel=3)
    return True

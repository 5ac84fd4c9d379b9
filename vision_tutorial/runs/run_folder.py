"""The run folder: what a training was, what it did, how it ended. Pure Python, no torch.

    runs/<recipe>/<id>/  recipe.yaml  fingerprint.json  status.json  metrics.jsonl  summary.json
                         LOCK  ckpt/

Every file here is whole or absent whatever happens to the process: it is written under a temporary
name, brought to the disk, and renamed. Only metrics.jsonl grows, one synced line at a time.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from ..core.atomic import BINARY, plain, storage, sync_folder, write_all, write_json, write_text
from ..core.errors import StorageError, UserError

Status = Literal["running", "done", "paused", "preempted", "failed"]
TIMED = (  # of a row of metrics.jsonl: what the clock says, and so never the same twice
    "images_per_second",
    "seconds",
    "seconds_data",
    "seconds_device",
    "seconds_eval",
    "seconds_overhead",
)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
    if not NAME.fullmatch(name) or not name.strip("."):
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
        raise UserError(
            f"{run}: no run folder; give one that `train` made (it ends with `run: …`)."
        )
    return run / "recipe.yaml"


def set_status(run: Path, status: Status, **facts: Any) -> None:
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
            raise UserError(f"{run} is in use{_holder(handle)}. Wait for it, or start another run.")
        now = datetime.datetime.now().isoformat(" ", "seconds")
        with storage(path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()} since {now}".encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> bool:
    """Whether the lock could be taken."""
    try:
        import fcntl
    except ImportError:  # Windows locks bytes; one far behind the text, which must stay readable
        import msvcrt

        os.lseek(handle, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(handle, 0, os.SEEK_SET)
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some network file systems have no locks: better unlocked than not
        warnings.warn(f"{path}: no lock here ({error}); run one training at a time.", stacklevel=3)
    return True


def _holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 200).decode(errors="replace")
    return f" by {text}" if text else ""


# -- the fingerprint -------------------------------------------------------------------------------

PACKAGES = ("vision-tutorial", "torch", "torchvision", "timm", "accelerate", "safetensors")
PACKAGES += ("numpy", "pillow", "pydantic", "pyyaml", "wandb")
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")
ENVIRONMENT += ("LOCAL_WORLD_SIZE", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF")
ENVIRONMENT += ("PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED", "WANDB_MODE")
ENVIRONMENT += ("VISION_TUTORIAL_DATA", "SLURM_JOB_ID")


def fingerprint(data_hash: str | None = None) -> dict[str, Any]:
    """What beside the recipe could change the numbers: versions, hardware, threads, commit, data.

    Of the environment only the names in ENVIRONMENT. GPUs and torch's threads are there if torch
    has been imported already; this function never imports it.
    """
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": redact(shlex.join(sys.argv)),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "cpu": {
            "model": _cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "threads": psutil.cpu_count(),
            "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        },
        "memory_bytes": psutil.virtual_memory().total,
        "environment": {n: redact(os.environ[n]) for n in ENVIRONMENT if n in os.environ},
        "torch": _torch(),
        "git": _git(Path(__file__).parents[1]),
        "data": data_hash,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor()


def _torch() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    gpus = range(torch.cuda.device_count())
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def _git(package: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `package`; None if it is merely installed inside one."""
    git = ("git", "-C", str(package))
    if _output(*git, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _output(*git, "rev-parse", "HEAD"), "dirty": bool(changes)}


def _output(*command: str) -> str | None:
    # GIT_OPTIONAL_LOCKS: looking must not disturb a person who commits at this moment.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# -- secrets ---------------------------------------------------------------------------------------

REDACTED = "[redacted]"
_SECRET = (
    r"(?:(?:api|access|private|secret)[_-]?key|secret|token|password|passwd|passphrase|credentials?"
    r"|authorization|cookie)(?![a-z])"
)
SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
_VALUE = r"""(?!(?:true|false|null|none)\b)(?:"[^"]*"|'[^']*'|[^\s&]+)"""
_PATTERNS = (
    (re.compile(r"://[^/\s]*@"), f"://{REDACTED}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(rf"({_SECRET}[\w.-]*[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(rf"([_-]{_SECRET}[\w-]*\s+){_VALUE}", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"\b(?:gh[opsur]|github_pat|hf|sk|wandb_v1)[_-][\w-]{16,}"), REDACTED),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), REDACTED),
)


def redact(value: Any) -> Any:
    """`value` (text, or mappings and lists of it) without keys, passwords and tokens.

    Taken out: what stands under a secret's name (`api_key`, `--token`, …), what the environment
    holds under such a name, credentials in URLs, and tokens that can be told by their shape.
    """
    if isinstance(value, Mapping):
        return {key: _redact_item(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        flags = ["", *(v if isinstance(v, str) and v.startswith("-") else "" for v in value)]
        return [_redact_item(flag, v) for flag, v in zip(flags, value, strict=False)]
    return _redact_text(value) if isinstance(value, str) else value


def _redact_item(name: str, item: Any) -> Any:
    harmless = item is None or isinstance(item, bool) or (name[:1] == "-" and "=" in name)
    return REDACTED if SECRET_NAME.search(name) and not harmless else redact(item)


def _redact_text(text: str) -> str:
    for name, secret in os.environ.items():
        if len(secret) >= 8 and SECRET_NAME.search(name):
            text = text.replace(secret, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text

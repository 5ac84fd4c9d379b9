"""The folder of one checkpoint: written whole or not at all, verified, listed, deleted.

    <run>/ckpt/step-00001200/  model.safetensors ema.safetensors … state.json MANIFEST.json

It is written beside its place, every file synced and digested, the manifest last, and then renamed.
Nothing is read that the manifest does not vouch for.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..core.atomic import sync_folder, write_bytes
from ..core.errors import UserError

FORMAT = 1
MANIFEST = "MANIFEST.json"
FOLDER = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # .1: that step was saved once before


class Damaged(Exception):
    """A checkpoint, or a file of it, that is not what was written."""


def write_folder(target: Path, files: Iterable[tuple[str, bytes]], facts: dict[str, Any]) -> None:
    """Write `files` and a manifest with `facts` as the folder `target`, whole or not at all."""
    temporary = _aside(target)
    try:
        temporary.mkdir()
        digests = {}
        for name, data in files:
            write_bytes(temporary / name, data)
            digests[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_bytes(temporary / MANIFEST, _seal({"format": FORMAT, **facts, "files": digests}))
        sync_folder(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _seal(manifest: dict[str, Any]) -> bytes:
    """The manifest as text with its own digest, so that no byte of it can change unnoticed."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2).encode()


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written; else raises Damaged."""
    name = MANIFEST
    try:
        text = (folder / MANIFEST).read_bytes()
        content = json.loads(text)
        del content["sha256"]
        whole = _seal(content) == text
        for name, expected in content["files"].items() if whole else ():
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected["sha256"]:
                raise Damaged(f"{name} is not as it was written")
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{MANIFEST} is not as it was written")
    if content["format"] != FORMAT:
        raise UserError(f"{folder} is not of format {FORMAT}. Read it with the version it is of.")
    return content


def candidates(folder: Path) -> list[Path]:
    """The checkpoints in a `ckpt` folder, newest first, damaged ones included."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if FOLDER.fullmatch(p.name)), key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    """The step of a checkpoint folder, and how often that step was saved before."""
    step, attempt = FOLDER.fullmatch(path.name).groups()
    return int(step), int(attempt or 0)


def free_name(folder: Path, step: int) -> str:
    """A name for this step that is not taken, so that a save never has to replace a folder."""
    name, attempt = f"step-{step:08d}", 0
    while (folder / name).exists():
        attempt += 1
        name = f"step-{step:08d}.{attempt}"
    return name


def prune(folder: Path, current: str, keep: int, spare: set[str | None]) -> None:
    """Delete all but the current checkpoint, the `keep - 1` steps before it, and those to spare.

    What is newer than the current step was damaged, or training had resumed from it.
    """
    older: dict[int, str] = {}  # of several saves of a step, the newest
    for path in candidates(folder):
        older.setdefault(_order(path)[0], path.name)
    now = _order(folder / current)[0]
    before = [name for step, name in older.items() if step < now]
    for path in candidates(folder):
        if path.name not in {current, *before[: keep - 1], *spare}:
            with suppress(OSError):  # left to the next sweep
                doomed = path.rename(_aside(path))  # gone from its name before anything is missing
                shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Delete what dead processes left half written or half deleted."""
    for path in folder.glob(".tmp-*"):
        owner = path.name.rpartition("-")[2]
        # Our own number too: in a container every process has the same, and nothing is under way.
        if not owner.isdigit() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name.removeprefix('step-')}-{os.getpid()}")

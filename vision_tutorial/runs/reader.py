"""Run folders read back as `Run` objects.

A folder may be of someone else, half-written, damaged or hostile: `collect` never raises, it gives
one line for each folder that is left out. Nothing in it is executed, expanded or trusted.
"""

import datetime
import glob
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from ..core.errors import UserError, short
from ..recipe.fields import plain_defaults
from ..recipe.yaml_lines import read_document
from .redaction import redact
from .run import NOTES, Note, Run, as_text, json_object
from .run_folder import append_row

_FILES = ("recipe.yaml", "status.json", "metrics.jsonl", "summary.json", "fingerprint.json")
_SEARCH_DEPTH = 3  # runs/<recipe>/<id>, and a folder around it


def collect(words: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """The runs that `words` name, each once, in order; and a line for each that is left out.

    A word is a run folder, a folder that holds run folders (at any of three levels), or a pattern.
    """
    runs: dict[Path, Run] = {}
    complaints = []
    for word in words:
        folders, left_out = _find(word)
        complaints += left_out
        for folder in folders:
            try:
                place = folder.resolve()
                if place not in runs:
                    runs[place] = read(folder)
            except (UserError, OSError) as error:
                complaints.append(_complaint(folder, error))
    return list(runs.values()), complaints


def read(folder: Path | str) -> Run:
    """One run folder. UserError, one line, if it is none, or if a file of it is damaged."""
    folder = Path(folder)
    path, url = folder / "recipe.yaml", folder / "wandb" / "url"
    try:
        if not path.is_file():
            raise UserError("no recipe.yaml in it")
        recipe = read_document(path, path.name).values
        if not recipe:
            raise UserError("recipe.yaml is empty")
        recipe |= {k: v for k, v in plain_defaults().items() if k not in recipe}
        link = url.read_text(encoding="utf-8").strip() if url.is_file() else ""
        fingerprint = json_object(folder / "fingerprint.json")
        return Run(
            name=str(recipe["name"]),
            id=folder.absolute().name,
            recipe=recipe,
            status=_status(json_object(folder / "status.json"), fingerprint),
            summary=json_object(folder / "summary.json"),
            fingerprint=fingerprint,
            folder=folder,
            link=link if re.fullmatch(r"https?://\S{1,500}", link) else None,
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(_one_line(error)) from error


def add_note(folder: Path | str, text: str) -> Note:
    """Add a note to a run; it is on the disk when this returns. UserError if that is no run."""
    folder = Path(folder)
    if not _is_run(folder):
        raise UserError(f"{folder}: no run folder; give one that `train` made.")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    note = Note(now, redact(text))
    append_row(folder / NOTES, note._asdict())
    return note


def natural(text: Path | str) -> list[Any]:
    """A key to sort by: r2 before r10."""
    parts = re.split(r"(\d+)", str(text))
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


# -- finding ---------------------------------------------------------------------------------------


def _find(word: Path | str) -> tuple[list[Path], list[str]]:
    """The run folders that a word names, sorted; and a line for each folder that is none."""
    path = Path(word)
    try:
        pattern = glob.has_magic(str(word)) and not path.exists()
    except (OSError, ValueError):  # a name too long, say
        pattern = False
    if not pattern:
        return _search(path, _SEARCH_DEPTH)
    matches = [Path(name) for name in sorted(glob.glob(str(word)), key=natural)]
    folders = [path for path in matches if path.is_dir()]  # runs/r4/* may match files too
    if not folders:
        return [], [_complaint(path, "no folder has this name")]
    return _joined(folders, _SEARCH_DEPTH)


def _search(folder: Path, depth: int) -> tuple[list[Path], list[str]]:
    """The runs in a folder; a line for each folder below it that holds none."""
    try:
        if not folder.is_dir():
            return [], [_complaint(folder, "no such folder")]
        if _is_run(folder):
            return [folder], []
        names = sorted((p.name for p in folder.iterdir() if p.name[0] != "."), key=natural)
    except OSError as error:
        return [], [_complaint(folder, error)]
    inner = [folder / name for name in names if (folder / name).is_dir()] if depth else []
    runs, left_out = _joined(inner, depth - 1)
    if not runs:
        return [], [_complaint(folder, "holds no run" if names else "empty")]
    return runs, left_out


def _joined(folders: Iterable[Path], depth: int) -> tuple[list[Path], list[str]]:
    results = [_search(folder, depth) for folder in folders]
    return [run for runs, _ in results for run in runs], [x for _, lost in results for x in lost]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _one_line(reason: Any) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    return " ".join(str(reason).split())


def _complaint(folder: Path, reason: Any) -> str:
    return f"left out {short(str(folder), 200)}: {short(_one_line(reason), 300)}"


def _status(status: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    word = as_text(status.get("status")) or "not started"
    pid, here = status.get("pid"), fingerprint.get("host") == platform.node()
    known = here and isinstance(pid, int) and 0 < pid < 2**31
    return "killed" if word == "running" and known and not psutil.pid_exists(pid) else word

"""Run folders read back as `Run` objects.

A folder may be another's, half-written, damaged or hostile: `collect` never raises, it gives a
line of complaint for each that is left out. Nothing in it is executed, expanded or trusted.
"""

import datetime
import glob
import json
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml

from ..core.errors import UserError, short, shown
from ..recipe import yaml_lines
from ..recipe.fields import Recipe, plain_default
from . import run_folder
from .run import NOTES, Note, Run, as_text, mapping

FILES = ("recipe.yaml", "status.json", "metrics.jsonl", "summary.json", "fingerprint.json")
SEARCH_DEPTH = 3  # runs/<recipe>/<id>, and a folder around it


def collect(words: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """The runs that `words` name, each once, in order; and a line for each that is left out.

    A word is a run folder, a folder that holds run folders (at any of three levels), or a pattern.
    """
    found: dict[Path, Run] = {}
    complaints = []
    for word in words:
        folders, lost = find(word)
        complaints += lost
        for folder in folders:
            try:
                place = folder.resolve()
                if place not in found:
                    found[place] = read(folder)
            except (UserError, OSError) as error:
                complaints.append(_complaint(folder, error))
    return list(found.values()), complaints


def find(word: Path | str) -> tuple[list[Path], list[str]]:
    """The run folders that a word names, sorted; and a line for each folder that is none."""
    path = Path(word)
    if not _exists(path) and glob.has_magic(str(word)):
        paths = [Path(name) for name in sorted(glob.glob(str(word)), key=natural)]
        paths = [path for path in paths if path.is_dir()]  # runs/r4/* may match files too
    else:
        paths = [path]
    if not paths:
        return [], [_complaint(path, "no folder is called so")]
    results = [_search(path, SEARCH_DEPTH) for path in paths]
    return [run for runs, _ in results for run in runs], [x for _, lost in results for x in lost]


def is_run(folder: Path) -> bool:
    """Whether the folder holds anything that `train` writes."""
    return any((folder / name).is_file() for name in FILES)


def read(folder: Path | str) -> Run:
    """One run folder. UserError, one line, if it is none, or if a file of it is damaged."""
    folder = Path(folder)
    try:
        recipe = _recipe(folder / "recipe.yaml")
        status = mapping(folder, "status.json")
        fingerprint = mapping(folder, "fingerprint.json")
        return Run(
            name=str(recipe["name"]),
            id=folder.absolute().name,
            recipe=recipe,
            status=_status(status, fingerprint),
            summary=mapping(folder, "summary.json"),
            fingerprint=fingerprint,
            folder=folder,
            link=_link(folder),
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(_one_line(error)) from error


def add_note(folder: Path | str, text: str) -> Note:
    """Add a note to a run; it is on the disk when this returns. UserError if that is no run."""
    folder = Path(folder)
    if not is_run(folder):
        raise UserError(f"{folder}: no run folder; give one that `train` made.")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    note = Note(now, run_folder.redact(text))
    run_folder.append_row(folder / NOTES, note._asdict())
    return note


def natural(text: Path | str) -> list[Any]:
    """A key to sort by: r2 before r10."""
    parts = re.split(r"(\d+)", str(text))
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def _search(folder: Path, depth: int) -> tuple[list[Path], list[str]]:
    """The runs in a folder; a line for each folder below it that holds none."""
    try:
        if not folder.is_dir():
            return [], [_complaint(folder, "no such folder")]
        if is_run(folder):
            return [folder], []
        names = sorted((p.name for p in folder.iterdir() if p.name[0] != "."), key=natural)
    except OSError as error:
        return [], [_complaint(folder, error)]
    inner = [folder / name for name in names if (folder / name).is_dir()] if depth else []
    results = [_search(child, depth - 1) for child in inner]
    if not any(runs for runs, _ in results):
        return [], [_complaint(folder, "holds no run" if names else "empty")]
    return [run for runs, _ in results for run in runs], [x for _, lost in results for x in lost]


def _one_line(reason: Any) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    return " ".join(str(reason).split())


def _complaint(folder: Path, reason: Any) -> str:
    return f"left out {short(str(folder), 200)}: {short(_one_line(reason), 300)}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, say
        return False


def _recipe(path: Path) -> dict[str, Any]:
    """The plain recipe; keys that it lacks, as those of an older version do, get their defaults."""
    if not path.is_file():
        raise UserError("no recipe.yaml in it")
    if path.stat().st_size > yaml_lines.MAX_BYTES:
        raise UserError(f"recipe.yaml is larger than {yaml_lines.MAX_BYTES:,} bytes")
    try:
        values = _yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe.yaml is no YAML: {_one_line(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"recipe.yaml holds {shown(values)}, no recipe")
    lacking = [key for key in Recipe.model_fields if key not in values]
    return values | {key: plain_default(key) for key in lacking}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The compiled reader, with the scalars of `document.Loader` and five times as fast."""

    yaml_implicit_resolvers = yaml_lines.Loader.yaml_implicit_resolvers
    yaml_constructors = yaml_lines.Loader.yaml_constructors


def _yaml(text: str) -> Any:
    """YAML as values that JSON has. Aliases could expand; depth overflows the reader's stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        named = getattr(event, "anchor", None) or getattr(event, "tag", None) not in (None, "!")
        if named or depth > yaml_lines.MAX_DEPTH:
            raise UserError("recipe.yaml holds anchors or tags, or is nested too deep")
    return json.loads(json.dumps(yaml.load(text, _Loader)))


def _status(status: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    said = as_text(status.get("status")) or "not started"
    pid, here = status.get("pid"), fingerprint.get("host") == platform.node()
    known = here and isinstance(pid, int) and 0 < pid < 2**31
    return "killed" if said == "running" and known and not psutil.pid_exists(pid) else said


def _link(folder: Path) -> str | None:
    """The run's page at wandb, as the tracker kept it."""
    path = folder / "wandb" / "url"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return text if re.fullmatch(r"https?://\S{1,500}", text) else None

"""Run folders read back as `Run` objects: what each was, what came of it. No torch.

A folder may be another's, half-written, damaged or hostile: `collect` never raises, it gives a
line of complaint for each that is left out. Nothing in it is executed, expanded or trusted.
"""

import datetime
import glob
import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from . import document, runs
from .errors import UserError, short, shown
from .recipe import RESUMABLE, Recipe, plain_default

FILES = ("recipe.yaml", "status.json", "metrics.jsonl", "summary.json", "fingerprint.json")
NOTES = "notes.jsonl"
SEARCH_DEPTH = 3  # runs/<recipe>/<id>, and a folder around it
HEADLINES = ("val/top1", "val/miou")  # of runs that have no summary yet
LOWER_IS_BETTER = re.compile(r"(loss|cross_entropy|error)$")
# Keys of a recipe that change nothing of what is learnt. (`epochs` does, though a run that is
# continued may have more of them.)
UNESSENTIAL = RESUMABLE - {"epochs"}


class Point(NamedTuple):
    """The headline metric at the end of an epoch."""

    epoch: int
    value: float


class Note(NamedTuple):
    """A remark of a person about a run. Untrusted text."""

    time: str  # ISO 8601
    text: str


@dataclass(frozen=True, eq=False)
class Run:
    """One training. Names, notes and everything in `recipe` are untrusted text.

    status: running, done, paused, preempted, failed, `killed` (it says running, and its process is
    gone), or `not started`. recipe: as in recipe.yaml, with the default of every key it lacks.
    """

    name: str
    id: str
    recipe: dict[str, Any]
    status: str = "not started"
    summary: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None  # None: it was read from wandb
    link: str | None = None  # its page at wandb

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a row an epoch; lines that are damaged are left out."""
        return _rows(self.folder / "metrics.jsonl") if self.folder else []

    @cached_property
    def classes(self) -> dict[str, list[Any]]:
        """classes.json: columns by name, all of one length; {} if there is none."""
        try:
            table = _mapping(self.folder, "classes.json") if self.folder else {}
        except UserError:
            return {}
        columns = list(table.values())
        whole = all(
            isinstance(column, list) and len(column) == len(columns[0]) for column in columns
        )
        return table if whole else {}

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """What people wrote about it, oldest first."""
        rows = _rows(self.folder / NOTES) if self.folder else []
        texts = (row for row in rows if isinstance(row.get("text"), str))
        return tuple(Note(str(row.get("time", "")), row["text"]) for row in texts)

    @property
    def metric(self) -> str | None:
        """The headline metric's name in `rows`, such as val/top1."""
        named = self.summary.get("metric")
        if isinstance(named, str):
            return named
        found = [name for row in self.rows for name in row if name.startswith("val/")]
        return next((name for name in HEADLINES if name in found), found[0] if found else None)

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline metric is better, judged by its name."""
        return not LOWER_IS_BETTER.search(self.metric or "")

    @cached_property
    def points(self) -> list[Point]:
        """The headline metric of every evaluated epoch, from `rows`."""
        pairs = ((number(row.get("epoch")), number(row.get(self.metric))) for row in self.rows)
        return [Point(int(epoch), v) for epoch, v in pairs if epoch is not None and v is not None]

    @property
    def best(self) -> Point | None:
        """The best evaluated epoch so far."""
        if self._summed_up:
            return _point(self.summary.get("best"))
        pick = max if self.higher_is_better else min
        return pick(self.points, key=lambda point: point.value, default=None)

    @property
    def last(self) -> Point | None:
        """The last evaluated epoch so far."""
        if self._summed_up:
            return _point(self.summary.get("last"))
        return self.points[-1] if self.points else None

    @property
    def epochs(self) -> int:
        """How many were finished."""
        done = number(self.summary.get("epochs")) if self._summed_up else None
        return len(self.rows) if done is None else int(done)

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of training and evaluation, over all of its starts."""
        if self._summed_up:
            return number(self.summary.get("wall_seconds"))
        parts = ("seconds", "seconds_eval")
        return sum(number(row.get(part)) or 0.0 for row in self.rows for part in parts) or None

    @property
    def _summed_up(self) -> bool:
        """Whether summary.json is of the last start, not of one before that went on."""
        return bool(self.summary) and self.summary.get("status") == self.status

    @property
    def expects(self) -> dict[str, float]:
        """What the recipe claims, where it is known: {"top1": 82.13, "minutes": 61.0}."""
        claims = self.recipe.get("expects")
        pairs = ((k, number(v)) for k, v in (claims if isinstance(claims, dict) else {}).items())
        return {name: value for name, value in pairs if value is not None}

    @property
    def chosen_on(self) -> str | None:
        """The split that the best epoch was chosen on: test, or a hold-out."""
        return _text(self.summary.get("chosen_on"))

    @property
    def created(self) -> str | None:
        """When it was first started: ISO 8601, UTC."""
        return _text(self.fingerprint.get("created"))

    @property
    def base(self) -> str | None:
        """The file that the recipe extends, such as r3.yaml."""
        return _text(self._origin.get("base"))

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What the recipe changed in its base: {key: (before, after)}."""
        kept = self._origin.get("changes")
        pairs = (kept if isinstance(kept, dict) else {}).items()
        return {k: tuple(v) for k, v in pairs if isinstance(v, list) and len(v) == 2}

    @property
    def _origin(self) -> dict[str, Any]:
        kept = self.fingerprint.get("recipe")
        return kept if isinstance(kept, dict) else {}

    @property
    def seed(self) -> Any:
        """What runs of one `experiment` differ in."""
        return self.recipe.get("seed")

    @cached_property
    def experiment(self) -> str:
        """A hash, equal for runs that differ in their seed alone: one recipe, the same data."""
        return f"{recipe_key(self.recipe)}-{self.fingerprint.get('data')}"


def recipe_key(recipe: dict[str, Any]) -> str:
    """A hash of what a plain recipe says of learning, its seed left out."""
    values = {k: v for k, v in recipe.items() if k not in UNESSENTIAL | {"seed"}}
    if isinstance(values.get("data"), dict):
        values["data"] = {k: v for k, v in values["data"].items() if k != "memory"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


# -- reading ---------------------------------------------------------------------------------------


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
        status = _mapping(folder, "status.json")
        fingerprint = _mapping(folder, "fingerprint.json")
        return Run(
            name=str(recipe["name"]),
            id=folder.absolute().name,
            recipe=recipe,
            status=_status(status, fingerprint),
            summary=_mapping(folder, "summary.json"),
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
    note = Note(now, runs.redact(text))
    runs.append_row(folder / NOTES, note._asdict())
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


def _complaint(folder: Path, reason: Any) -> str:
    return f"left out {short(str(folder), 200)}: {short(_one_line(reason), 300)}"


def _one_line(reason: Any) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    return " ".join(str(reason).split())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, say
        return False


def _recipe(path: Path) -> dict[str, Any]:
    """The plain recipe; keys that it lacks, as those of an older version do, get their defaults."""
    if not path.is_file():
        raise UserError("no recipe.yaml in it")
    if path.stat().st_size > document.MAX_BYTES:
        raise UserError(f"recipe.yaml is larger than {document.MAX_BYTES:,} bytes")
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

    yaml_implicit_resolvers = document.Loader.yaml_implicit_resolvers
    yaml_constructors = document.Loader.yaml_constructors


def _yaml(text: str) -> Any:
    """YAML as values that JSON has. Aliases could expand; depth overflows the reader's stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        named = getattr(event, "anchor", None) or getattr(event, "tag", None) not in (None, "!")
        if named or depth > document.MAX_DEPTH:
            raise UserError("recipe.yaml holds anchors or tags, or is nested too deep")
    return json.loads(json.dumps(yaml.load(text, _Loader)))


def _mapping(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a file; {} if there is none."""
    if not (folder / name).is_file():
        return {}
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{name} holds {shown(value)}, no object")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; [] if there is none."""
    return list(_objects(path))


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _status(status: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    said = _text(status.get("status")) or "not started"
    pid, here = status.get("pid"), fingerprint.get("host") == platform.node()
    if said == "running" and here and isinstance(pid, int) and not psutil.pid_exists(pid):
        return "killed"
    return said


def _link(folder: Path) -> str | None:
    """The run's page at wandb, as the tracker kept it."""
    path = folder / "wandb" / "url"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return text if re.fullmatch(r"https?://\S{1,500}", text) else None


def _point(value: Any) -> Point | None:
    if not isinstance(value, dict):
        return None
    epoch, metric = number(value.get("epoch")), number(value.get("value"))
    return None if epoch is None or metric is None else Point(int(epoch), metric)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

"""Run folders read back: what a training was and what came of it. No torch.

A folder may be of someone else, half-written, damaged or hostile: `collect` never raises, it gives
one line for each folder that is left out. Nothing in it is executed, expanded or trusted.
"""

import datetime
import glob
import os
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ..core.errors import UserError, short, shown
from ..recipe.fields import UNESSENTIAL, digest, plain_defaults
from ..recipe.loading import read_back
from ..recipe.notation import number
from ..recipe.yaml_lines import read_document
from .redaction import redact
from .run_folder import append_row, json_object, read_rows, recipe_file

NOTES = "notes.jsonl"
_FILES = ("recipe.yaml", "status.json", "metrics.jsonl", "summary.json", "fingerprint.json")
_SEARCH_DEPTH = 6  # class/<person>/runs/<recipe>/<id>, and some folder around it
_HEADLINES = ("val/top1", "val/miou")  # of runs that have no summary yet
_LOWER_IS_BETTER = re.compile(r"(loss|cross_entropy|error)$")


class Point(NamedTuple):
    """The headline metric at the end of an epoch."""

    epoch: int
    value: float


class Note(NamedTuple):
    """A remark of a person about a run. Untrusted text."""

    time: str  # ISO 8601
    text: str


@dataclass(eq=False)
class Run:
    """One training. Names, notes and everything in `recipe` are untrusted text.

    status: running, done, paused, preempted, failed, `killed` (it says running, and its process is
    gone), or `not started`. recipe: as in recipe.yaml, with the default of every key it lacks;
    `typed` is the same with the objects that the recipe had when it was trained. Of best, last and
    the like the summary tells if it is of the last start, else the rows.
    """

    name: str
    id: str
    recipe: dict[str, Any]
    status: str = "not started"
    summary: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None  # None: it was read from wandb
    link: str | None = None  # its page at wandb
    chosen_on: str | None = field(init=False)  # the split that the best epoch was chosen on
    created: str | None = field(init=False)  # when it was first started: ISO 8601, UTC
    origin: Mapping[str, Any] = field(init=False)  # `file` of the recipe, its `base`, …
    base: str | None = field(init=False)  # the file that the recipe extends, such as r3.yaml
    changes: dict[str, tuple[Any, Any]] = field(init=False)  # in the base: {key: (before, after)}
    expects: dict[str, float] = field(init=False)  # the recipe's claims: {"top1": 82.13}

    def __post_init__(self) -> None:
        self.chosen_on = _text(self.summary.get("chosen_on"))
        self.created = _text(self.fingerprint.get("created"))
        self.origin = _mapping(self.fingerprint.get("recipe"))
        self.base = _text(self.origin.get("base"))
        pairs = _mapping(self.origin.get("changes")).items()
        self.changes = {k: tuple(v) for k, v in pairs if isinstance(v, list) and len(v) == 2}
        claims = {k: number(v) for k, v in _mapping(self.recipe.get("expects")).items()}
        self.expects = {name: value for name, value in claims.items() if value is not None}

    @cached_property
    def typed(self) -> dict[str, Any]:
        """`recipe` with typed values: a Choice, Terms, or a tuple of Choices."""
        return read_back(self.recipe)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a row an epoch; lines that are damaged are left out."""
        return read_rows(self.folder / "metrics.jsonl", strict=False) if self.folder else []

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row an epoch, as in metrics.jsonl."""
        return self.rows

    def to_pandas(self) -> Any:
        """The rows as a DataFrame with the epoch as index. UserError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs the package pandas: pip install pandas.") from error
        return pandas.DataFrame(self.rows).set_index("epoch")

    @cached_property
    def classes(self) -> dict[str, list[Any]]:
        """classes.json: columns by name, all of one length; {} if there is none."""
        table = {}
        with suppress(UserError):
            table = json_object(self.folder / "classes.json") if self.folder else {}
        lengths = {len(c) if isinstance(c, list) else None for c in table.values()}
        return table if len(lengths) == 1 and None not in lengths else {}

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """What people wrote about it, oldest first."""
        rows = read_rows(self.folder / NOTES, strict=False) if self.folder else []
        texts = (row for row in rows if isinstance(row.get("text"), str))
        return tuple(Note(str(row.get("time", "")), row["text"]) for row in texts)

    @cached_property
    def metric(self) -> str | None:
        """The headline metric's name in `rows`, such as val/top1."""
        if named := _text(self.summary.get("metric")):
            return named
        found = [name for row in self.rows for name in row if name.startswith("val/")]
        return next((name for name in _HEADLINES if name in found), found[0] if found else None)

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline metric is better, judged by its name."""
        return not _LOWER_IS_BETTER.search(self.metric or "")

    @cached_property
    def best(self) -> Point | None:
        """The best evaluated epoch so far."""
        return _point(self._ended.get("best")) if self._ended else self.best_row()

    @cached_property
    def last(self) -> Point | None:
        """The last evaluated epoch so far."""
        return _point(self._ended.get("last")) if self._ended else (self._points or [None])[-1]

    @property
    def epochs(self) -> int:
        """How many were finished."""
        return int(number(self._ended.get("epochs")) or len(self.rows))

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of training and evaluation, over all of its starts."""
        if self._ended:
            return number(self._ended.get("wall_seconds"))
        parts = ("seconds", "seconds_eval")
        return sum(number(row.get(part)) or 0.0 for row in self.rows for part in parts) or None

    def best_row(self, epochs: float = float("inf")) -> Point | None:
        """The best evaluated epoch in `rows`, of the first `epochs`."""
        points = [point for point in self._points if point.epoch <= epochs]
        pick = max if self.higher_is_better else min
        return pick(points, key=lambda point: point.value, default=None)

    @cached_property
    def _points(self) -> list[Point]:
        pairs = ({"epoch": r.get("epoch"), "value": r.get(self.metric)} for r in self.rows)
        return [point for point in map(_point, pairs) if point]

    @property
    def _ended(self) -> dict[str, Any]:
        return self.summary if self.summary.get("status") == self.status else {}

    @property
    def base_recipe(self) -> dict[str, Any]:
        """The plain recipe with the changes taken back."""
        return self.recipe | {key: before for key, (before, _) in self.changes.items()}

    @cached_property
    def key(self) -> str:
        return recipe_key(self.recipe)

    @property
    def experiment(self) -> str:
        """Equal for runs that differ in their seed alone: one recipe, the same data.

        Of a part of the data that cannot be told by its hash: the seed decides which part it is.
        """
        part = self.recipe.get("subset") or self.recipe.get("holdout")
        parts = [self.key] + [str(self.fingerprint.get("data"))] * (not part)
        return "-".join([*parts, *self.resumed])

    @property
    def resumed(self) -> list[str]:
        """What was changed on a resume, and when; such a run is no training of its recipe."""
        found = self.fingerprint.get("resumed")
        lines = []
        for one in found if isinstance(found, list) else ():
            pairs = _mapping(_mapping(one).get("changes")).items()
            pairs = ((short(k, 60), v) for k, v in pairs if isinstance(v, list))
            words = [f"{k} {' -> '.join(map(shown, v))}" for k, v in pairs]
            lines.append(f"{', '.join(words)} after step {number(one.get('step')) or 0:g}")
        return lines


def recipe_key(recipe: dict[str, Any]) -> str:
    """A hash of what a plain recipe says of learning, its seed left out."""
    return digest(recipe, UNESSENTIAL | {"seed"})


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
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    note = Note(now, redact(text))
    append_row(recipe_file(Path(folder)).with_name(NOTES), note._asdict())
    return note


def local_time(text: str) -> str:
    """An ISO 8601 time (UTC, where it does not say), as a person's clock here shows it:
    "2026-12-01 11:51"; what is no time stays."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return when.astimezone().isoformat(" ", "minutes")[:16]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _point(value: Any) -> Point | None:
    epoch, metric = (number(_mapping(value).get(key)) for key in ("epoch", "value"))
    return None if epoch is None or metric is None else Point(int(epoch), metric)


def _status(status: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    word = _text(status.get("status")) or "not started"
    pid, here = status.get("pid"), fingerprint.get("host") == platform.node()
    known = here and isinstance(pid, int) and 0 < pid < 2**31
    return "killed" if word == "running" and known and not psutil.pid_exists(pid) else word


def collect(words: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """The runs that `words` name, each once, in order; and a line for each that is left out.

    A word is a run folder, a folder that holds run folders (at any of six levels), or a pattern.
    """
    runs: dict[Path, Run] = {}
    complaints = []
    for word in words:
        folders = [Path(word)]
        if glob.has_magic(str(word)) and not os.path.exists(word):
            names = sorted(glob.glob(str(word)), key=natural)
            folders = [Path(name) for name in names if os.path.isdir(name)]
            if not folders:
                complaints.append(_complaint(word, "no folder has this name"))
        for found in (found for folder in folders for found in _search(folder, _SEARCH_DEPTH)):
            if isinstance(found, str):
                complaints.append(found)
                continue
            try:
                place = found.resolve()
                if place not in runs:
                    runs[place] = read(found)
            except (UserError, OSError) as error:
                complaints.append(_complaint(found, error))
    return list(runs.values()), complaints


def natural(text: Path | str) -> list[Any]:
    """A key to sort by: r2 before r10."""
    parts = re.split(r"(\d+)", str(text))
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def _search(folder: Path, depth: int) -> list[Path | str]:
    """The runs in a folder, sorted, with a line for each folder beside them that holds none."""
    try:
        if any((folder / name).is_file() for name in _FILES):
            return [folder]
        names = sorted((path.name for path in folder.iterdir()), key=natural)
        inner = [folder / n for n in names if n[0] != "." and (folder / n).is_dir()]
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        return [_complaint(folder, error)]
    found = [found for path in inner for found in _search(path, depth - 1)] if depth else []
    is_empty = all(isinstance(each, str) for each in found)
    return [_complaint(folder, "holds no run")] if is_empty else found


def _one_line(reason: Any) -> str:
    return " ".join(str(getattr(reason, "strerror", None) or reason).split())


def _complaint(folder: Path | str, reason: Any) -> str:
    return f"left out {short(str(folder), 200)}: {short(_one_line(reason), 300)}"

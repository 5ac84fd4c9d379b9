"""What one training was and what came of it, from the files it left. No torch."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import UserError, shown
from ..recipe.fields import UNESSENTIAL, digest
from ..recipe.loading import read_back
from ..recipe.notation import number

NOTES = "notes.jsonl"
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


@dataclass(frozen=True, eq=False)
class Run:
    """One training. Names, notes and everything in `recipe` are untrusted text.

    status: running, done, paused, preempted, failed, `killed` (it says running, and its process is
    gone), or `not started`. recipe: as in recipe.yaml, with the default of every key it lacks;
    `typed` is the same with the objects that the recipe had when it was trained.
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
    def typed(self) -> dict[str, Any]:
        """`recipe` with typed values: a Choice, Terms, or a tuple of Choices."""
        return read_back(self.recipe)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a row an epoch; lines that are damaged are left out."""
        return _json_lines(self.folder / "metrics.jsonl") if self.folder else []

    @cached_property
    def classes(self) -> dict[str, list[Any]]:
        """classes.json: columns by name, all of one length; {} if there is none."""
        try:
            table = json_object(self.folder / "classes.json") if self.folder else {}
        except UserError:
            return {}
        lengths = {len(c) if isinstance(c, list) else None for c in table.values()}
        return table if len(lengths) == 1 and None not in lengths else {}

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """What people wrote about it, oldest first."""
        rows = _json_lines(self.folder / NOTES) if self.folder else []
        texts = (row for row in rows if isinstance(row.get("text"), str))
        return tuple(Note(str(row.get("time", "")), row["text"]) for row in texts)

    @cached_property
    def metric(self) -> str | None:
        """The headline metric's name in `rows`, such as val/top1."""
        named = self.summary.get("metric")
        if isinstance(named, str):
            return named
        found = [name for row in self.rows for name in row if name.startswith("val/")]
        return next((name for name in _HEADLINES if name in found), found[0] if found else None)

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline metric is better, judged by its name."""
        return not _LOWER_IS_BETTER.search(self.metric or "")

    @cached_property
    def points(self) -> list[Point]:
        """The headline metric of every evaluated epoch, from `rows`."""
        pairs = ((number(row.get("epoch")), number(row.get(self.metric))) for row in self.rows)
        return [Point(int(epoch), v) for epoch, v in pairs if epoch is not None and v is not None]

    @cached_property
    def best(self) -> Point | None:
        """The best evaluated epoch so far."""
        if self._has_summary:
            return _point(self.summary.get("best"))
        pick = max if self.higher_is_better else min
        return pick(self.points, key=lambda point: point.value, default=None)

    @cached_property
    def last(self) -> Point | None:
        """The last evaluated epoch so far."""
        if self._has_summary:
            return _point(self.summary.get("last"))
        return self.points[-1] if self.points else None

    @property
    def epochs(self) -> int:
        """How many were finished."""
        done = number(self.summary.get("epochs")) if self._has_summary else None
        return len(self.rows) if done is None else int(done)

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of training and evaluation, over all of its starts."""
        if self._has_summary:
            return number(self.summary.get("wall_seconds"))
        parts = ("seconds", "seconds_eval")
        return sum(number(row.get(part)) or 0.0 for row in self.rows for part in parts) or None

    @property
    def _has_summary(self) -> bool:
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
        return as_text(self.summary.get("chosen_on"))

    @property
    def created(self) -> str | None:
        """When it was first started: ISO 8601, UTC."""
        return as_text(self.fingerprint.get("created"))

    @property
    def file(self) -> str | None:
        """The recipe file that it was trained from, such as r4.yaml."""
        return as_text(self._origin.get("file"))

    @property
    def base(self) -> str | None:
        """The file that the recipe extends, such as r3.yaml."""
        return as_text(self._origin.get("base"))

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What the recipe changed in its base: {key: (before, after)}."""
        kept = self._origin.get("changes")
        pairs = (kept if isinstance(kept, dict) else {}).items()
        return {k: tuple(v) for k, v in pairs if isinstance(v, list) and len(v) == 2}

    @property
    def base_recipe(self) -> dict[str, Any]:
        """The plain recipe with the changes taken back."""
        return self.recipe | {key: before for key, (before, _) in self.changes.items()}

    @property
    def _origin(self) -> dict[str, Any]:
        kept = self.fingerprint.get("recipe")
        return kept if isinstance(kept, dict) else {}

    @property
    def seed(self) -> Any:
        """What runs of one `experiment` differ in."""
        return self.recipe.get("seed")

    @cached_property
    def key(self) -> str:
        """`recipe_key` of its recipe."""
        return recipe_key(self.recipe)

    @property
    def experiment(self) -> str:
        """Equal for runs that differ in their seed alone: one recipe, the same data.

        Of a part of the data that cannot be told by its hash: the seed decides which part it is.
        """
        part = self.recipe.get("subset") or self.recipe.get("holdout")
        return self.key if part else f"{self.key}-{self.fingerprint.get('data')}"


def recipe_key(recipe: dict[str, Any]) -> str:
    """A hash of what a plain recipe says of learning, its seed left out."""
    return digest(recipe, UNESSENTIAL | {"seed"})


def as_text(value: Any) -> str | None:
    """`value` if it is text, else None."""
    return value if isinstance(value, str) else None


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file; {} if there is none, UserError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path.name} holds {shown(value)}, no object")
    return value


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, damaged lines left out; [] if there is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


def _point(value: Any) -> Point | None:
    if not isinstance(value, dict):
        return None
    epoch, metric = number(value.get("epoch")), number(value.get("value"))
    return None if epoch is None or metric is None else Point(int(epoch), metric)

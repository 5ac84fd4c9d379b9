"""A sweep file: which points of a recipe are tried, on which seeds, in which order. No torch here.

Keys and values are overrides, as on the command line of `train`. docs/sweep.md shows a file.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError

from ..core.errors import UserError, short, shown
from ..core.names import folder_name
from ..recipe.fields import Frozen, Recipe, to_plain, written
from ..recipe.grammar import mistake
from ..recipe.loading import COMMAND_LINE, Loaded, load, recipe_path, split_variant
from ..recipe.yaml_lines import Document, Key, read_document
from ..runs.reader import recipe_key
from ..runs.redaction import refuse_secrets

_MOST_POINTS = 1000
_SOME = Field(min_length=1)


class _Tried(Frozen):
    grid: Annotated[dict[str, Annotated[list[Any], _SOME]], _SOME] | None = None
    points: Annotated[list[dict[str, Any]], _SOME] | None = None


class _Stage(_Tried):
    name: str | None = None


class _File(_Tried):
    recipe: str
    set: dict[str, Any] = {}
    stages: Annotated[list[_Stage], _SOME] | None = None
    seeds: Annotated[list[int], _SOME] | None = None
    metric: Annotated[str, _SOME] | None = None
    direction: Literal["min", "max"] | None = None


class Stage(NamedTuple):
    """Overrides, `key=value`, to try, each choice on top of the best of the stages before."""

    name: str
    choices: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read. Every point of every stage is a recipe that loads."""

    path: Path
    recipe: Path
    common: tuple[str, ...]
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]  # () is each point's own
    metric: str | None
    more_is_better: bool
    given: tuple[str, ...]  # on the command line

    @property
    def name(self) -> str:
        """Also of the folder that holds the sweep's runs."""
        return folder_name(self.path.stem)


class SweepPoint(NamedTuple):
    """A recipe with settings. `id` is a hash of what it resolves to, but for the seed.

    So two spellings of one recipe are one point, and a recipe that has changed is another point.
    """

    settings: tuple[str, ...]  # what the sweep tries, without what all points have
    overrides: tuple[str, ...]
    recipe: Recipe
    id: str

    @property
    def words(self) -> str:
        """What the sweep tries here, as one would type it."""
        return " ".join(self.settings) or "the recipe as it is"


def points_of(sweep: Sweep, stage: int, best: Sequence[str] = ()) -> list[SweepPoint]:
    """The points of a stage, on top of the best settings of the stages before it; each once."""
    found: dict[str, SweepPoint] = {}
    for choice in sweep.stages[stage].choices:
        point = _point(sweep, (*best, *choice))
        found.setdefault(point.id, point)
    return list(found.values())


def _point(sweep: Sweep, settings: tuple[str, ...]) -> SweepPoint:
    # what the recipe claims is not claimed of the recipe with other settings
    overrides = (f"name={sweep.name}", "expects={}", *sweep.common, *settings, *sweep.given)
    loaded = _load(sweep, overrides)
    values = to_plain(loaded.recipe)
    try:
        refuse_secrets(values)
    except UserError as error:
        raise UserError(f"{sweep.path}: {error}") from error
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in loaded.imports]
    key = " ".join([recipe_key(values), *files])
    return SweepPoint(
        settings, overrides, loaded.recipe, hashlib.sha256(key.encode()).hexdigest()[:10]
    )


def _load(sweep: Sweep, overrides: Sequence[str]) -> Loaded:
    """The recipe with the overrides; an error in one names its place."""
    try:
        return load(sweep.recipe, overrides)
    except UserError as error:
        message = str(error)
        for text in overrides:
            place = getattr(text, "place", None)
            if place and message.startswith(f"{COMMAND_LINE} ({short(text, 50)})"):
                raise UserError(place + message.removeprefix(COMMAND_LINE)) from error
        raise


def read_sweep(path: Path | str, overrides: Iterable[str] = ()) -> Sweep:
    """Read a sweep file and check every point of it. UserError: file, line, what is allowed.

    overrides: `key=value` texts that hold for every point, whatever the file says.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{short(str(path), 200)}: no such sweep; give the path of a .yaml file, such as "
            "recipes/sweeps/quickstart-sweep.yaml."
        )
    document = read_document(path)
    document.places.setdefault((), str(path))  # of an empty file
    try:
        file = _File(**document.values)
    except ValidationError as error:
        problem = mistake(error, document.values, (), _keys)
        raise UserError(f"{_at(document, problem.path)}{problem}") from error
    recipes = [Path(os.path.normpath(path.parent / file.recipe)), recipe_path(file.recipe)]
    recipe = next((each for each in recipes if split_variant(each)[0].is_file()), None)
    if recipe is None:
        raise UserError(f"{_at(document, ('recipe',))}there is no {shown(file.recipe)}.")
    parts: list[tuple[str, Key, _Tried]] = [(path.stem, (), file)]
    if file.stages and not (file.grid or file.points):
        stages = enumerate(file.stages)
        parts = [(part.name or f"stage {n + 1}", ("stages", n), part) for n, part in stages]
    lower = file.direction == "min" if file.direction else (file.metric or "").endswith("loss")
    sweep = Sweep(
        path=path,
        recipe=recipe,
        common=_settings(file.set, document, ("set",)),
        stages=tuple(_stage(part, name, document, at) for name, at, part in parts),
        seeds=tuple(file.seeds or ()),
        metric=file.metric,
        more_is_better=not lower,
        given=tuple(overrides),
    )
    _check(sweep, document)
    return sweep


def _check(sweep: Sweep, document: Document) -> None:
    """Load every point on top of every choice that an earlier stage may make.

    Of the other earlier stages the first choice is taken, so that the work grows with the sum.
    """
    common = any(text.startswith("seed=") for text in (*sweep.common, *sweep.given))
    if len(set(sweep.seeds)) < len(sweep.seeds) or (sweep.seeds and common):
        where = "for all points too" if common else "twice"
        raise UserError(f"{_at(document, ('seeds',))}a seed is set {where}; set each once.")
    for seed in sweep.seeds:
        _load(sweep, [_Setting("seed", seed, document.places[("seeds",)])])
    for number, stage in enumerate(sweep.stages):
        firsts = [earlier.choices[0] for earlier in sweep.stages[:number]]
        before = {tuple(firsts)}
        for n, earlier in enumerate(sweep.stages[:number]):
            before |= {(*firsts[:n], choice, *firsts[n + 1 :]) for choice in earlier.choices}
        for best, choice in itertools.product(before, stage.choices):
            _point(sweep, (*itertools.chain(*best), *choice))


def _stage(part: _Tried, name: str, document: Document, at: Key) -> Stage:
    forms = [form for form in ("grid", "points", "stages") if hasattr(part, form)]
    given = [form for form in forms if getattr(part, form)]
    if len(given) != 1:
        text = f"{', '.join(given)} are given" if given else "none is given"
        raise UserError(f"{_at(document, at)}exactly one of {', '.join(forms)} is needed; {text}.")
    if part.points:
        points = enumerate(part.points)
        return Stage(name, tuple(_settings(p, document, (*at, "points", n)) for n, p in points))
    at = (*at, "grid")
    axes = [
        [_Setting(key, value, document.places[(*at, key, n)]) for n, value in enumerate(tried)]
        for key, tried in part.grid.items()
    ]
    if (count := math.prod(map(len, axes))) > _MOST_POINTS:
        message = f"{count:,} points; at most {_MOST_POINTS:,} are tried."
        raise UserError(_at(document, at) + message)
    return Stage(name, tuple(itertools.product(*axes)))


class _Setting(str):
    """An override, `key=value`, that knows its place in the sweep file, "file:line"."""

    place: str

    def __new__(cls, key: str, value: Any, place: str) -> Self:
        made = super().__new__(cls, f"{key}={written(value)}")
        made.place = place
        return made


def _settings(values: Mapping[str, Any], document: Document, at: Key) -> tuple[str, ...]:
    return tuple(_Setting(k, value, document.places[(*at, k)]) for k, value in values.items())


def _keys(path: Key) -> list[str]:
    return list((_Stage if path else _File).model_fields)


def _at(document: Document, key: Key) -> str:
    """ "file:line: a.b: " for the nearest place above `key` that is known."""
    places = (document.places.get(key[:n]) for n in range(len(key), -1, -1))
    words = f"{'.'.join(map(str, key))}: " if key else ""
    return f"{next(filter(None, places))}: {words}"

"""A sweep file: which points of a recipe are tried, on which seeds, in which order. No torch here.

    recipe: ../quickstart.yaml      # as seen from the sweep file
    set: {epochs: 5}                # optional: holds for every point
    grid:                           # every combination; or `points:`, a list; or `stages:`, a list
      optimizer.adamw.lr: [0.001, 0.01]
      loss: [cross_entropy, focal]
    seeds: [1, 2, 3]                # optional: the recipe's own
    metric: val/top1                # optional: the recipe's headline
    direction: max                  # optional: min for a loss, else max

Keys and values are overrides, as on the command line of `train`. Each of `stages` is a grid or a
list at the best point of the stages before it.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import UserError, short, shown, unknown
from ..recipe.fields import Recipe, to_plain, written
from ..recipe.loading import COMMAND_LINE, Loaded, load, recipe_path, split_variant
from ..recipe.yaml_lines import Document, Key, read_document
from ..runs import run_folder
from ..runs.reader import recipe_key

_KEYS = ("recipe", "set", "grid", "points", "stages", "seeds", "metric", "direction")
_FORMS = ("grid", "points", "stages")
_MOST_POINTS = 1000


class Setting(NamedTuple):
    """One override, `key=value`, and where it is written."""

    text: str
    place: str


@dataclass(frozen=True)
class Stage:
    """Settings to try, each on top of the best of the stages before."""

    name: str
    choices: tuple[tuple[Setting, ...], ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read. Every point of every stage is a recipe that loads."""

    path: Path
    recipe: Path
    common: tuple[Setting, ...]
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]  # () is each point's own
    metric: str | None
    more_is_better: bool
    given: tuple[Setting, ...] = ()  # on the command line

    @property
    def name(self) -> str:
        """Also of the folder that holds the sweep's runs."""
        return self.path.stem


@dataclass(frozen=True)
class Point:
    """A recipe with settings. `id` is a hash of what it resolves to, but for the seed.

    So two spellings of one recipe are one point, and a recipe that has changed is another point.
    """

    settings: tuple[Setting, ...]  # what the sweep tries, without what all points have
    overrides: tuple[str, ...]
    recipe: Recipe
    id: str

    @property
    def words(self) -> str:
        """What the sweep tries here, as one would type it."""
        return " ".join(setting.text for setting in self.settings) or "the recipe as it is"


def points_of(sweep: Sweep, stage: int, best: Sequence[Setting] = ()) -> list[Point]:
    """The points of a stage, on top of the best settings of the stages before it; each once."""
    found: dict[str, Point] = {}
    for choice in sweep.stages[stage].choices:
        point = _point(sweep, (*best, *choice))
        found.setdefault(point.id, point)
    return list(found.values())


def _point(sweep: Sweep, settings: tuple[Setting, ...]) -> Point:
    # what the recipe claims is not claimed of the recipe with other settings
    own = (Setting(f"name={sweep.name}", ""), Setting("expects={}", ""))
    everything = (*own, *sweep.common, *settings, *sweep.given)
    loaded = _load(sweep.recipe, everything)
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in loaded.imports]
    key = " ".join([recipe_key(to_plain(loaded.recipe)), *files])
    id = hashlib.sha256(key.encode()).hexdigest()[:10]
    return Point(settings, tuple(s.text for s in everything), loaded.recipe, id)


def _load(recipe: Path, settings: Sequence[Setting]) -> Loaded:
    """The recipe with the settings; an error in one names its place."""
    try:
        return load(recipe, [setting.text for setting in settings])
    except UserError as error:
        message = str(error)
        for text, place in settings:
            if message.startswith(f"{COMMAND_LINE} ({short(text, 50)})"):
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
    values = document.values
    for key in values:
        if key not in _KEYS:
            raise UserError(_at(document, key) + unknown("key of a sweep", key, _KEYS))
    run_folder.check_name("sweep", path.stem)
    metric, direction = _metric(document)
    sweep = Sweep(
        path=path,
        recipe=_recipe(document, path),
        common=tuple(_settings(values.get("set", {}), document, "set")),
        stages=_stages(document, path),
        seeds=_seeds(document),
        metric=metric,
        more_is_better=direction == "max",
        given=tuple(Setting(text, COMMAND_LINE) for text in overrides),
    )
    _check(sweep, document)
    return sweep


def _check(sweep: Sweep, document: Document) -> None:
    """Load every point on top of every choice that an earlier stage may make.

    Of the other earlier stages the first choice is taken, so that the work grows with the sum.
    """
    if sweep.seeds and any(s.text.startswith("seed=") for s in (*sweep.common, *sweep.given)):
        raise UserError(f"{_at(document, 'seeds')}a seed is set for all points too; keep one.")
    for seed in sweep.seeds:
        _load(sweep.recipe, [Setting(f"seed={seed}", document.places[("seeds",)])])
    for number, stage in enumerate(sweep.stages):
        earlier = sweep.stages[:number]
        firsts = [s.choices[0] for s in earlier]
        before = {tuple(firsts)}
        for place, other in enumerate(earlier):
            before |= {(*firsts[:place], choice, *firsts[place + 1 :]) for choice in other.choices}
        for best, choice in itertools.product(before, stage.choices):
            _point(sweep, (*itertools.chain(*best), *choice))


def _recipe(document: Document, path: Path) -> Path:
    given = document.values.get("recipe")
    if given is None:
        raise UserError(f"{path}: the key 'recipe' is needed: the file whose points these are.")
    _expect(str, given, document, ("recipe",), "name a recipe file.")
    recipe = Path(os.path.normpath(path.parent / given))
    recipe = recipe if split_variant(recipe)[0].is_file() else recipe_path(given)
    if not split_variant(recipe)[0].is_file():
        raise UserError(f"{_at(document, 'recipe')}{shown(given)}: there is no {recipe}.")
    return recipe


def _stages(document: Document, path: Path) -> tuple[Stage, ...]:
    found = [form for form in _FORMS if form in document.values]
    if len(found) != 1:
        given = f"{', '.join(found)} are given" if found else "none is given"
        raise UserError(f"{path}: exactly one of {', '.join(_FORMS)} is needed; {given}.")
    if found != ["stages"]:
        return (Stage(path.stem, _choices(document.values, document, ())),)
    given = document.values["stages"]
    _expect(list, given, document, ("stages",), "a list is expected.")
    return tuple(_stage(item, document, index) for index, item in enumerate(given))


def _stage(item: Any, document: Document, index: int) -> Stage:
    at: Key = ("stages", index)
    if not isinstance(item, dict) or len({"grid", "points"} & item.keys()) != 1:
        raise UserError(
            f"{_at(document, *at)}given {shown(item)}; a stage has a `grid` or a list of `points`, "
            "and a `name` if you like."
        )
    for key in item:
        if key not in ("name", "grid", "points"):
            message = unknown("key of a stage", key, ("name", "grid", "points"))
            raise UserError(_at(document, *at, key) + message)
    name = item.get("name", f"stage {index + 1}")
    _expect(str, name, document, (*at, "name"), "a name is expected.")
    return Stage(name, _choices(item, document, at))


def _choices(
    values: dict[str, Any], document: Document, at: Key
) -> tuple[tuple[Setting, ...], ...]:
    if "points" in values:
        here, points = (*at, "points"), values["points"]
        expected = "a list of settings such as {loss: focal} is expected."
        _expect(list, points, document, here, expected)
        return tuple(
            tuple(_settings(point, document, *here, index)) for index, point in enumerate(points)
        )
    here, grid = (*at, "grid"), values["grid"]
    _expect(dict, grid, document, here, "write `key: [value, …]` lines.")
    axes = []
    for key, tried in grid.items():
        _expect(list, tried, document, (*here, key), "a list of values to try is expected.")
        axes.append(
            [
                Setting(f"{key}={written(value)}", document.places[(*here, key, index)])
                for index, value in enumerate(tried)
            ]
        )
    if (count := math.prod(map(len, axes))) > _MOST_POINTS:
        message = f"{count:,} points; at most {_MOST_POINTS:,} are tried."
        raise UserError(_at(document, *here) + message)
    return tuple(itertools.product(*axes))


def _settings(values: Any, document: Document, *at: str | int) -> Iterator[Setting]:
    if values != {}:
        _expect(dict, values, document, at, "settings such as {loss: focal} are expected.")
    for key, value in values.items():
        yield Setting(f"{key}={written(value)}", document.places[(*at, key)])


def _seeds(document: Document) -> tuple[int, ...]:
    seeds = document.values.get("seeds", [])
    valid = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not valid or len(set(seeds)) < len(seeds) or (not seeds and "seeds" in document.values):
        expected = "a list of different whole numbers such as [1, 2, 3] is expected."
        raise UserError(f"{_at(document, 'seeds')}given {shown(seeds)}; {expected}")
    return tuple(seeds)


def _metric(document: Document) -> tuple[str | None, str]:
    metric = document.values.get("metric")
    if metric is not None:
        _expect(str, metric, document, ("metric",), "name a column, val/top1.")
    default = "min" if (metric or "").endswith("loss") else "max"
    direction = document.values.get("direction", default)
    if direction not in ("min", "max"):
        raise UserError(f"{_at(document, 'direction')}given {shown(direction)}; min or max.")
    return metric, direction


def _expect(kind: type, value: Any, document: Document, at: Key, expected: str) -> None:
    """UserError with file and line, where a value is of another type, or empty."""
    if not isinstance(value, kind) or not value:
        raise UserError(f"{_at(document, *at)}given {shown(value)}; {expected}")


def _at(document: Document, *key: str | int) -> str:
    return f"{document.places[key]}: {'.'.join(map(str, key))}: "

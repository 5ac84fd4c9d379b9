"""YAML file -> `extends` -> overrides -> Recipe, with file and line in every complaint."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import grammar
from .catalogue import Shelf, catalogue
from .document import Document, Key, parse_value, read_document
from .errors import UserError, unknown
from .grammar import On
from .recipe import SHELVED, Recipe


@dataclass(frozen=True)
class Loaded:
    """A recipe with where it came from. `base` is the recipe it extends, resolved; None without."""

    recipe: Recipe
    path: Path
    base: Recipe | None = None
    base_path: Path | None = None
    imports: tuple[Path, ...] = ()


def load(path: Path | str, overrides: Iterable[str] = ()) -> Loaded:
    """Read and check a recipe file. UserError: file, line, what was given, what is allowed."""
    path = Path(path)
    document, chain = _extended(path, ())
    base = None
    if len(chain) > 1:
        below, _ = _extended(chain[1], ())
        base = typed(below, chain[1].stem)[0]
    for text in overrides:
        _override(document, text)
    recipe, imports = typed(document, path.stem)
    return Loaded(recipe, path, base, chain[1] if base else None, imports)


def typed(document: Document, name: str) -> tuple[Recipe, tuple[Path, ...]]:
    """Plain values -> Recipe, and the files it imports."""
    values = dict(document.values)
    for key in values.keys() - Recipe.model_fields.keys():
        raise UserError(_at(document, (key,)) + unknown("key", str(key), Recipe.model_fields))
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64] or "recipe"
    values.setdefault("name", name)
    imports = _imports(values.get("imports"), document)
    shelves = catalogue(imports)
    for key, mark in SHELVED.items():
        if values.get(key) is not None:
            values[key] = _shelved(document, key, values[key], mark, shelves)
    try:
        return Recipe(**values), imports
    except ValidationError as error:
        raise UserError(_first(error, document)) from error


def _extended(path: Path, below: tuple[Path, ...]) -> tuple[Document, list[Path]]:
    """The document with its bases under it: a key here replaces the base's key whole."""
    if path.resolve() in below:
        names = " -> ".join(p.name for p in (*below, path))
        raise UserError(f"{path}: 'extends' runs in a circle: {names}.")
    if not path.is_file():
        raise UserError(_missing(path))
    document = read_document(path)
    base = document.values.pop("extends", None)
    if base is None:
        return document, [path]
    if not isinstance(base, str) or Path(base).is_absolute():
        raise UserError(_at(document, ("extends",)) + f"given {base!r}; name a file beside this.")
    under, chain = _extended(path.parent / base, (*below, path.resolve()))
    kept = {k: v for k, v in under.values.items() if k not in ("name", "expects")}
    places = {at: p for at, p in under.places.items() if at and at[0] not in document.values}
    merged = Document({**kept, **document.values}, {**places, **document.places})
    return merged, [path, *chain]


def _missing(path: Path) -> str:
    near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    if near:
        return f"{path}: " + unknown("recipe", path.name, near)
    return f"{path}: no such recipe; give the path of a .yaml file, such as recipes/r0.yaml."


def _at(document: Document, key: Key) -> str:
    """ "file:line: a.b: " for the nearest place above `key` that is known."""
    places = (document.places.get(key[:n]) for n in range(len(key), -1, -1))
    place = next((p for p in places if p), "recipe")
    return f"{place}: {'.'.join(map(str, key))}: "


def _imports(given: Any, document: Document) -> tuple[Path, ...]:
    if not given:
        return ()
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(_at(document, ("imports",)) + f"given {given!r}; a list of .py files.")
    here = Path(document.places.get(("imports",), ".").rpartition(":")[0]).parent
    paths = tuple(here / name for name in given)
    for name, path in zip(given, paths, strict=True):
        inside = path.resolve().is_relative_to(here.resolve())
        if not inside or path.suffix != ".py" or not path.is_file():
            raise UserError(
                _at(document, ("imports",)) + f"'{name}' is no .py file at or below {here}."
            )
    return paths


def _shelved(document: Document, key: str, value: Any, mark: On, shelves: dict[str, Shelf]) -> Any:
    try:
        return grammar.parse(value, shelves[mark.shelf], mark.form)
    except grammar.At as error:
        raise UserError(f"{_at(document, (key, *error.path))}{error}") from error


def _first(error: ValidationError, document: Document) -> str:
    """The first of pydantic's complaints as our one line."""
    details = error.errors(include_url=False)
    first = details[0]
    loc = tuple(first["loc"])
    while loc and loc not in document.places and len(loc) > 1:
        loc = loc[:-1]
    if first["type"] == "missing":
        return f"{_at(document, ())[:-4]}: the key '{loc[-1]}' is needed and is not given."
    if first["type"] == "extra_forbidden":
        owner = Recipe.model_fields[loc[0]].annotation
        known = getattr(owner, "model_fields", None) or _inner(owner)
        return _at(document, loc) + unknown("key", str(loc[-1]), known)
    same = [d for d in details if d["loc"][: len(loc)] == loc]
    said = dict.fromkeys(
        d["msg"].removeprefix("Input should be ").removeprefix("Value error, ") for d in same
    )
    value = document.values
    for part in loc:
        value = value[part] if isinstance(value, dict | list) else value
    return f"{_at(document, loc)}given {value!r}; expected: {' or '.join(said)}."


def _inner(union: Any) -> list[str]:
    return [k for kind in getattr(union, "__args__", ()) for k in getattr(kind, "model_fields", ())]


def _override(document: Document, text: str) -> None:
    """Set one value from `key.sub=value`; what lies on the way is opened up as needed."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"command line: '{text}' is no override; write key=value or key.sub=value.")
    name = f"command line ({text})"
    if keys[0] not in Recipe.model_fields:
        raise UserError(f"{name}: {unknown('key', keys[0], Recipe.model_fields)}")
    parsed = parse_value(value, name)
    document.values = _set(document.values, keys, parsed, name)
    stale = [at for at in document.places if at[: len(keys)] == tuple(keys)]
    for at in stale:
        del document.places[at]
    for depth in range(1, len(keys) + 1):
        document.places[tuple(keys[:depth])] = name


def _set(container: Any, keys: list[str], value: Any, name: str) -> Any:
    """A copy of `container` in which the entry at `keys` is `value`."""
    if not keys:
        return value
    if isinstance(container, list):
        return _set_in_list(container, keys, value, name)
    if isinstance(container, str):
        if container != keys[0]:
            raise UserError(f"{name}: this is '{container}' now; give the whole value instead.")
        container = {container: {}}
    elif isinstance(container, int | float) and not isinstance(container, bool):
        container = {"weight": container}  # a blend's `{name: weight}`, about to get an option
    if not isinstance(container, dict | None):
        raise UserError(f"{name}: nothing can be set below {container!r}.")
    container = container or {}
    # names may hold dots (timm's pretrained tags): the longest one that is there
    length = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in container), 1)
    head, rest = ".".join(keys[:length]), keys[length:]
    return {**container, head: _set(container.get(head), rest, value, name)}


def _set_in_list(items: list, keys: list[str], value: Any, name: str) -> list:
    key, found = keys[0], []
    if key.isdecimal() and int(key) < len(items):
        found, keys = [int(key)], keys[1:]
    else:
        found = [i for i, x in enumerate(items) if x == key or isinstance(x, dict) and key in x]
    if len(found) != 1:
        known = [next(iter(x), "") if isinstance(x, dict) else str(x) for x in items]
        raise UserError(f"{name}: {unknown('item', key, known)}")
    (i,) = found
    return [*items[:i], _set(items[i], keys, value, name), *items[i + 1 :]]

"""YAML file -> `extends` -> overrides -> Recipe, with file and line in every complaint."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from os.path import isdir, isfile  # False, where pathlib raises, for a name too long
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.errors import UserError, short, shown, unknown
from . import grammar
from .fields import REGISTRY_FIELDS, Recipe
from .signatures import static_signatures
from .yaml_lines import MAX_DEPTH, Document, Key, parse_value, read_document

COMMAND_LINE = "command line"
_HERE = Path(__file__).parents[1]
RECIPES = _HERE / "recipes"  # in an installed package
if not RECIPES.is_dir():
    RECIPES = _HERE.parent / "recipes"  # in a checkout
MAX_BASES = 16
OWN = ("name", "expects", "extends")  # not inherited
PLAINLY = {
    "tuple_type": "a list",
    "dict_type": "{name: number, …}",
    "missing": "more items",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-'",
}


@dataclass(frozen=True)
class Loaded:
    """A recipe with where it came from. `base` is the recipe it extends, resolved; None without."""

    recipe: Recipe
    path: Path
    base: Recipe | None = None
    base_path: Path | None = None
    imports: tuple[Path, ...] = ()


def recipe_path(given: Path | str) -> Path:
    """The file of a recipe: a path, or the name of one of the package's, `segmentation/camvid`.

    A file that exists comes first. `recipes/r4.yaml`, `r4.yaml` and `r4` name the same recipe of
    the package.
    """
    path, variant = split_variant(Path(given))
    if not isfile(path) and not path.is_absolute() and ".." not in path.parts:
        named = RECIPES / f"{_name(path)}.yaml"
        path = named if isfile(named) else path
    return path if variant is None else path.with_name(f"{path.name}:{variant}")


def _name(path: Path) -> str:
    """What a recipe of the package is called: no `recipes/` in front, no `.yaml` behind."""
    return path.as_posix().removeprefix("recipes/").removesuffix(".yaml")


def load(given: Path | str, overrides: Iterable[str] = ()) -> Loaded:
    """Read and check a recipe, a file or a name. UserError: file, line, what is wrong, allowed."""
    path = recipe_path(given)
    files = _with_bases(path)
    document = _merged([document for _, document in files])
    for text in overrides:
        path_of_key, equals, value = text.partition("=")
        name = f"{COMMAND_LINE} ({short(text, 50)})"
        if not equals or not all(part.strip() for part in path_of_key.split(".")):
            raise UserError(f"{name}: no override; write key=value or key.sub=value.")
        _assign(document, path_of_key, parse_value(value, name), name)
    recipe, imports = typed(document, _run_name(path))
    base = _base(files[1:])
    return Loaded(recipe, path, base, files[1][0] if base else None, imports)


def typed(document: Document, name: str) -> tuple[Recipe, tuple[Path, ...]]:
    """Plain values -> Recipe, and the files it imports."""
    values = dict(document.values)
    for key in values:
        if key not in Recipe.model_fields:
            raise UserError(_at(document, (key,)) + unknown("key", key, Recipe.model_fields))
        if _height(values[key]) >= MAX_DEPTH:  # an override can lift it above what a file may have
            raise UserError(f"{_at(document, (key,))}nested deeper than {MAX_DEPTH} levels.")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64]
    values.setdefault("name", name if name.strip(".") else "recipe")
    imports = _imports(values.get("imports"), document)
    registries = static_signatures(imports)
    for key, mark in REGISTRY_FIELDS.items():
        declared = Recipe.model_fields[key]
        if key not in values and not declared.is_required():
            # parsed as if it were written, to have all its options
            values[key] = grammar.plain(declared.default)
        if key in values and not (values[key] is None and declared.default is None):
            try:
                values[key] = grammar.parse(values[key], registries[mark.registry], mark.form)
            except grammar.GrammarError as error:
                raise UserError(f"{_at(document, (key, *error.path))}{error}") from error
    try:
        return Recipe(**values), imports
    except ValidationError as error:
        raise UserError(_first(error, document)) from error


def read_back(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe that was checked when it was written: each as `Recipe` holds it.

    No registry is asked, so entries of older versions and of foreign files are kept as well. A
    value that does not fit the form of its key stays plain.
    """
    typed_values = dict(values)
    for key, mark in REGISTRY_FIELDS.items():
        if values.get(key) is not None:
            with suppress(UserError):
                typed_values[key] = grammar.parse(values[key], grammar.UNCHECKED, mark.form)
    return typed_values


def _height(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_height, inner)) if inner else 0


def _with_bases(path: Path) -> list[tuple[Path, Document]]:
    """The file, the one it extends, the one that that extends, and so on."""
    files: list[tuple[Path, Document]] = []
    place = ""
    while True:
        file, variant = split_variant(path)
        if not isfile(file):
            raise UserError(place + _missing(file))
        names = " -> ".join(shown(p.name) for p in (*(p for p, _ in files), path))
        before = [split_variant(other) for other, _ in files]
        if any(file.samefile(other) and variant == its for other, its in before):
            raise UserError(f"{place}a circle: {names}. A recipe cannot be its own base.")
        if len(files) > MAX_BASES:
            raise UserError(f"{place}more than {MAX_BASES} bases, one upon the other.")
        document = _read(file, variant)
        files.append((path, document))
        place = _at(document, ("extends",))
        base = document.values.get("extends")
        if base is None:
            return files
        if not isinstance(base, str) or Path(base).is_absolute():
            raise UserError(f"{place}given {shown(base)}; name a file, as seen from this one.")
        path = path.parent / base


def _run_name(path: Path) -> str:
    file, variant = split_variant(path)
    return file.stem if variant is None else f"{file.stem}-{variant}"


def split_variant(path: Path) -> tuple[Path, str | None]:
    """`b.yaml:0503` or `b:0503` -> the file `b.yaml`, its variant `0503`; else `path`, None."""
    stem, _, variant = path.name.partition(":")
    if not (stem and variant) or isfile(path):
        return path, None
    return path.with_name(f"{stem.removesuffix('.yaml')}.yaml"), variant


def _read(file: Path, variant: str | None) -> Document:
    """The recipe file, or one of its variants, which extends the file if it names no other base."""
    document = read_document(file)
    variants = document.values.pop("variants", {})
    if variant is None:
        return document
    at, known = ("variants", variant), variants if isinstance(variants, dict) else {}
    if variant not in known:
        raise UserError(f"{file}: {unknown('variant', variant, known, 600)}")
    values = known[variant]
    if not isinstance(values, dict):
        raise UserError(f"{_at(document, at)}given {shown(values)}; `key: value` lines expected.")
    places = {key[2:]: place for key, place in document.places.items() if key[:2] == at}
    plain = {key: value for key, value in values.items() if "." not in key}
    settings = {key: value for key, value in values.items() if "." in key}
    return Document({"extends": file.name, **plain}, places, settings)


def _merged(documents: list[Document]) -> Document:
    """The first document, with its bases under it: a key replaces the base's key whole."""
    values: dict[str, Any] = {}
    places: dict[Key, str] = {}
    for document in reversed(documents):
        kept = {k: v for k, v in values.items() if k not in OWN}
        places = {at: p for at, p in places.items() if at and at[0] not in document.values}
        merged = Document({**kept, **document.values}, {**places, **document.places})
        for key, value in document.settings.items():
            _assign(merged, key, value, document.places[(key,)])
        values, places = merged.values, merged.places
    values.pop("extends", None)
    return Document(values, places)


def _base(files: list[tuple[Path, Document]]) -> Recipe | None:
    """What is extended, as a recipe; None where there is none, or only a part of one."""
    try:
        return typed(_merged([d for _, d in files]), _run_name(files[0][0]))[0] if files else None
    except UserError:
        return None


def _missing(path: Path) -> str:
    beside = sorted(p.name for p in path.parent.glob("*.yaml")) if isdir(path.parent) else []
    if beside and path.suffix:
        return f"{path.parent}: {unknown('recipe', path.name, beside)}"
    files = (p.relative_to(RECIPES) for p in RECIPES.rglob("*.yaml"))
    names = [_name(file) for file in files if file.parts[0] != "sweeps"]
    return (
        f"{short(str(path), 200)}: no such recipe; give the path of a .yaml file, or the name of "
        f"one of ours: {unknown('recipe', _name(path), names)}"
    )


def _at(document: Document, key: Key) -> str:
    """ "file:line: a.b: " for the nearest place above `key` that is known."""
    places = (document.places.get(key[:n]) for n in range(len(key), -1, -1))
    place = next((p for p in places if p), "recipe")
    words = short(".".join(map(str, key)), 60)
    return f"{place}: {words}: " if key else f"{place}: "


def _imports(given: Any, document: Document) -> tuple[Path, ...]:
    if not given:
        return ()
    at = _at(document, ("imports",))
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{at}given {shown(given)}; a list of .py files is expected.")
    place = document.places.get(("imports",), COMMAND_LINE)
    file = "" if place.startswith(COMMAND_LINE) else place.rpartition(":")[0]
    here = Path(file).parent
    root = here.resolve()
    for name in given:
        path = here / name
        if path.suffix != ".py" or not isfile(path) or not path.resolve().is_relative_to(root):
            raise UserError(f"{at}{shown(name, 200)} is no .py file at or below {here.absolute()}.")
    return tuple(here / name for name in given)


def _first(error: ValidationError, document: Document) -> str:
    """The first of pydantic's complaints, where it is most precise, as our one line."""
    found = [(_real(d, document.values), d) for d in error.errors(include_url=False)]
    top = found[0][0][0]
    loc = max((loc for loc, _ in found if loc[0] == top), key=len)
    details = [d for at, d in found if at == loc]
    if details[0]["type"] == "missing" and details[0]["loc"][-1] == loc[-1]:
        return f"{_at(document, loc[:-1])}the key '{loc[-1]}' is needed and is not given."
    if details[0]["type"] == "extra_forbidden":
        return _at(document, loc) + unknown("key", loc[-1], _fields(loc[0]))
    value: Any = document.values
    for part in loc:
        value = value[part] if _has(value, part) else value
    said = " or ".join(dict.fromkeys(_expectation(d, loc) for d in details))
    return f"{_at(document, loc)}given {shown(value)}; expected: {said}."


def _real(detail: Any, values: Any) -> Key:
    """The path in the document: pydantic's without the names of union members."""
    real: list[str | int] = []
    for n, part in enumerate(detail["loc"]):
        missing = detail["type"] == "missing" and n == len(detail["loc"]) - 1
        if n == 0 or _has(values, part) or (missing and isinstance(part, str)):
            real.append(part)
        if _has(values, part):
            values = values[part]
    return tuple(real)


def _has(values: Any, part: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _expectation(detail: Any, loc: Key) -> str:
    if detail["type"] == "model_type":
        return "{" + ", ".join(_fields(loc[0])) + "}"
    said = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return PLAINLY.get(detail["type"], said)


def _fields(key: str) -> list[str]:
    """The keys of the object, or of the object among the possibilities, that `key` holds."""
    declared = Recipe.model_fields[key].annotation
    kinds = (declared, *getattr(declared, "__args__", ()))
    return [name for kind in kinds for name in getattr(kind, "model_fields", ())]


def _assign(document: Document, path: str, parsed: Any, name: str) -> None:
    """Set what `key.sub` names; what lies on the way is opened up as needed."""
    key, *rest = (part.strip() for part in path.split("."))
    if key not in Recipe.model_fields:
        raise UserError(f"{name}: {unknown('key', key, Recipe.model_fields)}")
    current = document.values.get(key)
    if rest and key in REGISTRY_FIELDS:
        current = _opened(key, current, rest, name)
    at = _located(current, rest, name)
    document.values = {**document.values, key: _set(current, at, parsed)}
    whole = (key, *at)
    stale = [place for place in document.places if place[: len(whole)] == whole]
    for place in stale:
        del document.places[place]
    for depth in range(1, len(whole) + 1):
        document.places[whole[:depth]] = name


def _opened(key: str, value: Any, rest: list[str], name: str) -> Any:
    """`value` with the options of every entry spelled out, so that one can be set."""
    form, default = REGISTRY_FIELDS[key].form, Recipe.model_fields[key].default
    if form == "list":
        return [{x: {}} if isinstance(x, str) else x for x in value or ()]
    if value is None and form == "weighted_sum" and default:
        value = grammar.plain(default)  # a term is added to what there would be without it
    if isinstance(value, str):
        value = {value: {}}
    if form == "weighted_sum" and isinstance(value, dict):
        number = (int, float)
        return {k: {"weight": v} if isinstance(v, number) else v for k, v in value.items()}
    if isinstance(value, dict) and value and not _prefix(value, rest):
        now = next(iter(value))
        raise UserError(
            f"{name}: {key} is '{now}' here; write {key}.{now}.{rest[-1]}=… for an option of it, "
            f"or {key}={rest[0]} for another {key}."
        )
    return value


def _located(container: Any, keys: list[str], name: str) -> Key:
    """Where `keys` lead: items of lists by place or by name, names that hold dots as one."""
    at: list[str | int] = []
    while keys:
        if isinstance(container, list):
            part: str | int = _item(container, keys[0], name)
            keys = keys[1:] if keys[0].isdecimal() else keys
        elif isinstance(container, dict | None):
            length = _prefix(container or {}, keys) or 1
            part, keys = ".".join(keys[:length]), keys[length:]
        else:
            raise UserError(f"{name}: nothing can be set below {shown(container)}.")
        at.append(part)
        container = container[part] if _has(container, part) else None
    return tuple(at)


def _prefix(container: dict[str, Any], keys: list[str]) -> int:
    """How many of `keys`, joined, name something in `container`; the most, or 0 (timm's tags)."""
    return next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in container), 0)


def _item(items: list[Any], key: str, name: str) -> int:
    if key.isdecimal() and len(key) < 6 and int(key) < len(items):
        return int(key)
    found = [i for i, x in enumerate(items) if isinstance(x, dict) and key in x]
    if len(found) > 1:
        raise UserError(f"{name}: '{key}' is there {len(found)} times; say which: {found}.")
    if not found:
        known = [next(iter(x), "") if isinstance(x, dict) else shown(x) for x in items]
        raise UserError(f"{name}: {unknown('item', key, known)}")
    return found[0]


def _set(container: Any, at: Key, value: Any) -> Any:
    """A copy of `container` in which the entry at `at` is `value`."""
    if not at:
        return value
    head, *below = at
    if isinstance(container, list):
        return [_set(x, tuple(below), value) if i == head else x for i, x in enumerate(container)]
    container = container or {}
    return {**container, head: _set(container.get(head), tuple(below), value)}

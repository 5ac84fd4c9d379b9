"""YAML file -> `extends` -> overrides -> Recipe, with file and line in every complaint.

And a recipe's `imports`: a student's own entries, in files that are code and so need trust.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import isdir, isfile  # False, where pathlib raises, for a name too long
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from ..core.errors import UserError, short, shown, unknown
from ..core.names import folder_name
from . import grammar
from .fields import REGISTRY_FIELDS, UNESSENTIAL, Recipe, changes, to_plain, written
from .signatures import static_signatures
from .synonyms import advised
from .yaml_lines import MAX_DEPTH, Document, Key, parse_value, read_document

COMMAND_LINE = "command line"
_HERE = Path(__file__).parents[1]
RECIPES = _HERE / "recipes"  # in an installed package
if not RECIPES.is_dir():
    RECIPES = _HERE.parent / "recipes"  # in a checkout
MAX_BASES = 16
SAME_CLAIM = UNESSENTIAL - {"imports"} | {"seed"}  # a recipe that differs in these expects the same
OWN = ("name", "expects", "extends")  # not inherited
IMPORTED: dict[Path, bytes] = {}  # the `imports` that have run in this process, as they were then


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
    path, overrides = recipe_path(given), list(overrides)
    files = _with_bases(path)
    document = _merged(files)
    for text in overrides:
        path_of_key, equals, value = text.partition("=")
        name = f"{COMMAND_LINE} ({short(text, 50)})"
        if not equals or not all(part.strip() for part in path_of_key.split(".")):
            todo = advised(text.strip(" =:"), "", document.values)
            todo = todo or "write key=value or key.sub=value"
            raise UserError(f"{name}: no override; {todo}, without spaces.")
        _assign(document, path_of_key, parse_value(value, name), name)
    recipe, imports = typed(document, path)
    if recipe.expects and not any(re.match(r"\s*expects\b", text) for text in overrides):
        as_written = typed(_merged(files), path)[0] if overrides else recipe
        if changes(recipe, as_written).keys() - SAME_CLAIM:  # the claim is not of this one
            recipe = recipe.model_copy(update={"expects": grammar.Options()})
    base = None
    if files[1:]:
        with suppress(UserError):  # it may be only a part of a recipe
            base, _ = typed(_merged(files[1:]), files[1][0])
    return Loaded(recipe, path, base, files[1][0] if base else None, imports)


def refreshed(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Plain values that an earlier version wrote at `path`, with the defaults of keys it had not.
    UserError if they are no recipe any more."""
    return to_plain(typed(Document(values), path)[0])


def typed(document: Document, path: Path) -> tuple[Recipe, tuple[Path, ...]]:
    """Plain values -> Recipe, named after `path` if they have no name, and the files it imports."""
    values = dict(document.values)
    for key, value in values.items():
        if _height(value) >= MAX_DEPTH:  # an override can lift it above what a file may have
            raise UserError(f"{_at(document, (key,))}nested deeper than {MAX_DEPTH} levels.")
    file, variant = split_variant(path)
    values.setdefault("name", folder_name(f"{file.stem}-{variant}" if variant else file.stem))
    imports = _imports(values.get("imports") or [], document)
    registries = static_signatures(imports)
    try:
        for key, mark in REGISTRY_FIELDS.items():
            declared = Recipe.model_fields[key]
            if not declared.is_required():  # parsed as if it were written, to have all its options
                values.setdefault(key, grammar.plain(declared.default))
            if key in values and not (values[key] is None and declared.default is None):
                known = registries[mark.registry]
                values[key] = grammar.parse(values[key], known, mark.form, (key,))
        return Recipe(**values), imports
    except ValidationError as error:
        problem = grammar.mistake(error, values, (), _keys)
        if len(problem.path) == 1 and problem.path[0] not in Recipe.model_fields:
            key = str(problem.path[0])
            problem = grammar.GrammarError(
                _no_key(key, written(values[key]), document.values), (key,)
            )
    except grammar.GrammarError as error:
        problem = error
    raise UserError(f"{_at(document, problem.path)}{problem}") from problem


def read_back(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe that was checked when it was written: each as `Recipe` holds it.

    No registry is asked, so entries of older versions and of foreign files are kept as well. A
    value that does not fit the form of its key stays plain.
    """
    found = dict(values)
    for key in REGISTRY_FIELDS.keys() & {key for key, value in values.items() if value is not None}:
        with suppress(UserError):
            form = REGISTRY_FIELDS[key].form
            found[key] = grammar.parse(values[key], grammar.UNCHECKED, form)
    return found


def import_files(paths: Sequence[Path], trusted: bool) -> None:
    """Run the recipe's `imports`. UserError where they are not trusted, or fail."""
    for path in map(Path.absolute, paths):
        text = path.read_bytes()
        if _module(text) in sys.modules:  # several runs of one recipe, or again in a notebook
            continue
        if not trusted:
            raise UserError(
                f"the recipe imports {path}, which is code that would run on this machine. "
                "Read it, then add --trust-imports."
            )
        run_file(path, text)


def run_file(path: Path, text: bytes) -> None:
    """Run one of a recipe's `imports`, if it has not, as a module that pickle finds: the same in
    this process and in loader workers, even if the file has changed since."""
    name = _module(text)
    if name in sys.modules:
        return
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        exec(compile(text, path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(f"{path}: failed to import: {type(error).__name__}: {error}") from error
    IMPORTED[path] = text


def _module(text: bytes) -> str:
    return f"imported_{hashlib.sha256(text).hexdigest()[:16]}"


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
        if len(files) > MAX_BASES:
            names = short(" -> ".join(path.name for path, _ in files), 100)
            raise UserError(f"{place}a circle, or more than {MAX_BASES} bases: {names}.")
        document = _read(file, variant)
        files.append((path, document))
        place = _at(document, ("extends",))
        base = document.values.get("extends")
        if base is None:
            return files
        if not isinstance(base, str) or Path(base).is_absolute():
            raise UserError(f"{place}given {shown(base)}; name a file, as seen from this one.")
        path = path.parent / base
        ours = RECIPES / f"{_name(Path(base))}.yaml"
        if ".." not in ours.parts and not isfile(split_variant(path)[0]) and isfile(ours):
            path = ours


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


def _merged(files: list[tuple[Path, Document]]) -> Document:
    """The first document, with its bases under it: a key replaces the base's key whole."""
    merged = Document({})
    for _, document in reversed(files):
        inherited = {k: v for k, v in merged.values.items() if k not in OWN}
        merged.values = {**inherited, **document.values}
        merged.places |= document.places
        for key, value in document.settings.items():
            _assign(merged, key, value, document.places[(key,)])
    merged.values.pop("extends", None)
    return merged


def package_recipes() -> list[str]:
    """The names of the package's recipes."""
    files = (path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml"))
    names = [_name(file) for file in files if file.parts[0] != "sweeps"]
    return sorted(names, key=lambda name: ("/" in name, name))


def _missing(path: Path) -> str:
    name = path.name
    known = [p.name for p in path.parent.glob("*.yaml")] if isdir(path.parent) else []
    if not (known and path.suffix):
        name, known = _name(path), package_recipes()
    todo = "give the path of a .yaml file, or the name of one of ours"
    return f"{short(str(path), 120)}: no such recipe; {todo}: {unknown('recipe', name, known)}"


def _at(document: Document, key: Key) -> str:
    """ "file:line: a.b: " for the nearest place above `key` that is known."""
    places = (document.places.get(key[:n]) for n in range(len(key), -1, -1))
    place = next((p for p in places if p), "recipe")
    words = short(".".join(map(str, key)), 60)
    return f"{place}: {words}: " if key else f"{place}: "


def _imports(given: Any, document: Document) -> tuple[Path, ...]:
    at = _at(document, ("imports",))
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{at}given {shown(given)}; a list of .py files is expected.")
    place = document.places.get(("imports",), COMMAND_LINE)
    here = Path("" if place.startswith(COMMAND_LINE) else place.rpartition(":")[0]).parent
    for name in given:
        path, root = here / name, here.resolve()
        if path.suffix != ".py" or not isfile(path) or not path.resolve().is_relative_to(root):
            raise UserError(f"{at}{shown(name, 200)} is no .py file at or below {here.absolute()}.")
    return tuple(here / name for name in given)


def _keys(path: Key) -> list[str]:
    """The keys of a recipe, or those of the object that a key of it may hold."""
    if not path:
        return list(Recipe.model_fields)
    declared = Recipe.model_fields[str(path[0])].annotation
    kinds = (declared, *getattr(declared, "__args__", ()))
    return [name for kind in kinds for name in getattr(kind, "model_fields", ())]


def _no_key(key: str, value: str, values: Mapping[str, Any]) -> str:
    """What to write in the place of a key that no recipe has."""
    todo = advised(key, short(value, 60), values)
    found = unknown("key", key, Recipe.model_fields)
    return f"no key called '{short(key, 40)}'; {todo}." if todo else found


def _assign(document: Document, path: str, value: Any, name: str) -> None:
    """Set what `key.sub` names; what lies on the way is opened up as needed."""
    key, *rest = (part.strip() for part in path.split("."))
    if key not in Recipe.model_fields:
        raise UserError(f"{name}: {_no_key(key, written(value), document.values)}")
    if not rest and key in ("data", "dataset") and isinstance(value, str):
        if "/" in value:
            value = f"'{{image_folder: {{root: {value}}}}}'"
        if "/" in value or key == "data":
            raise UserError(f"{name}: a data set is named so: dataset={value}.")
    current, mark = document.values.get(key), REGISTRY_FIELDS.get(key)
    if rest and mark:
        if current is None and mark.form == "weighted_sum":
            # a term is added to what there would be without it
            current = grammar.plain(Recipe.model_fields[key].default)
        current = grammar.opened(current, mark.form)
        if mark.form == "choice" and isinstance(current, dict) and not _prefix(current, rest):
            now = next(iter(current), "nothing")
            text = f"{key} is '{now}' here; write {key}.{now}.{rest[-1]}=… for an option of it"
            if rest[1:]:
                text += f", or '{key}={{{rest[0]}: {{{rest[-1]}: …}}}}' for another {key}"
            raise UserError(f"{name}: {text}.")
    new, at = _set(current, rest, value, name)
    document.values = {**document.values, key: new}
    at = (key, *at)
    places = {other: p for other, p in document.places.items() if other[: len(at)] != at}
    document.places = places | {at[:n]: name for n in range(1, len(at) + 1)}


def _set(container: Any, keys: list[str], value: Any, name: str) -> tuple[Any, Key]:
    """A copy of `container` with `value` where `keys` lead, and the path there.

    An item of a list is named by its place or its entry. A name may hold dots (timm's tags).
    """
    if not keys:
        return value, ()
    if isinstance(container, list):
        n = _item(container, keys[0], name)
        below = keys[1:] if keys[0].isdecimal() else keys
        new, at = _set(container[n], below, value, name)
        return [*container[:n], new, *container[n + 1 :]], (n, *at)
    if not isinstance(container, dict | None):
        raise UserError(f"{name}: nothing can be set below {shown(container)}.")
    container = container or {}
    length = _prefix(container, keys) or 1
    part = ".".join(keys[:length])
    new, at = _set(container.get(part), keys[length:], value, name)
    return {**container, part: new}, (part, *at)


def _prefix(container: dict[str, Any], keys: list[str]) -> int:
    """How many of `keys`, joined, name something in `container`; the most, or 0."""
    return next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in container), 0)


def _item(items: list[Any], key: str, name: str) -> int:
    names = [next(iter(x), "") if isinstance(x, dict) else shown(x) for x in items]
    found = [n for n, item in enumerate(names) if key in (item, str(n))]
    if len(found) > 1:
        raise UserError(f"{name}: '{key}' is there {len(found)} times; say which: {found}.")
    if not found:
        raise UserError(f"{name}: {unknown('item', key, names)}")
    return found[0]

"""The forms of a recipe key: a choice, a weighted sum, a list; checked against the registries.

choice        `name` or `{name: {options}}`
weighted sum  `name`, `{name: weight, …}` or `{name: {weight: w, options}}`
list          a list of choices
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import core_schema

from ..core.errors import UserError, shown, unknown
from .signatures import UNSET, Entry, Signatures
from .yaml_lines import Key


class Options(dict):
    """Options by name; cannot be changed, nor can a list in it, but copied and pickled."""

    def __init__(self, items: Mapping[str, Any] | None = None):
        super().__init__({name: _frozen(value) for name, value in (items or {}).items()})

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a recipe does not change; load it again with an override")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple:
        return Options, (dict(self),)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return Options(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Choice:
    """One entry of a registry with all its options, defaults filled in."""

    name: str
    options: Mapping[str, Any] = field(default_factory=Options)
    weight: ClassVar[float] = 1.0


@dataclass(frozen=True)
class Term:
    """One summand of a weighted sum."""

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=Options)


@dataclass(frozen=True)
class RegistryField:
    """Marks a recipe key as a `form` (choice, weighted_sum, list) of entries on `registry`.

    `parse` has checked its value, and `plain` writes it; `schema` describes it.
    """

    registry: str
    form: str = "choice"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.any_schema(
            serialization=core_schema.plain_serializer_function_ser_schema(plain)
        )


# A registry that takes any name with any options, for values that were checked before.
UNCHECKED = Signatures("entry", fallbacks={"": Entry("", "any", {}, forwards=True)}, outside=None)
FORMS = {
    "choice": "exactly one {0}, its name or {{name: {{option: value}}}}",
    "weighted_sum": "a {0}'s name, {{name: weight, …}} or {{name: {{weight: w, option: value}}}}",
    "list": "a list of {0}s, such as [a, b]",
}
PLAINLY = {
    "tuple_type": "a list",
    "dict_type": "{name: value, …}",
    "missing": "more items",
}


class GrammarError(UserError):
    """A UserError that knows the path of what is wrong."""

    def __init__(self, message: str, path: Key):
        super().__init__(message)
        self.path = path


def parse(value: Any, known: Signatures, form: str, at: Key = ()) -> Any:
    """Raw YAML, at a path -> Choice, or tuple of Terms or Choices. GrammarError: what is wrong."""
    spelled = opened(value, form)
    if form == "list" and isinstance(value, list):
        return tuple(parse(item, known, "choice", (*at, n)) for n, item in enumerate(value))
    if form == "weighted_sum" and isinstance(spelled, dict) and spelled:
        return tuple(_entry(name, given, known, at, Term) for name, given in spelled.items())
    if form == "choice" and isinstance(spelled, dict) and len(spelled) == 1:
        return _entry(*next(iter(spelled.items())), known, at, Choice)
    raise GrammarError(f"given {shown(value)}; expected: {FORMS[form].format(known.kind)}.", at)


def opened(value: Any, form: str) -> Any:
    """`{name: {options}}` for every entry that a value names; what has not its form stays."""
    if form == "list":
        return [opened(item, "choice") for item in value] if isinstance(value, list) else value
    if isinstance(value, str):
        return {value: {}}
    if not isinstance(value, dict):
        return value
    spelled = {name: {} if given is None else given for name, given in value.items()}
    if form == "weighted_sum":
        spelled = {k: v if isinstance(v, dict) else {"weight": v} for k, v in spelled.items()}
    return spelled


def _entry(name: str, given: Any, known: Signatures, at: Key, kind: type) -> Choice | Term:
    entry, at = known.find(name), (*at, name)
    if entry is None:
        raise GrammarError(unknown(known.kind, name, known.names()), at)
    if not isinstance(given, dict):
        problem = f"given {shown(given)}; options are written {{name: {{option: value}}}}."
        raise GrammarError(problem, at)
    try:
        # as JSON, where a list may be a tuple and all else is as strict
        checked = model(entry, kind is Term).model_validate_json(json.dumps(given))
    except ValidationError as error:
        raise mistake(error, given, at, lambda _: entry.options) from error
    options = checked.model_dump(by_alias=True, warnings=False)
    # as they were given, so that recipes from before they had types keep their hash
    for option in (name for name, (_, default) in entry.options.items() if default is UNSET):
        options.pop(option)
        options |= {option: given[option]} if option in given else {}
    weight = [options.pop("weight")] if kind is Term else []
    return kind(name, *weight, options=Options(options))


def plain(value: Any) -> Any:
    """The parsed value as plain YAML; `parse(plain(x)) == x`."""
    if isinstance(value, Choice):
        return {value.name: dict(value.options)} if value.options else value.name
    if isinstance(value, Term):
        return {value.name: {"weight": value.weight, **value.options}}
    if value and isinstance(value, tuple) and isinstance(value[0], Term):
        return {term.name: plain(term)[term.name] for term in value}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@cache
def model(entry: Entry, weighted: bool) -> type[BaseModel]:
    """What checks an entry's options, which are the aliases of its fields."""
    fields: dict[str, Any] = {
        f"option_{name}": (kind, Field(None if default is UNSET else default, alias=name))
        for name, (kind, default) in entry.options.items()
    }
    if weighted:
        fields["weight"] = (float, Field(1.0, ge=0, lt=1e9))
    extra: Any = "allow" if entry.forwards else "forbid"
    config = ConfigDict(strict=True, allow_inf_nan=False, extra=extra)
    return create_model(entry.name, __config__=config, **fields)


def mistake(
    error: ValidationError, given: Any, at: Key, known: Callable[[Key], Iterable[str]]
) -> GrammarError:
    """pydantic's most precise complaint about `given`, which stands at `at`, as our one line.

    known: the keys that an object at a path below `at` may have.
    """
    found = [(_path(detail, given), detail) for detail in error.errors(include_url=False)]
    # a key that is not known comes before one that is missing: it may be its typo
    path, _ = max(found, key=lambda item: (len(item[0]), item[1]["type"] != "missing"))
    details = [detail for at, detail in found if at == path]
    full = (*at, *path)
    if details[0]["type"] == "missing" and details[0]["loc"][-1] == path[-1]:
        owner = f"'{full[-2]}'" if full[1:] else "the recipe"
        return GrammarError(f"{owner} needs a value for '{path[-1]}'.", full[:-1])
    if details[0]["type"] == "extra_forbidden":
        kind = f"option of '{full[-2]}'" if full[1:] else "key"
        return GrammarError(unknown(kind, str(path[-1]), known(path[:-1])), full)
    for part in path:
        given = given[part]
    said = " or ".join(dict.fromkeys(_expected(detail, known(path)) for detail in details))
    return GrammarError(f"given {shown(given)}; expected: {said}.", full)


def _path(detail: Any, value: Any) -> Key:
    """The path in what was given: pydantic's without the names of union members."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1] or isinstance(part, int):
            continue
        path.append(part)
    return tuple(path)


def _expected(detail: Any, keys: Iterable[str]) -> str:
    if detail["type"] == "model_type":
        return "{" + ", ".join(keys) + "}"
    said = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return PLAINLY.get(detail["type"], said)

"""The forms of a recipe key: a choice, a weighted sum, a list; checked against the registries.

choice        `name` or `{name: {options}}`
weighted sum  `name`, `{name: weight, …}` or `{name: {weight: w, options}}`
list          a list of choices
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..core.errors import UserError, short, shown, unknown
from .signatures import REQUIRED, Entry, Signatures


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

    def plain(self) -> Any:
        """As it would be written in a recipe."""
        return {self.name: dict(self.options)} if self.options else self.name


@dataclass(frozen=True)
class Term:
    """One summand of a weighted sum."""

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=Options)


@dataclass(frozen=True)
class RegistryField:
    """Marks a recipe key as a `form` (choice, weighted_sum, list) of entries on `registry`."""

    registry: str
    form: str = "choice"


# A registry that takes any name with any options, for values that were checked before.
UNCHECKED = Signatures(
    "entry", fallbacks={"": Entry("", "", (), "", "", forwards=True)}, outside=None
)


class GrammarError(UserError):
    """A UserError that knows the path, below its key, of what is wrong."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()):
        super().__init__(message)
        self.path = path


def parse(value: Any, known: Signatures, form: str) -> Any:
    """Raw YAML -> Choice, or tuple of Terms or Choices. GrammarError: what is wrong, where."""
    if form == "choice":
        return _choice(value, known)
    if form == "weighted_sum":
        return _weighted_sum(value, known)
    if not isinstance(value, list):
        raise GrammarError(
            f"given {shown(value)}; a list of {known.kind}s is expected, such as [a, b]."
        )
    return tuple(_choice(item, known, (i,)) for i, item in enumerate(value))


def plain(value: Any) -> Any:
    """The parsed value as plain YAML; `parse(plain(x)) == x`."""
    if isinstance(value, Choice):
        return value.plain()
    if value and isinstance(value, tuple) and isinstance(value[0], Term):
        return {t.name: {"weight": t.weight, **t.options} for t in value}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def words(value: Any) -> str:
    """One line for a table: `cosine`, `0.75 focal + 0.25 dice`, `hflip, auto_augment`."""
    if isinstance(value, Choice):
        return value.name
    if value and isinstance(value, tuple) and isinstance(value[0], Term):
        alone = len(value) == 1 and value[0].weight == 1
        return value[0].name if alone else " + ".join(f"{t.weight:g} {t.name}" for t in value)
    if isinstance(value, tuple):
        return ", ".join(words(item) for item in value)
    return str(value)


def _choice(value: Any, known: Signatures, at: tuple = ()) -> Choice:
    name, given = value, None
    if isinstance(value, dict):
        if len(value) != 1:
            names = short(", ".join(value), 60) or "none"
            raise GrammarError(
                f"given {len(value)} names ({names}); choose exactly one {known.kind}.", at
            )
        ((name, given),) = value.items()
    if not isinstance(name, str):
        raise GrammarError(f"given {shown(name)}; expected: the {known.kind}'s name.", at)
    where = (*at, name)
    return Choice(name, _options(_find(name, known, at), given, where))


def _weighted_sum(value: Any, known: Signatures) -> tuple[Term, ...]:
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, dict) or not value:
        raise GrammarError(
            f"given {shown(value)}; write a {known.kind}'s name or {{name: weight, …}}."
        )
    return tuple(_term(name, given, known) for name, given in value.items())


def _term(name: str, given: Any, known: Signatures) -> Term:
    entry, weight = _find(name, known, ()), 1.0
    if isinstance(given, dict):
        given = dict(given)
        weight = given.pop("weight", 1.0)
    elif given is not None:
        weight, given = given, None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e9:
        said = f"the weight of '{name}' is {shown(weight)}; a number from 0 up is expected."
        raise GrammarError(said, (name,))
    return Term(name, float(weight), _options(entry, given, (name,)))


def _find(name: str, known: Signatures, at: tuple) -> Entry:
    entry = known.find(name)
    if entry is None:
        raise GrammarError(unknown(known.kind, name, known.names()), (*at, name))
    return entry


def _options(entry: Entry, given: Any, at: tuple) -> Mapping[str, Any]:
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise GrammarError(
            f"given {shown(given)}; options are written {{name: {{option: value}}}}.", at
        )
    allowed = {option.name: option for option in entry.options}
    checked = {}
    for name, option in allowed.items():
        if name in given:
            checked[name] = _checked(given[name], option.type, (*at, name))
        elif option.default is REQUIRED:
            raise GrammarError(
                f"'{at[-1]}' needs a value for '{name}'. Its options: {entry.signature()}", at
            )
        else:
            checked[name] = option.default
    forwarded = {name: value for name, value in given.items() if name not in allowed}
    if forwarded and not entry.forwards:
        name = next(iter(forwarded))
        raise GrammarError(unknown(f"option of '{at[-1]}'", name, allowed), (*at, name))
    return Options({**checked, **forwarded})


def _checked(value: Any, kind: Any, at: tuple) -> Any:
    try:
        # as JSON, where a list may be a tuple and all else is as strict
        return _adapter(kind).validate_json(json.dumps(value))
    except ValidationError as error:
        raise GrammarError(f"given {shown(value)}; {expected(error)}.", at) from error


def expected(error: ValidationError) -> str:
    """What pydantic would have accepted, in words."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    said = dict.fromkeys(d["msg"].removeprefix("Input should be ") for d in details)
    return "expected: " + " or ".join(said)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))

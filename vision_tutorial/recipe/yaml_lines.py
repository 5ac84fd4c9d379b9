"""YAML text -> plain values, each with the line it stands on. Nothing is executed, nothing expands.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: `1e-3` is a number, `on` and `no` are
words, `1:30` is text. Anchors, aliases, tags, duplicate keys and files over 64 KB are refused.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..core.atomic import regular
from ..core.errors import UserError, shown

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    # kind: the pattern of the whole text, what reads it
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]{1,18}", int),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    "null": (r"~|null|Null|NULL|", lambda text: None),
}
Key = tuple[str | int, ...]


@dataclass
class Document:
    """Parsed values, and for each key path the place ("file:line") it came from.

    settings: the `key.sub: value` lines of a variant, which set one value inside its base.
    """

    values: dict[str, Any]
    places: dict[Key, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_document(path: Path, name: str | None = None) -> Document:
    """Parse the file at `path`, which errors call `name`. UserError: it is no YAML of a recipe."""
    name = name or str(path)
    try:
        size = regular(path).stat().st_size
        text = path.read_bytes().decode("utf-8-sig") if size <= MAX_BYTES else ""
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}). Name another file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: cannot be read as UTF-8 text ({error}). Check it.") from error
    if size > MAX_BYTES:
        raise UserError(f"{name}: {size:,} bytes; a recipe has at most {MAX_BYTES:,}.")
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Parse `text`; `name` is what errors call it."""
    parser = _Parser(text, name)
    values = parser.whole()
    if not isinstance(values, dict | None):
        raise UserError(f"{name}: holds a {type(values).__name__}; a recipe is `key: value` lines.")
    return Document(values or {}, parser.places)


def parse_value(text: str, name: str) -> Any:
    """One value as written behind `key=` on the command line."""
    return _Parser(text, name).whole()


class _Parser:
    """Makes values from libyaml's events, so that what is refused is met before it is composed."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name, self.places = text, name, dict[Key, str]()
        self.last_line = text.rstrip("\n").count("\n")  # the end of the text has no line of its own
        self.events = self._events()

    def whole(self) -> Any:
        """The value of the only document; None where there is none."""
        try:
            starts = (event for event in self.events if isinstance(event, yaml.DocumentStartEvent))
            value = self._value(next(self.events), ()) if next(starts, None) else None
            if another := next(starts, None):
                self._refuse("another document begins; a recipe is one", another.start_mark)
            return value
        except yaml.MarkedYAMLError as error:
            problem = f"not valid YAML: {error.problem or error.context}"
            self._refuse(problem, error.problem_mark or error.context_mark)
        except (yaml.YAMLError, UnicodeError) as error:
            problem = " ".join(str(error).split())
            raise UserError(f"{self.name}: not valid YAML: {problem}.") from error

    def _events(self) -> Iterator[yaml.Event]:
        for event in yaml.parse(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if getattr(event, "anchor", None) or getattr(event, "tag", None) not in (None, "!"):
                problem = "anchors, aliases and tags are not part of recipes"
                self._refuse(problem, event.start_mark)
            yield event

    def _place(self, mark: Any) -> str:
        return f"{self.name}:{min(mark.line, self.last_line) + 1}"

    def _refuse(self, problem: str, mark: Any) -> NoReturn:
        raise UserError(f"{self._place(mark)}: {problem}.")

    def _value(self, event: yaml.Event, at: Key) -> Any:
        """The value that begins with `event`."""
        self.places.setdefault(at, self._place(event.start_mark))
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if len(at) >= MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        inner = takewhile(lambda e: not isinstance(e, yaml.CollectionEndEvent), self.events)
        if isinstance(event, yaml.SequenceStartEvent):
            return [self._value(item, (*at, n)) for n, item in enumerate(inner)]
        mapping: dict[str, Any] = {}
        for key_event in inner:
            if not isinstance(key_event, yaml.ScalarEvent):
                self._refuse("a key must be a word, not a list or mapping", key_event.start_mark)
            key = self._printable(key_event)
            if key in mapping:
                first = self.places[(*at, key)].rpartition(":")[2]
                problem = f"{shown(key)} is given twice (first on line {first})"
                self._refuse(problem, key_event.start_mark)
            self.places[(*at, key)] = self._place(key_event.start_mark)
            mapping[key] = self._value(next(self.events), (*at, key))
        return mapping

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = self._printable(event)
        for pattern, read in SCALARS.values():
            if event.implicit[0] and re.fullmatch(pattern, text):
                value = read(text)
                if isinstance(value, float) and math.isinf(value):
                    self._refuse(f"{shown(text)} is too large a number", event.start_mark)
                return value
        return text

    def _printable(self, event: yaml.ScalarEvent) -> str:
        """The scalar's text. An escape can hold what fails only later, in a file name or a log."""
        if found := UNPRINTABLE.search(event.value):
            problem = f"holds a control character (U+{ord(found[0]):04X})"
            self._refuse(problem, event.start_mark)
        return event.value

"""YAML text -> plain values, each with the line it stands on. Nothing is executed, nothing expands.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: `1e-3` is a number, `on` and `no` are
words, `1:30` is text. Anchors, aliases, tags, duplicate keys and files over 64 KB are refused.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..core.errors import UserError, shown

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
Key = tuple[str | int, ...]


class Refused(yaml.MarkedYAMLError):
    """Valid YAML that has no place in a recipe."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The compiled SafeLoader with the core schema's scalars."""

    yaml_implicit_resolvers: dict = {}


for _tag, _read, _first, _pattern in (
    ("bool", lambda text: text.lower() == "true", "tTfF", r"true|True|TRUE|false|False|FALSE"),
    ("int", int, "-+0123456789", r"[-+]?[0-9]{1,18}"),
    ("float", float, "-+.0123456789", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("null", lambda text: None, ["~", "n", "N", ""], r"~|null|Null|NULL|"),
):
    _name = f"tag:yaml.org,2002:{_tag}"
    Loader.add_implicit_resolver(_name, re.compile(rf"(?:{_pattern})\Z"), list(_first))
    Loader.add_constructor(_name, lambda loader, node, read=_read: read(node.value))


@dataclass
class Document:
    """Parsed values, and for each key path the place ("file:line") it came from.

    settings: the `key.sub: value` lines of a variant, which set one value inside its base.
    """

    values: dict[str, Any]
    places: dict[Key, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_document(path: Path, name: str | None = None) -> Document:
    """Parse the file at `path`. UserError names file and line for anything that is not a recipe.

    name: what errors call the file, if not by its path.
    """
    name = name or str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{name}: {size:,} bytes; a recipe has at most {MAX_BYTES:,}.")
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Parse `text`; `name` is what errors call it."""
    value, places = _construct(text, name)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UserError(f"{name}: holds a {type(value).__name__}; a recipe is `key: value` lines.")
    return Document(value, places)


def parse_value(text: str, name: str) -> Any:
    """One value as written behind `key=` on the command line."""
    return _construct(text, name)[0]


def _construct(text: str, name: str) -> tuple[Any, dict[Key, str]]:
    if len(text) > MAX_BYTES:
        raise UserError(f"{name}: {len(text):,} letters; at most {MAX_BYTES:,} are read.")
    places: dict[Key, str] = {}
    try:
        _refuse_what_expands(text)
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _value(loader, node, (), name, places), places
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        last = text.rstrip("\n").count("\n")  # the end of the text is on no line of its own
        line = f":{min(error.problem_mark.line, last) + 1}" if error.problem_mark else ""
        said = "" if isinstance(error, Refused) else "not valid YAML: "
        raise UserError(f"{name}{line}: {said}{error.problem or error.context}.") from error
    except yaml.reader.ReaderError as error:
        line, code = text.count("\n", 0, error.position) + 1, error.character
        raise UserError(f"{name}:{line}: a letter that YAML has not (U+{code:04X}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from error


def _refuse_what_expands(text: str) -> None:
    """Refuse before anything is composed, so that neither an alias nor depth can cost anything."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if getattr(event, "anchor", None) or getattr(event, "tag", None) not in (None, "!"):
            _refuse("anchors, aliases and tags are not part of recipes", event.start_mark)
        if depth > MAX_DEPTH:
            _refuse(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)


def _refuse(problem: str, mark: Any) -> NoReturn:
    """Raise what the boundary turns into "file:line: problem."."""
    raise Refused(problem=problem, problem_mark=mark)


def _value(loader: Loader, node: yaml.Node, at: Key, name: str, places: dict[Key, str]) -> Any:
    places.setdefault(at, f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, n, (*at, i), name, places) for i, n in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            _refuse("a key must be a word, not a list or mapping", key_node.start_mark)
        key = _printable(loader, key_node)
        if key in mapping:
            first = places[(*at, key)].rpartition(":")[2]
            problem = f"{shown(key)} is given twice (first on line {first})"
            _refuse(problem, key_node.start_mark)
        places[(*at, key)] = f"{name}:{key_node.start_mark.line + 1}"
        mapping[key] = _value(loader, value_node, (*at, key), name, places)
    return mapping


def _scalar(loader: Loader, node: yaml.ScalarNode) -> Any:
    _printable(loader, node)
    value = loader.construct_object(node)
    if isinstance(value, float) and math.isinf(value):
        _refuse(f"{shown(node.value)} is too large a number", node.start_mark)
    return value


def _printable(loader: Loader, node: yaml.ScalarNode) -> str:
    """The scalar's text. Escapes can hold what would only fail later, in a file name or a log."""
    found = UNPRINTABLE.search(node.value)
    if found:
        _refuse(f"holds a control character (U+{ord(found[0]):04X})", node.start_mark)
    return node.value

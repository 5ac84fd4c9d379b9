"""YAML text -> plain values, each with the line it stands on. Nothing is executed, nothing expands.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: `1e-3` is a number, `on` and `no` are words,
`1:30` is text. Anchors, aliases, tags, duplicate keys and files over 64 KB are refused.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
Key = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """SafeLoader with the core schema's scalars."""

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
    """Parsed values, and for each key path the place ("file:line") it came from."""

    values: dict[str, Any]
    places: dict[Key, str] = field(default_factory=dict)


def read_document(path: Path) -> Document:
    """Parse the file at `path`. UserError names file and line for anything that is not a recipe."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size:,} bytes; a recipe has at most {MAX_BYTES:,}.")
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    return parse(text, str(path))


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
    places: dict[Key, str] = {}
    try:
        loader = Loader(text)
        try:
            _refuse_aliases(text, name)
            node = loader.get_single_node()
            value = None if node is None else _value(loader, node, (), name, places)
        finally:
            loader.dispose()
        return value, places
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not valid YAML: {error}.") from error


def _refuse_aliases(text: str, name: str) -> None:
    for event in yaml.parse(text, Loader=Loader):
        anchored = getattr(event, "anchor", None)
        if anchored or getattr(event, "tag", None) not in (None, "!"):
            line = event.start_mark.line + 1
            raise UserError(f"{name}:{line}: anchors, aliases and tags are not part of recipes.")


def _value(loader: Loader, node: yaml.Node, at: Key, name: str, places: dict[Key, str]) -> Any:
    line = node.start_mark.line + 1
    places.setdefault(at, f"{name}:{line}")
    if len(at) > MAX_DEPTH:
        raise UserError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels.")
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, n, (*at, i), name, places) for i, n in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{name}:{line}: a key must be a word, not a list or mapping.")
        if key in mapping:
            first = places[(*at, key)].rpartition(":")[2]
            raise UserError(f"{name}:{line}: '{key}' is given twice (first on line {first}).")
        places[(*at, key)] = f"{name}:{line}"
        mapping[key] = _value(loader, value_node, (*at, key), name, places)
    return mapping

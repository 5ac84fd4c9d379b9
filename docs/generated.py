"""The pages of the site that the package's own declarations make."""

import argparse
import importlib
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vision_tutorial.__main__ import COMMANDS, MODULES
from vision_tutorial.recipe.fields import REGISTRY_FIELDS, Frozen, Recipe, plain_defaults, written
from vision_tutorial.recipe.signatures import Signatures, static_signatures

ROOT = Path(__file__).parent.parent
TYPES = {"integer": "whole number", "number": "number", "string": "text", "null": "`null`"}
TYPES |= {"boolean": "`true` or `false`"}
FORMS = {"choice": "one of", "list": "a list of", "weighted_sum": "one, or a weighted sum, of"}


def pages() -> dict[str, str]:
    """Each generated page, by its name in the site."""
    made = {f"commands/{name}.md": command(name) for name in COMMANDS}
    made |= {"commands.md": commands(), "recipe-keys.md": keys(), "components.md": components()}
    return made


# -- commands --------------------------------------------------------------------------------------


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    module = MODULES.get(name, f".commands.{name}")
    return importlib.import_module(module, "vision_tutorial").parser()


def examples() -> dict[str, tuple[str, str]]:
    """Of each command, the README's example and what that says of it."""
    rows = re.findall(r"^\| `(vision-tutorial ([\w-]+).*?)` \| (.*) \|$", read("README.md"), re.M)
    return {name: (line, text) for line, name, text in rows}


def read(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text("utf-8")


def commands() -> str:
    """The page that lists the commands."""
    found = examples()
    rows = ([f"[{name}](commands/{name}.md)", found[name][1]] for name in COMMANDS)
    lines = ["# Commands", "", "[한국어](ko/commands.md)", ""]
    lines += ["`vision-tutorial` alone lists them too.", ""]
    lines += table(["command", "what it does"], rows)
    lines += ["", "```{toctree}", ":hidden:", "", *(f"commands/{name}" for name in COMMANDS), "```"]
    return "\n".join([*lines, ""])


def command(name: str) -> str:
    """The page of one command: what `--help` says."""
    parser, (line, _) = parser_of(name), examples()[name]
    os.environ["COLUMNS"] = "78"  # of the usage
    lines = [f"# {name}", "", escaped(parser.description or ""), "", "```sh", line, "```", ""]
    groups = {"Arguments": [], "Options": []}
    for action in parser._actions:
        groups["Options" if action.option_strings else "Arguments"].append(
            described(action, parser)
        )
    for title, rows in groups.items():
        lines += [f"## {title}", "", *table([title.lower()[:-1], "meaning"], rows), ""] * bool(rows)
    lines += [
        "## Usage",
        "",
        "```text",
        parser.format_usage().removeprefix("usage: ").rstrip(),
        "```",
    ]
    lines += ["", escaped(parser.epilog or ""), ""]
    if (ROOT / "docs" / f"{name}.md").is_file():
        lines += [f"More about it: [{name}](../{name}.md).", ""]
    return "\n".join(lines)


def described(action: argparse.Action, parser: argparse.ArgumentParser) -> list[str]:
    """An argument of a command as a row: how it is written, and what it means."""
    metavar = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    names = ", ".join(action.option_strings) or value
    takes = action.option_strings and action.nargs != 0
    said = parser._get_formatter()._expand_help(action)  # with %(default)s filled in
    return [f"`{names} {value}`" if takes else f"`{names}`", escaped(said)]


# -- recipes ---------------------------------------------------------------------------------------


def keys() -> str:
    """The page of all keys of a recipe: what each does, takes, and is if it is not given."""
    schema, defaults = Recipe.model_json_schema(), plain_defaults()
    lines = ["# Recipe keys", "", "Every key of a recipe, in the order of `recipe.yaml`. How they "]
    lines[-1] += "are written: [recipes](recipes.md)."
    for key, declared in Recipe.model_fields.items():
        part = schema["properties"][key]
        inner = list(models(declared.annotation))
        text = declared.description or inspect.getdoc(inner[0])
        mark = REGISTRY_FIELDS.get(key)
        kind = words(part, schema["$defs"]) if not mark else ""
        if mark:
            optional = defaults[key] is None and not declared.is_required()
            or_null = ", or `null`" if optional else ""
            title = f"[{mark.registry}](components.md#{mark.registry})"
            kind = f"{FORMS[mark.form]} {title}" + or_null
        default = "must be given" if declared.is_required() else f"`{written(defaults[key])}`"
        lines += ["", f"## {key}", "", *paragraphs(text), ""]
        lines += [f"Value: {kind or 'the options below'}. Default: {default}.", ""]
        for model in inner:
            of = schema["$defs"][model.__name__]
            rows = (
                [f"`{key}.{name}`", words(option, schema["$defs"]), option_default(option)]
                for name, option in of["properties"].items()
            )
            lines += table(["option", "value", "default"], rows)
    return "\n".join([*lines, ""])


def models(annotation: Any) -> Iterator[type[Frozen]]:
    """The groups of options that a key takes."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if inspect.isclass(kind) and issubclass(kind, Frozen):
            yield kind


def option_default(option: Mapping[str, Any]) -> str:
    """Of an option: its default, if it has one."""
    return f"`{written(option['default'])}`" if "default" in option else "must be given"


def words(part: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """What a value may be, from its schema."""
    if "anyOf" in part:
        return ", or ".join(filter(None, (words(one, defs) for one in part["anyOf"])))
    if "$ref" in part:
        return "the options below" if "properties" in defs[part["$ref"].split("/")[-1]] else ""
    if "enum" in part or "const" in part:
        return ", ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    if part.get("type") == "array":
        items = part.get("items") or part.get("prefixItems", [{}])[0]
        return f"list, each: {words(items, defs)}"
    if part.get("type") == "object":
        return "names with a number each"
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    limits |= {"exclusiveMaximum": "below"}
    least = {name: value for name, value in part.items() if name in limits and value < 10**6}
    said = [f"{word} {least[name]:,}" for name, word in limits.items() if name in least]
    return " ".join([TYPES[part.get("type", "string")], *said])


def components() -> str:
    """The page of the registries: every entry with its options."""
    lines = ["# Components", "", "What a recipe can name, with options and their defaults. "]
    lines[-1] += "`vision-tutorial components` prints the same."
    for name, known in static_signatures().items():
        lines += ["", f"## {name}", "", *table(["entry", "what it is"], entries(known))]
    return "\n".join([*lines, ""])


def entries(known: Signatures) -> Iterator[list[str]]:
    """The rows of one registry: the name, and what it is with its options."""
    count = f"{len(known.outside)} names" if known.outside else "any name"
    fallbacks = ((f"`{p}NAME`" if p else f"{count} of timm", e) for p, e in known.fallbacks.items())
    for title, entry in [*((f"`{e.name}`", e) for e in known.entries.values()), *fallbacks]:
        options = entry.signature()[1:-1]
        yield [
            title,
            " ".join([escaped(entry.doc), *([f"Options: `{options}`"] if options else [])]),
        ]


# -- Markdown --------------------------------------------------------------------------------------


def table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def paragraphs(text: str) -> list[str]:
    """A docstring as Markdown."""
    return escaped(text).splitlines()


def escaped(text: str) -> str:
    """Plain text of the package as Markdown, where `code` stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*<\[])", r"\\\1", p) for p in parts)

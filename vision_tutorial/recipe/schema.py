"""A JSON schema (draft 2020-12) of recipes for editors, from what loading reads, too."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from .fields import SHELVED, Recipe
from .signatures import REQUIRED, Entry, Shelf

Schema = dict[str, Any]


class Generate(GenerateJsonSchema):
    """What stands on registries is described here, not by pydantic."""

    def dataclass_schema(self, schema: Any) -> Schema:
        """A Choice or Term; `schema` below puts another in its place."""
        return {}


def schema(shelves: Mapping[str, Shelf]) -> Schema:
    """The schema of a recipe whose entries are `registries`."""
    whole = Recipe.model_json_schema(schema_generator=Generate)
    defs = {k: v for k, v in whole.get("$defs", {}).items() if k not in ("Choice", "Term")}
    properties = whole["properties"]
    for key, mark in SHELVED.items():
        shelf, optional = shelves[mark.shelf], Recipe.model_fields[key].default is None
        defs |= _definitions(mark.shelf, mark.form, shelf)
        reference = {"$ref": f"#/$defs/{mark.shelf}.{mark.form}"}
        properties[key] = {"anyOf": [reference, {"type": "null"}]} if optional else reference
    properties["extends"] = {"type": "string", "description": "A recipe whose keys hold here too."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of vision_tutorial",
        "description": Recipe.__doc__,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "anyOf": [{"required": ["extends"]}, {"required": whole["required"]}],
        "$defs": defs,
    }


def _definitions(name: str, form: str, shelf: Shelf) -> dict[str, Schema]:
    """The definitions that the key's form needs, by name."""
    made: dict[str, Schema] = {}
    for entry in shelf.entries.values():
        made[f"{name}.{entry.name}"] = _options(entry)
    for entry in shelf.prefixes.values():
        made[f"{name}.{entry.name}"] = _options(entry)
    if shelf.fallback:
        made[f"{name}.other"] = _options(shelf.fallback)
        made[f"{name}.names"] = _outside(shelf)
    shown = "choice" if form == "chain" else form
    made[f"{name}.{shown}"] = _choice(name, shelf, blend=form == "blend")
    if form == "chain":
        made[f"{name}.chain"] = {"type": "array", "items": {"$ref": f"#/$defs/{name}.choice"}}
    return made


def _choice(name: str, shelf: Shelf, blend: bool) -> Schema:
    """`name`, or `{name: {options}}`; in a blend several, each with a weight."""
    alone: list[Schema] = [
        {"const": entry.name, "description": entry.doc}
        for entry in shelf.entries.values()
        if not _needs(entry)
    ]
    properties = {
        entry.name: _value(f"{name}.{entry.name}", entry, blend) for entry in shelf.entries.values()
    }
    spelled: Schema = {"type": "object", "minProperties": 1, "properties": properties}
    if not blend:
        spelled["maxProperties"] = 1
    prefixed: list[Schema] = []
    for prefix, entry in shelf.prefixes.items():
        prefixed.append({"type": "string", "pattern": f"^{prefix}"})
        value = _value(f"{name}.{entry.name}", entry, blend)
        spelled.setdefault("patternProperties", {})[f"^{prefix}"] = value
    alone += prefixed
    if shelf.fallback:
        names = {"$ref": f"#/$defs/{name}.names"}
        if not _needs(shelf.fallback):
            alone.append(names)
        spelled["propertyNames"] = {"anyOf": [{"enum": list(properties)}, *prefixed, names]}
        spelled["additionalProperties"] = _value(f"{name}.other", shelf.fallback, blend)
    else:
        spelled["additionalProperties"] = False
    return {"anyOf": [*alone, spelled]}


def _value(definition: str, entry: Entry, blend: bool) -> Schema:
    """What may stand behind an entry's name."""
    forms: list[Schema] = [{"$ref": f"#/$defs/{definition}"}]
    if not _needs(entry):
        forms.append({"type": "null"})
        if blend:
            forms.append({"type": "number", "minimum": 0, "exclusiveMaximum": 1e9})
    return {"description": entry.doc, "anyOf": forms}


def _options(entry: Entry) -> Schema:
    properties = {option.name: _type(option.type) for option in entry.options}
    for option in entry.options:
        if option.default is not REQUIRED:
            properties[option.name]["default"] = option.default
    if entry.shelf in {mark.shelf for mark in SHELVED.values() if mark.form == "blend"}:
        properties["weight"] = {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9}
    return {
        "description": f"{entry.doc} {entry.signature()}",
        "type": "object",
        "properties": properties,
        "required": _needs(entry),
        "additionalProperties": entry.forwards,
    }


def _needs(entry: Entry) -> list[str]:
    return [option.name for option in entry.options if option.default is REQUIRED]


def _type(kind: Any) -> Schema:
    return TypeAdapter(kind, config=ConfigDict(strict=True)).json_schema()


def _outside(shelf: Shelf) -> Schema:
    """The names that the open entry answers for, with timm's tags and wrapper."""
    if shelf.outside is None:
        return {"type": "string"}
    return {
        "anyOf": [
            {"enum": sorted(shelf.outside)},
            {"type": "string", "pattern": r"^(lookahead_\w+|\w+\.\w+)$"},
        ]
    }

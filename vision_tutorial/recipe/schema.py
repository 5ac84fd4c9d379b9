"""A JSON schema (draft 2020-12) of recipes for editors, from what loading reads, too."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from .fields import REGISTRY_FIELDS, Recipe
from .signatures import REQUIRED, Entry, Signatures

Schema = dict[str, Any]


class Generate(GenerateJsonSchema):
    """What stands on registries is described here, not by pydantic."""

    def dataclass_schema(self, schema: Any) -> Schema:
        """A Choice or Term; `schema` below puts another in its place."""
        return {}


def schema(registries: Mapping[str, Signatures]) -> Schema:
    """The schema of a recipe whose entries are `registries`."""
    whole = Recipe.model_json_schema(schema_generator=Generate)
    defs = {k: v for k, v in whole.get("$defs", {}).items() if k not in ("Choice", "Term")}
    properties = whole["properties"]
    for key, mark in REGISTRY_FIELDS.items():
        known, optional = registries[mark.registry], Recipe.model_fields[key].default is None
        defs |= _definitions(mark.registry, mark.form, known)
        reference = {"$ref": f"#/$defs/{mark.registry}.{mark.form}"}
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


def _definitions(name: str, form: str, known: Signatures) -> dict[str, Schema]:
    """The definitions that the key's form needs, by name."""
    made: dict[str, Schema] = {}
    for entry in (*known.entries.values(), *known.fallbacks.values()):
        made[f"{name}.{entry.name}"] = _options(entry)
    if "" in known.fallbacks:
        made[f"{name}.names"] = _outside(known)
    base = "choice" if form == "list" else form
    made[f"{name}.{base}"] = _choice(name, known, weighted=form == "weighted_sum")
    if form == "list":
        made[f"{name}.list"] = {"type": "array", "items": {"$ref": f"#/$defs/{name}.choice"}}
    return made


def _choice(name: str, known: Signatures, weighted: bool) -> Schema:
    """`name`, or `{name: {options}}`; in a weighted sum several, each with a weight."""
    alone: list[Schema] = [
        {"const": entry.name, "description": entry.doc}
        for entry in known.entries.values()
        if not _needs(entry)
    ]
    properties = {
        entry.name: _value(f"{name}.{entry.name}", entry, weighted)
        for entry in known.entries.values()
    }
    spelled: Schema = {"type": "object", "minProperties": 1, "properties": properties}
    if not weighted:
        spelled["maxProperties"] = 1
    prefixed: list[Schema] = []
    for prefix, entry in known.fallbacks.items():
        if not prefix:
            continue
        prefixed.append({"type": "string", "pattern": f"^{prefix}"})
        value = _value(f"{name}.{entry.name}", entry, weighted)
        spelled.setdefault("patternProperties", {})[f"^{prefix}"] = value
    alone += prefixed
    if other := known.fallbacks.get(""):
        names = {"$ref": f"#/$defs/{name}.names"}
        if not _needs(other):
            alone.append(names)
        spelled["propertyNames"] = {"anyOf": [{"enum": list(properties)}, *prefixed, names]}
        spelled["additionalProperties"] = _value(f"{name}.{other.name}", other, weighted)
    else:
        spelled["additionalProperties"] = False
    return {"anyOf": [*alone, spelled]}


def _value(definition: str, entry: Entry, weighted: bool) -> Schema:
    """What may stand behind an entry's name."""
    forms: list[Schema] = [{"$ref": f"#/$defs/{definition}"}]
    if not _needs(entry):
        forms.append({"type": "null"})
        if weighted:
            forms.append({"type": "number", "minimum": 0, "exclusiveMaximum": 1e9})
    return {"description": entry.doc, "anyOf": forms}


def _options(entry: Entry) -> Schema:
    properties = {option.name: _type(option.type) for option in entry.options}
    for option in entry.options:
        if option.default is not REQUIRED:
            properties[option.name]["default"] = option.default
    if entry.registry in {
        mark.registry for mark in REGISTRY_FIELDS.values() if mark.form == "weighted_sum"
    }:
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


def _outside(known: Signatures) -> Schema:
    """The names that the open entry answers for, with timm's tags and wrapper."""
    if known.outside is None:
        return {"type": "string"}
    return {
        "anyOf": [
            {"enum": sorted(known.outside)},
            {"type": "string", "pattern": r"^(lookahead_\w+|\w+\.\w+)$"},
        ]
    }

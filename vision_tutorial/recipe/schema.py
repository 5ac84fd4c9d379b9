"""A JSON schema (draft 2020-12) of recipes for editors, from what loading reads, too."""

from collections.abc import Mapping
from typing import Any

from . import grammar
from .fields import REGISTRY_FIELDS, Recipe
from .signatures import Entry, Signatures

Schema = dict[str, Any]


def schema(registries: Mapping[str, Signatures]) -> Schema:
    """The schema of a recipe whose entries are `registries`."""
    whole = Recipe.model_json_schema()
    defs, properties = whole["$defs"], whole["properties"]
    for key, mark in REGISTRY_FIELDS.items():
        known, optional = registries[mark.registry], Recipe.model_fields[key].default is None
        defs |= _definitions(mark.registry, known, mark.form)
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


def _definitions(registry: str, known: Signatures, form: str) -> dict[str, Schema]:
    """The key's form, and what it refers to: the options of each entry, the names of timm."""
    entries = (*known.entries.values(), *known.fallbacks.values())
    weighted, made = form == "weighted_sum", dict[str, Schema]()
    names: dict[Entry, Schema] = {}
    values: dict[Entry, Schema] = {}
    for entry in entries:
        at = f"{registry}.{entry.name}"
        made[at] = grammar.model(entry, weighted).model_json_schema()
        made[at]["description"] = f"{entry.doc} {entry.signature()}"
        values[entry] = {"description": entry.doc, "anyOf": [{"$ref": f"#/$defs/{at}"}]}
        if not made[at].get("required"):
            values[entry]["anyOf"].append({"type": "null"})
            if weighted:
                values[entry]["anyOf"].append(made[at]["properties"]["weight"])
        names[entry] = {"const": entry.name, "description": entry.doc}
    for prefix, entry in known.fallbacks.items():
        names[entry] = {"type": "string", "pattern": f"^{prefix}"}
        if not prefix and known.outside:
            timm = {"enum": sorted(known.outside)}  # and its tags and wrapper
            tagged = {"type": "string", "pattern": r"^(lookahead_\w+|\w+\.\w+)$"}
            made[f"{registry}.names"] = {"anyOf": [timm, tagged]}
            names[entry] = {"$ref": f"#/$defs/{registry}.names"}
    spelled: Schema = {
        "type": "object",
        "minProperties": 1,
        "properties": {entry.name: values[entry] for entry in known.entries.values()},
        "patternProperties": {f"^{p}": values[e] for p, e in known.fallbacks.items() if p},
        "propertyNames": {"anyOf": list(names.values())},
        "additionalProperties": values[known.fallbacks[""]] if "" in known.fallbacks else False,
    }
    if not weighted:
        spelled["maxProperties"] = 1
    alone = [names[e] for e in entries if {"type": "null"} in values[e]["anyOf"]]
    one = {"anyOf": [*alone, spelled]}
    made[f"{registry}.{form}"] = {"type": "array", "items": one} if form == "list" else one
    return made

"""Recipes in the notation of the students' tables: "0.75 focal + 0.25 dice", "adamax(0.0005)".

A recipe here is what `loading.read_back` returns: values by key, with typed choices and terms. What
did not fit its form is shown as plain text.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from . import grammar
from .fields import REGISTRY_FIELDS, UNESSENTIAL, Recipe
from .grammar import Choice, Term

_NONE = "–"
_SHORT = {"cross_entropy": "CE"}
_LEADING = "lr"  # the option that is written without its name
_HEADS = "‖"  # decoder ‖ auxiliary
FORMS = {key: mark.form for key, mark in REGISTRY_FIELDS.items()}


def entries(value: Any) -> tuple[Choice | Term, ...]:
    """The entries that a key's value names; () if it names none."""
    named = value if isinstance(value, tuple) else (value,)
    return named if all(isinstance(entry, Choice | Term) for entry in named) else ()


def scalar(value: Any) -> str:
    """One value: 0.0005, 1e-9, yes, – for null."""
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return re.sub(r"e([+-])0+", r"e\1", f"{value:g}").replace("e+", "e")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{name}={scalar(item)}" for name, item in value.items())
    return str(value)


def duration(seconds: float) -> str:
    """As the students wrote it: 48s, 49m45s, 1h1m."""
    whole = round(seconds)
    if whole >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60}h{minutes % 60}m"
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"


class Notation:
    """Cells for some recipes. Options, and entries of a list, are written where they differ."""

    def __init__(self, recipes: Sequence[dict[str, Any]], everything: bool = False) -> None:
        self.recipes, self.everything = recipes, everything
        self._visible = {key: self._differing(key) for key in FORMS}
        self._shared = {key: self._common(key) for key in FORMS if FORMS[key] == "list"}

    @cached_property
    def columns(self) -> list[str]:
        """The keys that differ, in the recipe's order: `loss`, `warmup.lr`, …; or all keys."""
        skipped = set() if self.everything else UNESSENTIAL | {"seed", "data.memory"}
        keys = dict.fromkeys(leaf for recipe in self.recipes for leaf in leaves(recipe))
        order = {key: n for n, key in enumerate(Recipe.model_fields)}
        keys = sorted(keys, key=lambda key: order.get(key.partition(".")[0], len(order)))
        selected = [key for key in keys if not {key, key.partition(".")[0]} & skipped]
        return [key for key in selected if self.everything or self._differs(key)]

    def _differs(self, key: str) -> bool:
        cells = [(leaf(r, key), r.get("aux_loss") if key == "loss" else None) for r in self.recipes]
        texts = {json.dumps([grammar.plain(x) for x in cell], sort_keys=True) for cell in cells}
        return len(texts) > 1

    def cell(self, recipe: dict[str, Any], key: str) -> Any:
        """The content of a cell under one of `columns`: a number, words, or None."""
        value = leaf(recipe, key)
        if value in (None, (), [], {}):
            return None
        if key not in FORMS:
            return value if number(value) is not None else scalar(value)
        cell = self.words(key, value)
        if key == "loss" and recipe.get("aux_loss") is not None:
            return f"{cell} {_HEADS} {self.words('aux_loss', recipe['aux_loss'])}"
        return cell

    def words(self, key: str, value: Any) -> str:
        """A choice, weighted sum or list in words."""
        named = entries(value)
        if not named:
            return scalar(value)
        shared = self._shared.get(key, frozenset())
        words = ["…"] if any(_fixed(entry) in shared for entry in named) else []
        for entry in named:
            if _fixed(entry) not in shared:
                weight = f"{scalar(_weight(entry))} " if _weight(entry) != 1 else ""
                words.append(weight + self._entry(key, entry))
        return (" + " if FORMS[key] == "weighted_sum" else ", ").join(words)

    def _entry(self, key: str, entry: Choice | Term) -> str:
        visible = self._visible[key]
        options = [scalar(entry.options[_LEADING])] if _LEADING in entry.options else []
        for name, value in entry.options.items():
            if name != _LEADING and (self.everything or (entry.name, name) in visible):
                options.append(f"{name}={scalar(value)}")
        name = _SHORT.get(entry.name, entry.name)
        return f"{name}({', '.join(options)})" if options else name

    def _differing(self, key: str) -> set[tuple[str, str]]:
        """(entry, option) for options that entries of one name do not share."""
        seen: dict[tuple[str, str], set[str]] = {}
        for recipe in self.recipes:
            for entry in entries(recipe.get(key)):
                for name, value in entry.options.items():
                    seen.setdefault((entry.name, name), set()).add(json.dumps(value))
        return {pair for pair, values in seen.items() if len(values) > 1}

    def _common(self, key: str) -> frozenset[str]:
        """The entries of a list that every recipe has, which are worth no words."""
        if self.everything or len(self.recipes) < 2:
            return frozenset()
        each = [frozenset(map(_fixed, entries(recipe.get(key)))) for recipe in self.recipes]
        return frozenset.intersection(*each)


def _weight(entry: Choice | Term) -> float:
    return getattr(entry, "weight", 1.0)


def _fixed(entry: Choice | Term) -> str:
    return json.dumps([entry.name, _weight(entry), entry.options], sort_keys=True)


def leaves(recipe: dict[str, Any]) -> list[str]:
    """The keys of a recipe, `warmup.lr` for what stands within one. aux_loss stands with `loss`."""
    found: list[str] = []
    for key, value in recipe.items():
        within = isinstance(value, dict) and key not in FORMS
        found += [f"{key}.{name}" for name in value] if within else [key]
    return [key for key in found if key != "aux_loss"]


def leaf(recipe: dict[str, Any], key: str) -> Any:
    """What one of `leaves` holds; None if the recipe has it not."""
    first, _, part = key.partition(".")
    value = recipe.get(first)
    if isinstance(value, dict) and first not in FORMS:
        return value.get(part)
    return None if part else value


def find(recipe: dict[str, Any], key: str) -> Any:
    """What a dotted key holds: `epochs`, `warmup.lr`, or an entry's option, `optimizer.lr`."""
    first, _, option = key.partition(".")
    if first in FORMS and option:
        options = (entry.options for entry in entries(recipe.get(first)))
        return next((found[option] for found in options if option in found), None)
    return leaf(recipe, key)


# -- what changed ----------------------------------------------------------------------------------


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What a recipe changed in another: "epochs 200 → 250, optimizer.lr 0.1 → 0.25, + cutmix".

    Either may hold only the keys in question. Keys that make no other experiment, and the seed,
    are passed over.
    """
    said: list[str] = []
    for key, two in after.items():
        one = before.get(key)
        if one == two or key in UNESSENTIAL | {"seed"}:
            continue
        if key in FORMS:
            said += _entries_changed(key, one, two)
        elif isinstance(one, dict) and isinstance(two, dict):
            said += _options_changed(key, one, two)
        else:
            said.append(f"{key} {scalar(one)} → {scalar(two)}")
    return ", ".join(said)


def _entries_changed(key: str, one: Any, two: Any) -> Iterator[str]:
    old, new = _numbered(entries(one)), _numbered(entries(two))
    if not old and not new:
        yield f"{key} {scalar(one)} → {scalar(two)}"
    elif FORMS[key] == "list":
        yield from (f"− {name}" for name in old if name not in new)
        yield from (f"+ {name}" for name in new if name not in old)
        if list(old) != list(new) and old.keys() == new.keys():
            yield f"{key} in another order"
    elif {n: _weight(old[n]) for n in old} != {n: _weight(new[n]) for n in new}:
        words = Notation([])
        yield f"{key} {words.words(key, one)} → {words.words(key, two)}"
    for name in (name for name in new if name in old):
        title = key if FORMS[key] == "choice" else name
        yield from _options_changed(title, old[name].options, new[name].options)


def _numbered(named: Iterable[Choice | Term]) -> dict[str, Choice | Term]:
    found: dict[str, Choice | Term] = {}
    for entry in named:
        count = sum(other.name == entry.name for other in found.values())
        found[f"{entry.name} {count + 1}" if count else entry.name] = entry
    return found


def _options_changed(title: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    for name in {**two, **one}:
        if one.get(name) != two.get(name):
            yield f"{title}.{name} {scalar(one.get(name))} → {scalar(two.get(name))}"


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None

"""Recipes in the notation of the students' tables: "0.75 focal + 0.25 dice", "adamax(0.0005)".

A recipe here is what `loading.read_back` returns: values by key, with typed choices and terms. What
did not fit its form is shown as plain text.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from . import grammar
from .fields import REGISTRY_FIELDS, UNESSENTIAL, Recipe
from .grammar import Choice, Term

FORMS = {key: mark.form for key, mark in REGISTRY_FIELDS.items()}


def entries(value: Any) -> tuple[Choice | Term, ...]:
    """The entries that a key's value names; () if it names none."""
    named = value if isinstance(value, tuple) else (value,)
    return named if all(isinstance(entry, Choice | Term) for entry in named) else ()


def scalar(value: Any) -> str:
    """One value: 0.0005, 1e-9, yes, – for null."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return re.sub(r"e([+-])0+", r"e\1", f"{value:g}").replace("e+", "e")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{name}={scalar(item)}" for name, item in value.items())
    return str(value)


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):  # an integer too large for a float
        return float(value) if math.isfinite(value) else None


def duration(seconds: float) -> str:
    """As the students wrote it: 48s, 49m45s, 1h1m."""
    whole, minutes = round(seconds), round(seconds / 60)
    if whole >= 3600:
        return f"{minutes // 60}h{minutes % 60}m"
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe by key; `warmup.lr` for what stands within one."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        within = isinstance(value, dict) and key not in FORMS
        found |= {f"{key}.{name}": x for name, x in value.items()} if within else {key: value}
    return found


def find(recipe: dict[str, Any], key: str) -> Any:
    """What a dotted key holds: `epochs`, `warmup.lr`, or an entry's option, `optimizer.lr`."""
    first, _, option = key.partition(".")
    if first not in FORMS or not option:
        return flat(recipe).get(key)
    options = (entry.options for entry in entries(recipe.get(first)))
    return next((found[option] for found in options if option in found), None)


class Notation:
    """Cells for some recipes. Options, and entries of a list, are written where they differ."""

    def __init__(self, recipes: Sequence[dict[str, Any]], everything: bool = False) -> None:
        self.recipes, self.everything = recipes, everything
        self._values = defaultdict[tuple, set[str]](set)  # by key, entry, option
        self._shared: set[tuple[str, str]] = set()  # entries of a list that every recipe has
        for key, form in FORMS.items():
            named = [entries(recipe.get(key)) for recipe in recipes]
            for entry in (entry for some in named for entry in some):
                for option, value in entry.options.items():
                    self._values[key, entry.name, option].add(json.dumps(value))
            if form == "list" and len(recipes) > 1 and not everything:
                each = ({(key, _text(entry)) for entry in some} for some in named)
                self._shared |= set.intersection(*each)

    @cached_property
    def columns(self) -> list[str]:
        """The keys that differ, in the recipe's order: `loss`, `warmup.lr`, …; or all keys."""
        values: dict[str, list[str]] = {}
        recipes = [flat(recipe) for recipe in self.recipes]
        for key in dict.fromkeys(key for recipe in recipes for key in recipe):
            pair = ("loss", "aux_loss") if key == "loss" else (key,)
            values[key] = [_text(*map(recipe.get, pair)) for recipe in recipes]
        skipped = {"aux_loss"} | (
            set() if self.everything else UNESSENTIAL | {"seed", "data.memory"}
        )
        order = {key: n for n, key in enumerate(Recipe.model_fields)}
        return [
            key
            for key in sorted(values, key=lambda key: order.get(key.partition(".")[0], len(order)))
            if not {key, key.partition(".")[0]} & skipped
            and (self.everything or len(set(values[key])) > 1)
        ]

    def cell(self, recipe: dict[str, Any], key: str) -> Any:
        """The content of a cell under one of `columns`: a number, words, or None."""
        value = flat(recipe).get(key)
        if value in (None, (), [], {}):
            return None
        if key not in FORMS:
            return value if number(value) is not None else scalar(value)
        cell = self.words(key, value)
        if key == "loss" and recipe.get("aux_loss") is not None:
            return f"{cell} ‖ {self.words('aux_loss', recipe['aux_loss'])}"  # decoder, auxiliary
        return cell

    def words(self, key: str, value: Any) -> str:
        """A choice, weighted sum or list in words."""
        named = entries(value)
        if not named:
            return scalar(value)
        own = [entry for entry in named if (key, _text(entry)) not in self._shared]
        words = ["…"] if len(own) < len(named) else []
        for entry in own:
            weight = f"{scalar(entry.weight)} " if entry.weight != 1 else ""
            options = [scalar(entry.options["lr"])] if "lr" in entry.options else []
            for option, x in entry.options.items():
                differs = len(self._values[key, entry.name, option]) > 1
                if option != "lr" and (self.everything or differs):
                    options.append(f"{option}={scalar(x)}")
            name = "CE" if entry.name == "cross_entropy" else entry.name
            words.append(f"{weight}{name}" + (f"({', '.join(options)})" if options else ""))
        return (" + " if FORMS[key] == "weighted_sum" else ", ").join(words)


def _text(*values: Any) -> str:
    return json.dumps([grammar.plain(value) for value in values], sort_keys=True)


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
        if key in FORMS and (entries(one) or entries(two)):
            said += _entries_changed(key, one, two)
        elif isinstance(one, dict) and isinstance(two, dict):
            said += _options_changed(key, one, two)
        else:
            said.append(f"{key} {scalar(one)} → {scalar(two)}")
    return ", ".join(said)


def _entries_changed(key: str, one: Any, two: Any) -> Iterator[str]:
    old, new = _by_name(one), _by_name(two)
    if FORMS[key] == "list":
        yield from (f"− {name}" for name in old if name not in new)
        yield from (f"+ {name}" for name in new if name not in old)
        if list(old) != list(new) and old.keys() == new.keys():
            yield f"{key} in another order"
    elif {n: old[n].weight for n in old} != {n: new[n].weight for n in new}:
        words = Notation([]).words
        yield f"{key} {words(key, one)} → {words(key, two)}"
    for name in (name for name in new if name in old):
        title = key if FORMS[key] == "choice" else name
        yield from _options_changed(title, old[name].options, new[name].options)


def _by_name(value: Any) -> dict[str, Choice | Term]:
    """Entries by name; a second one of a name as `name 2`."""
    found: dict[str, Choice | Term] = {}
    for entry in entries(value):
        count = sum(other.name == entry.name for other in found.values())
        found[f"{entry.name} {count + 1}" if count else entry.name] = entry
    return found


def _options_changed(title: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    for name in {**two, **one}:
        if one.get(name) != two.get(name):
            yield f"{title}.{name} {scalar(one.get(name))} → {scalar(two.get(name))}"

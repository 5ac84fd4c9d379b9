"""Registries: a name in a recipe -> the function of that name.

An entry is one decorated function. It is named after the function, its keyword-only parameters are
the schema of its recipe key, and the first line of its docstring is its description.
`recipe/signatures.py` reads the same facts from the source text, without importing anything.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .errors import UserError, unknown


class Registry:
    """Functions by name: `losses.register` adds one, `losses.bind` returns it with options set."""

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Callable] = {}
        self.fallback: Callable | None = None
        self.prefixes: dict[str, Callable] = {}

    def register(self, function: Callable) -> Callable:
        """Put `function` on the registry under its own name; refuse a name that is taken."""
        name = function.__name__
        if name in self.entries:
            taken = self.entries[name].__module__
            raise UserError(f"{self.kind} '{name}' is registered twice: {taken} has it already.")
        self.entries[name] = function
        return function

    def open(self, function: Callable) -> Callable:
        """Let `function(name, …)` answer for every name that no entry has (timm's, say)."""
        assert self.fallback is None, f"the registry of {self.kind}s is open already"
        self.fallback = function
        return function

    def open_for(self, prefix: str) -> Callable[[Callable], Callable]:
        """Let the decorated `function(name, …)` answer for every name with this prefix."""

        def open_for_prefix(function: Callable) -> Callable:
            assert prefix not in self.prefixes, f"{prefix} is answered for already"
            self.prefixes[prefix] = function
            return function

        return open_for_prefix

    def bind(self, name: str, /, **options: Any) -> Callable:
        """The entry `name` with its options bound; what remains is the registry's own call."""
        if name in self.entries:
            return partial(self.entries[name], **options)
        for prefix, function in self.prefixes.items():
            if name.startswith(prefix):
                return partial(function, name, **options)
        if self.fallback is not None:
            return partial(self.fallback, name, **options)
        raise UserError(unknown(self.kind, name, self.entries))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries


losses = Registry("loss")
optimizers = Registry("optimizer")
schedules = Registry("schedule")
augments = Registry("augment")
mixers = Registry("mixer")
datasets = Registry("dataset")
models = Registry("model")
tasks = Registry("task")
refiners = Registry("refiner")

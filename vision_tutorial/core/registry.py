"""Registries: a name in a recipe -> the function of that name.

An entry is one decorated function. It is named after the function, its keyword-only parameters are
the schema of its recipe key, and the first line of its docstring is its description.
`recipe/signatures.py` reads the same from the source text, without importing anything.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .errors import UserError, check_range, unknown


class Registry:
    """Functions by name: `losses.register` adds one, `losses.build` returns it with options set."""

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Callable] = {}
        self.fallbacks: dict[str, Callable] = {}  # by the prefix of the names they answer for

    def register(self, function: Callable) -> Callable:
        """Add `function` under its own name; refuse a name that is taken."""
        name = function.__name__
        if name in self.entries:
            taken = self.entries[name].__module__
            raise UserError(f"{self.kind} '{name}' is registered twice: {taken} has it already.")
        self.entries[name] = function
        return function

    def register_fallback(self, prefix: str = "") -> Callable[[Callable], Callable]:
        """Let the decorated `function(name, …)` answer for names with this prefix.

        Without a prefix: for every name that nothing else answers for, such as timm's.
        """

        def add(function: Callable) -> Callable:
            assert prefix not in self.fallbacks, f"'{prefix}' has a fallback already"
            self.fallbacks[prefix] = function
            return function

        return add

    def build(self, name: str, /, **options: Any) -> Callable:
        """The entry `name` with its options set; what remains is the registry's own call."""
        if name in self.entries:
            return partial(self.entries[name], **options)
        for prefix in sorted(self.fallbacks, key=len, reverse=True):
            if name.startswith(prefix):
                # code that is not ours makes lists of so many, which nothing could interrupt
                counts = {k: v for k, v in options.items() if type(v) is int or _whole(v)}
                check_range(f"{self.kind} '{name}'", "[-1000000, 1000000]", **counts)
                return partial(self.fallbacks[prefix], name, **options)
        raise UserError(unknown(self.kind, name, self.entries))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries


def _whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(each) is int for each in value)


losses = Registry("loss")
optimizers = Registry("optimizer")
schedules = Registry("schedule")
augments = Registry("augment")
mixers = Registry("mixer")
datasets = Registry("dataset")
models = Registry("model")
tasks = Registry("task")
refiners = Registry("refiner")

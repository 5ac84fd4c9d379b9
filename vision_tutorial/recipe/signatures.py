"""The registries' entries, read from the source text: a typo is answered before torch loads.

Importing torch and timm takes seconds. An entry's name, options, defaults and first docstring line
are all in its text, so `ast` reads them in milliseconds. The files are listed here, not searched
for; a test holds these signatures equal to what the registry holds once everything is imported.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from ..core import registry
from ..core.errors import UserError

FILES = (
    "losses/pixel.py",
    "losses/region.py",
    "optim/optimizers.py",
    "optim/schedules.py",
    "core/arrays.py",
    "data/augmentation/geometry.py",
    "data/augmentation/colour.py",
    "data/augmentation/policies.py",
    "data/augmentation/erasing.py",
    "data/mix.py",
    "data/shapes.py",
    "classification/datasets.py",
    "classification/models.py",
    "classification/task.py",
    "segmentation/task.py",
    "segmentation/models/deconvnet.py",
    "segmentation/models/deeplab.py",
    "segmentation/models/deeplab_early.py",
    "segmentation/models/fcn.py",
    "segmentation/models/smp.py",
    "segmentation/models/unet.py",
    "segmentation/coco.py",
    "segmentation/datasets.py",
    "segmentation/refine/dense_crf.py",
)
REGISTRIES = [
    name for name, value in vars(registry).items() if isinstance(value, registry.Registry)
]
REQUIRED = inspect.Parameter.empty
ANNOTATIONS = {
    "__builtins__": {},
    **{kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)},
    "Literal": Literal,
    "None": NoneType,
}
PLAIN_NODES = (
    *(ast.Name, ast.Constant, ast.Subscript, ast.Tuple, ast.BinOp, ast.BitOr),
    *(ast.Load, ast.UnaryOp, ast.USub),
)
TIMM_NAMES = {
    "models": ("models/*.py", r"@register_model\s+def (\w+)\("),
    "optimizers": (
        "optim/_optim_factory.py",
        r"(?:\bname=|OptimInfo\(\s*|register_alias\()['\"](\w+)['\"]",
    ),
}


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of an entry: a key that a recipe may set."""

    name: str
    type: Any
    default: Any = REQUIRED


@dataclass(frozen=True)
class Entry:
    """One function of a registry. `forwards`: it takes any option.

    prefix: of a fallback, the names it answers for, such as `smp/`, or "" for all; else None.
    """

    registry: str
    name: str
    options: tuple[Option, ...]
    doc: str
    where: str
    forwards: bool = False
    prefix: str | None = None

    def signature(self) -> str:
        """The options as a student would write them."""
        words = [o.name if o.default is REQUIRED else f"{o.name}={o.default}" for o in self.options]
        return f"({', '.join(words + ['…'] * self.forwards)})"


@dataclass
class Signatures:
    """The entries of one registry by name, and its fallbacks by prefix.

    outside: the names that the fallback for "" answers for; None where they are not known.
    """

    kind: str
    entries: dict[str, Entry] = field(default_factory=dict)
    fallbacks: dict[str, Entry] = field(default_factory=dict)
    outside: frozenset[str] | None = frozenset()

    def find(self, name: str) -> Entry | None:
        """The entry that answers for `name`, or None where surely nobody does."""
        if name in self.entries:
            return self.entries[name]
        for prefix, entry in self.fallbacks.items():
            if prefix and name.startswith(prefix):
                return entry
        # timm's names may carry a tag (resnet50.a1_in1k) and a wrapper (lookahead_sgd)
        base = name.partition(".")[0].removeprefix("lookahead_")
        known = self.outside is None or base in self.outside
        return self.fallbacks.get("") if known else None

    def names(self) -> list[str]:
        """Every name known without importing anything."""
        prefixes = [f"{prefix}…" for prefix in self.fallbacks if prefix]
        return [*self.entries, *prefixes, *(self.outside or ())]


def static_signatures(extra: Iterable[Path] = ()) -> dict[str, Signatures]:
    """All registries: the package's entries and those in the files `extra` (a recipe's imports)."""
    found = {name: Signatures(getattr(registry, name).kind) for name in REGISTRIES}
    for entry in (*_packaged(), *(e for path in extra for e in read(path))):
        known = found[entry.registry]
        own = entry.prefix is None
        others, key = (known.entries, entry.name) if own else (known.fallbacks, entry.prefix)
        if key in others:
            raise UserError(
                f"{entry.where}: {known.kind} '{entry.name}' exists already "
                f"({others[key].where}); choose another name."
            )
        others[key] = entry
        if entry.prefix == "":
            known.outside = timm_names(entry.registry)
    return found


@cache
def _packaged() -> tuple[Entry, ...]:
    root = Path(__file__).parent.parent
    return tuple(entry for name in FILES for entry in read(root / name))


def read(path: Path) -> list[Entry]:
    """The entries that a file declares. UserError if it is not readable Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as Python ({error}). Correct it.") from error
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [entry for node in functions if (entry := _entry(node, path))]


def _entry(node: ast.FunctionDef, path: Path) -> Entry | None:
    where = f"{path}:{node.lineno}"
    for decorator in node.decorator_list:
        call = isinstance(decorator, ast.Call)
        name, _, method = ast.unparse(decorator.func if call else decorator).rpartition(".")
        if name not in REGISTRIES or method != ("register_fallback" if call else "register"):
            continue
        pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        return Entry(
            name,
            node.name,
            tuple(_option(argument, default, where) for argument, default in pairs),
            (ast.get_docstring(node) or "").partition("\n")[0],
            where,
            forwards=node.args.kwarg is not None,
            prefix=_prefix(decorator, where) if call else None,
        )
    return None


def _prefix(decorator: ast.Call, where: str) -> str:
    match decorator.args:
        case []:
            return ""
        case [ast.Constant(value=str(prefix))] if prefix:
            return prefix
    raise UserError(f"{where}: register_fallback takes one text, the prefix, such as 'smp/'.")


def _option(argument: ast.arg, default: ast.expr | None, where: str) -> Option:
    try:
        value = ast.literal_eval(default) if default else REQUIRED
        if value is not REQUIRED:
            json.dumps(value, allow_nan=False)  # a recipe could not hold anything else
        return Option(argument.arg, _type(argument.annotation), value)
    except Exception as error:
        raise UserError(
            f"{where}: option '{argument.arg}' needs a plain type (int, float, bool, str, None, "
            "Literal, list, tuple, dict, |) and a literal default."
        ) from error


def _type(annotation: ast.expr) -> Any:
    """The type that an annotation means. Checked before it is evaluated: reading runs no code."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    strange = [node for node in ast.walk(annotation) if not isinstance(node, PLAIN_NODES)]
    if strange:
        raise ValueError(f"{ast.unparse(strange[0])} is not part of a plain type")
    return eval(compile(ast.Expression(annotation), "annotation", "eval"), dict(ANNOTATIONS))


@cache
def timm_names(registry: str) -> frozenset[str] | None:
    """The models or optimizers of the installed timm, from its text; None where it has changed."""
    found = find_spec("timm")
    if not found or not found.origin or registry not in TIMM_NAMES:
        return None
    files, pattern = TIMM_NAMES[registry]
    texts = [file.read_text("utf-8") for file in Path(found.origin).parent.glob(files)]
    return frozenset(name for text in texts for name in re.findall(pattern, text)) or None

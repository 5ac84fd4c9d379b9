"""What stands on the registries, read from the source text: a typo is answered before torch loads.

Importing torch and timm takes seconds. An entry's name, options, defaults and first docstring line
are all in its text, so `ast` reads them in milliseconds. The files are listed here, not searched
for; a test holds this catalogue equal to what the registry holds once everything is imported.
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
    "data/arrays.py",
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
SHELVES = [name for name, value in vars(registry).items() if isinstance(value, registry.Registry)]
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
    """One function on a registry. `open` answers for outside names, `forwards` takes any option.

    prefix: the names that an open entry answers for, such as `smp/`; "" for those nobody has.
    """

    shelf: str
    name: str
    options: tuple[Option, ...]
    doc: str
    where: str
    open: bool = False
    forwards: bool = False
    prefix: str = ""

    def signature(self) -> str:
        """The options as a student would write them."""
        shown = [o.name if o.default is REQUIRED else f"{o.name}={o.default}" for o in self.options]
        return f"({', '.join(shown + ['…'] * self.forwards)})"


@dataclass
class Shelf:
    """The entries of one registry; `outside` are the names its open entry answers for, if known.

    prefixes: the open entries that answer for all names that begin so.
    """

    kind: str
    entries: dict[str, Entry] = field(default_factory=dict)
    fallback: Entry | None = None
    outside: frozenset[str] | None = frozenset()
    prefixes: dict[str, Entry] = field(default_factory=dict)

    def find(self, name: str) -> Entry | None:
        """The entry that answers for `name`, or None where surely nobody does."""
        if name in self.entries:
            return self.entries[name]
        for prefix, entry in self.prefixes.items():
            if name.startswith(prefix):
                return entry
        # timm's names may carry a tag (resnet50.a1_in1k) and a wrapper (lookahead_sgd)
        base = name.partition(".")[0].removeprefix("lookahead_")
        return self.fallback if self.outside is None or base in self.outside else None

    def names(self) -> list[str]:
        """Every name known without importing anything."""
        return [*self.entries, *(f"{prefix}…" for prefix in self.prefixes), *(self.outside or ())]


def catalogue(extra: Iterable[Path] = ()) -> dict[str, Shelf]:
    """All registries: the package's entries and those in the files `extra` (a recipe's imports)."""
    shelves = {name: Shelf(getattr(registry, name).kind) for name in SHELVES}
    for entry in (*_packaged(), *(e for path in extra for e in read(path))):
        shelf = shelves[entry.shelf]
        if entry.prefix:
            other = shelf.prefixes.get(entry.prefix)
        else:
            other = shelf.fallback if entry.open else shelf.entries.get(entry.name)
        if other:
            raise UserError(
                f"{entry.where}: {shelf.kind} '{entry.name}' exists already ({other.where}); "
                "choose another name."
            )
        if entry.prefix:
            shelf.prefixes[entry.prefix] = entry
        elif entry.open:
            shelf.fallback, shelf.outside = entry, timm_names(entry.shelf)
        else:
            shelf.entries[entry.name] = entry
    return shelves


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
    for decorator in node.decorator_list:
        call = isinstance(decorator, ast.Call)
        shelf, _, act = ast.unparse(decorator.func if call else decorator).rpartition(".")
        if shelf in SHELVES and act in (("open_for",) if call else ("register", "open")):
            where = f"{path}:{node.lineno}"
            prefix = _prefix(decorator, where) if call else ""
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            options = tuple(_option(argument, default, where) for argument, default in pairs)
            doc = (ast.get_docstring(node) or "").partition("\n")[0]
            forwards = node.args.kwarg is not None
            opens = act != "register"
            return Entry(shelf, node.name, options, doc, where, opens, forwards, prefix)
    return None


def _prefix(decorator: ast.Call, where: str) -> str:
    match decorator.args:
        case [ast.Constant(value=str(prefix))] if prefix:
            return prefix
    raise UserError(f"{where}: open_for needs the names' beginning as a text, such as 'smp/'.")


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
def timm_names(shelf: str) -> frozenset[str] | None:
    """The models or optimizers of the installed timm, from its text; None where it has changed."""
    found = find_spec("timm")
    if not found or not found.origin or shelf not in TIMM_NAMES:
        return None
    files, pattern = TIMM_NAMES[shelf]
    texts = [file.read_text("utf-8") for file in Path(found.origin).parent.glob(files)]
    return frozenset(name for text in texts for name in re.findall(pattern, text)) or None

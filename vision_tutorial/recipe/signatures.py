"""The registries' entries, read from the source text: a typo is answered before torch loads.

Importing torch and timm takes seconds. An entry's name, options, defaults and first docstring line
are all in its text, so `ast` reads them in milliseconds. A test holds these signatures equal to
what the registries hold once everything is imported.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from importlib.util import find_spec
from itertools import repeat
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from ..core import registry
from ..core.atomic import regular
from ..core.errors import UserError

PACKAGE = Path(__file__).parent.parent
FOLDERS = ("losses", "optim", "data", "classification", "segmentation")
HEAD = re.compile(r'(?ms)^@\w+\.register.*?""".*?"""')  # to the end of the docstring
REGISTRIES = [name for name, known in vars(registry).items() if type(known) is registry.Registry]
REQUIRED = ...
UNSET = object()  # where a recipe does not give it, it keeps the default of a library
ANNOTATIONS: dict[str, Any] = {
    "__builtins__": {},
    **{kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)},
    "Literal": Literal,
    "None": NoneType,
}
PLAIN = re.compile(r"[\w\s\[\],|'\"-]+")  # nothing that calls, or takes an attribute
TIMM_NAMES = {
    "models": ("models/*.py", r"@register_model\s+def (\w+)\("),
    "optimizers": (
        "optim/_optim_factory.py",
        r"(?:\bname=|OptimInfo\(\s*|register_alias\()['\"](\w+)['\"]",
    ),
}


@dataclass(frozen=True, eq=False)
class Entry:
    """One function of a registry. options: a recipe's keys, name -> (type, default); the default
    may be REQUIRED, or UNSET.

    forwards: it takes any option. prefix: of a fallback, the names it answers for, such as `smp/`,
    or "" for all; else None.
    """

    registry: str
    name: str
    options: Mapping[str, tuple[Any, Any]]
    doc: str = ""
    where: str = ""
    forwards: bool = False
    prefix: str | None = None

    def signature(self) -> str:
        """The options as a student would write them."""
        options = self.options.items()
        words = [name if value is REQUIRED else f"{name}={value}" for name, (_, value) in options]
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
        entry = self.fallbacks.get("") if known else None
        foreign = timm_options(base) if entry and entry.registry == "optimizers" else {}
        return _with(entry, tuple(foreign.items())) if foreign else entry

    def names(self) -> list[str]:
        """Every name known without importing anything."""
        prefixes = [f"{prefix}…" for prefix in self.fallbacks if prefix]
        return [*self.entries, *prefixes, *(self.outside or ())]


def static_signatures(extra: Iterable[Path] = ()) -> dict[str, Signatures]:
    """All registries: the package's entries and those in the files `extra` (a recipe's imports)."""
    found = {name: Signatures(getattr(registry, name).kind) for name in REGISTRIES}
    for entry in (*_packaged(), *(e for path in extra for e in read(path))):
        known, key = found[entry.registry], entry.name if entry.prefix is None else entry.prefix
        others = known.entries if entry.prefix is None else known.fallbacks
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
    found: list[Entry] = []
    for path in (p for folder in FOLDERS for p in sorted((PACKAGE / folder).rglob("*.py"))):
        text = path.read_text("utf-8")
        for head in HEAD.finditer(text):  # a tenth of the text, and of the time
            found += _entries(ast.parse("\n" * text.count("\n", 0, head.start()) + head[0]), path)
    return tuple(found)


def read(path: Path) -> list[Entry]:
    """The entries that a file declares. UserError if it is not readable Python."""
    try:
        tree = ast.parse(regular(path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as Python ({error}). Correct it.") from error
    return list(_entries(tree, path))


def _entries(tree: ast.Module, path: Path) -> Iterator[Entry]:
    for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        where = f"{path}:{node.lineno}"
        for name, prefix in (_registered(decorator, where) for decorator in node.decorator_list):
            if name in REGISTRIES:
                options = map(_option, node.args.kwonlyargs, node.args.kw_defaults, repeat(where))
                doc = (ast.get_docstring(node) or "").partition("\n")[0]
                forwards = node.args.kwarg is not None
                yield Entry(name, node.name, dict(options), doc, where, forwards, prefix)


def _registered(decorator: ast.expr, where: str) -> tuple[str, str | None]:
    """The registry that a decorator adds to, or "", and the prefix of a fallback."""
    match decorator:
        case ast.Attribute(ast.Name(name), "register"):
            return name, None
        case ast.Call(ast.Attribute(ast.Name(name), "register_fallback"), given):
            texts = [getattr(argument, "value", None) for argument in given] or [""]
            if len(texts) > 1 or not isinstance(texts[0], str):
                problem = "register_fallback takes one text, the prefix, such as 'smp/'"
                raise UserError(f"{where}: {problem}.")
            return name, texts[0]
    return "", None


def _option(argument: ast.arg, default: ast.expr | None, where: str) -> tuple[str, tuple]:
    """The option's name, its type and its default. Reading runs no code of the file's."""
    try:
        value, kind = REQUIRED, argument.annotation
        if default:
            value = ast.literal_eval(default)
            json.dumps(value, allow_nan=False)  # a recipe could not hold anything else
        text = ast.unparse(kind)
        if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
            text = kind.value
        if not PLAIN.fullmatch(text):
            raise ValueError(f"{text} is no plain type")
        return argument.arg, (eval(text, dict(ANNOTATIONS)), value)
    except Exception as error:
        raise UserError(
            f"{where}: option '{argument.arg}' needs a plain type (int, float, bool, str, None, "
            "Literal, list, tuple, dict, |) and a literal default."
        ) from error


@cache
def _with(entry: Entry, options: tuple[tuple[str, Any], ...]) -> Entry:
    """The entry with all that it forwards: options of these types, and no others."""
    more = {name: (kind, UNSET) for name, kind in options}
    return replace(entry, options=more | entry.options, forwards=False)


@cache
def timm_names(registry: str) -> frozenset[str] | None:
    """The models or optimizers of the installed timm, from its text; None where it has changed."""
    found = find_spec("timm")
    if not found or not found.origin or registry not in TIMM_NAMES:
        return None
    files, pattern = TIMM_NAMES[registry]
    texts = [file.read_text("utf-8") for file in Path(found.origin).parent.glob(files)]
    return frozenset(name for text in texts for name in re.findall(pattern, text)) or None


@cache
def timm_options(optimizer: str) -> dict[str, Any]:
    """The options of one of timm's optimizers with their types, from the text of its class in timm
    or torch; {} where that is not to be found. The default tells a type that is not written."""
    found = find_spec("timm")
    folder = Path(found.origin).parent if found and found.origin else Path()
    factory = folder / TIMM_NAMES["optimizers"][0]
    text = factory.read_text("utf-8") if factory.is_file() else ""
    kind = re.search(rf"\bname='{optimizer}',\s+opt_class=([\w.]+)\.?\b", text)
    if not kind:  # an alias, or a class of a package that may not be here
        alias = re.search(rf"register_alias\('{optimizer}', '(\w+)'\)", text)
        return timm_options(alias[1]) if alias else {}
    name = kind[1].rpartition(".")[2]
    files = folder.glob("optim/*.py")
    if kind[1].startswith("torch."):
        files = [Path(find_spec("torch").origin).parent / f"optim/{name.lower()}.py"]
    head = re.compile(rf"(?ms)^class {name}\b.*?^    def __init__(\(.*?\))(?: -> None)?:\n")
    heads = (head.search(file.read_text("utf-8")) for file in files if file.is_file())
    written = next((match[1] for match in heads if match), "()")
    given = ast.parse(f"def made{written}: ...").body[0].args
    defaults = dict(
        zip((a.arg for a in reversed(given.args)), reversed(given.defaults), strict=False)
    )
    defaults |= {a.arg: value for a, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    arguments = [*given.args[2:], *given.kwonlyargs]  # without self and the parameters
    return {a.arg: _foreign_type(a.annotation, defaults.get(a.arg)) for a in arguments}


def _foreign_type(annotation: ast.expr | None, default: ast.expr | None) -> Any:
    """float | None for `Optional[Union[float, Tensor]]`, list[float] for `Tuple[float, float]`."""
    value = getattr(default, "value", ...)
    if annotation:
        words = set(re.findall(r"\w+", ast.unparse(annotation).lower()))
    elif isinstance(default, ast.Tuple):
        words = {"tuple", "float"}
    else:  # 0 stands for 0.0
        words = {"float" if type(value) is int else type(value).__name__}
    kinds = [kind for kind in (bool, int, float, str) if kind.__name__ in words]
    if not kinds:
        return Any
    made = reduce(or_, kinds)
    if "tuple" in words:
        made = list[made] | made if "union" in words else list[made]
    return made | None if value is None or words & {"optional", "none"} else made

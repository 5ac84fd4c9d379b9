"""The rules of CONTRIBUTING.md: imports, sizes, names, registries, recipes."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vision_tutorial"
FILES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted(
    path for path in (PACKAGE.parent / "recipes").rglob("*.yaml") if path.parent.name != "sweeps"
)
PILLARS = {"losses", "optim", "data", "classification", "segmentation", "engine"}
# What each folder may import of ours, besides itself; `core` is the ground. A file that stands
# directly in the package may import what its line says.
ALLOWED = {
    "core": set(),
    "recipe": {"core"},
    "runs": {"core", "recipe"},
    **dict.fromkeys(PILLARS - {"engine"}, {"core", "recipe"}),
    "engine": {"core", "recipe", "runs"},  # it writes the run folder
    "tables": {"core", "recipe", "runs"},
    "report": {"core", "recipe", "runs", "tables"},
    "sweeps": {"core", "recipe", "runs", "tables"},
    "build": PILLARS | {"core", "recipe"},
    "checks": PILLARS | {"core", "recipe", "build"},
    "inference": PILLARS | {"core", "recipe", "runs", "build", "checks"},
    "train": {"core", "recipe", "runs", "engine", "build", "checks", "artifacts", "api"},
    "artifacts": PILLARS | {"core", "recipe", "runs", "build", "report"},
    "torchrun_nproc": set(),
    "__init__": {"train", "api"},  # when they are asked for
    "__main__": {"core", "recipe"},
}
ALLOWED["benchmarking"] = PILLARS | {"core", "recipe", "runs", "tables", "sweeps", "build"}
ALLOWED["commands"] = {name for name in ALLOWED if name not in ("train", "commands", "__main__")}
ALLOWED["api"] = {name for name in ALLOWED if name not in ("api", "__main__")}
WITHOUT_TORCH = ("runs", "tables", "report", "sweeps", "recipe")
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_FILES = 400, 60, 15


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def module_of(path: Path) -> str:
    """ "core.registry" for core/registry.py, "core" for core/__init__.py, "" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Our own modules that a file imports, anywhere in it."""
    here = relative(path).split("/")[:-1]
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("vision_tutorial")}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            if node.level == 0 and base[0] != "vision_tutorial":
                continue
            base = base if node.level else base[1:]
            for name in node.names:
                inner = ".".join([*base, name.name])
                found.add(inner if inner in MODULES else ".".join(base))
    return frozenset(name.removeprefix("vision_tutorial").removeprefix(".") for name in found)


def folder_of(path: Path) -> str:
    """The first folder of a file below the package; its own name directly in the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


# -- imports ---------------------------------------------------------------------------------------


def test_imports_run_downwards_only():
    for path in FILES:
        entered = {name.partition(".")[0] for name in imports(path)} - {"", folder_of(path)}
        wrong = entered - ALLOWED[folder_of(path)]
        assert not wrong, f"{relative(path)} imports {wrong}"


def test_commands_do_not_import_each_other():
    for path in (PACKAGE / "commands").glob("*.py"):
        assert not any(name.startswith("commands.") for name in imports(path)), path.name


def test_the_imports_are_seen():
    # the tests above would pass on nothing, were the reading of imports wrong
    assert {"core.errors", "recipe.loading", "build", "engine"} <= imports(PACKAGE / "train.py")
    entered = {name.partition(".")[0] for name in imports(PACKAGE / "build.py")}
    assert entered >= PILLARS, "build knows every pillar"


def test_no_circles():
    # the package itself imports what it is asked for, and nothing when it is imported
    graph = {name: imports(path) - {name, ""} for name, path in MODULES.items()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_what_only_reads_runs_imports_no_torch():
    modules = [name for name in MODULES if name.partition(".")[0] in WITHOUT_TORCH]
    code = "import sys, importlib\n"
    code += "".join(f"importlib.import_module('vision_tutorial.{name}')\n" for name in modules)
    code += "assert not {'torch', 'timm', 'wandb'} & set(sys.modules), 'imported'"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# -- sizes and style -------------------------------------------------------------------------------


def test_files_functions_and_folders_are_small():
    for path in FILES:
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, relative(path)
        for node in functions(tree_of(path)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{relative(path)}: {node.name}: {lines}"
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder.name


def test_no_two_classes_have_one_name():
    nodes = (node for path in FILES for node in ast.walk(tree_of(path)))
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert len(names) > 100
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_no_drawers_no_stars_and_test_files_with_names_of_their_own():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))
    for path in FILES:
        assert path.stem not in ("utils", "util", "helpers", "misc", "common")
        assert "import *" not in path.read_text("utf-8"), relative(path)


def test_text_is_utf_8_whatever_the_locale():
    for path in FILES:
        for node in (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call)):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            named = {key.arg: ast.unparse(key.value) for key in node.keywords}
            words = [word.value for word in node.args if isinstance(word, ast.Constant)]
            as_text = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
            as_text |= name == "open" and bool({*words} & set("rwax")) and None not in named
            as_text |= "text" in named and name in ("run", "Popen", "check_output")
            assert not as_text or "encoding" in named or "utf-8" in words, (path, node.lineno)


def test_public_things_have_docstrings_and_type_hints():
    for path in FILES:
        tree = tree_of(path)
        assert ast.get_docstring(tree), f"{relative(path)} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{relative(path)}: {node.name}: no docstring"
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for holder in (tree, *classes):
            for node in holder.body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    bare = [a.arg for a in arguments(node, holder is not tree) if not a.annotation]
                    assert not bare, f"{relative(path)}: {node.name}: no type for {bare}"
                    assert node.returns, f"{relative(path)}: {node.name}: no return type"


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def arguments(node: ast.FunctionDef, method: bool) -> list[ast.arg]:
    a = node.args
    static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
    own = [*a.posonlyargs, *a.args][1 if method and not static else 0 :]
    return [*own, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]


def test_the_list_of_files_in_contributing_is_complete():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    block = re.search(r"^```text\nvision_tutorial/\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.split(None, 1) for line in block[1].splitlines()]
    assert all(len(line) == 2 for line in lines), "a file without a sentence about it"
    assert sorted(name for name, _ in lines) == sorted(
        relative(path) for path in FILES if path.name != "__init__.py"
    )


# -- registries ------------------------------------------------------------------------------------


def test_the_static_signatures_equal_the_registries():
    import vision_tutorial.build  # noqa: F401  (fills them)
    from vision_tutorial.core import registry
    from vision_tutorial.recipe import signatures

    for name, known in signatures.static_signatures().items():
        filled = getattr(registry, name)
        assert set(known.entries) == set(filled.entries), name
        assert set(known.fallbacks) == set(filled.fallbacks), name
        pairs = [(entry, filled.entries[entry.name]) for entry in known.entries.values()]
        pairs += [(entry, filled.fallbacks[prefix]) for prefix, entry in known.fallbacks.items()]
        for entry, function in pairs:
            told = (entry.name, dict(entry.options), entry.doc, entry.forwards)
            assert facts(function) == told


def facts(function) -> tuple:
    """What the signatures say of an entry, from the function itself."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    options = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }
    doc = inspect.getdoc(function).partition("\n")[0]
    forwards = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return function.__name__, options, doc, forwards


def test_names_read_from_timms_text_are_timms_own():
    from timm import list_models
    from timm.optim import list_optimizers

    from vision_tutorial.recipe.signatures import timm_names

    assert timm_names("models") == set(list_models())
    assert timm_names("optimizers") == set(list_optimizers())
    assert timm_names("losses") is None


# -- commands and recipes --------------------------------------------------------------------------


def test_every_verb_is_a_file_with_a_main():
    from vision_tutorial.__main__ import COMMANDS, MODULES, overview

    for command in COMMANDS:
        file = MODULES.get(command, f".commands.{command}")
        module = importlib.import_module(file, "vision_tutorial")
        assert callable(module.main) and command in overview()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_dry_builds(path):
    from vision_tutorial import build, checks
    from vision_tutorial.recipe.loading import load

    recipe = load(path).recipe
    network = checks.check(recipe)
    assert all(parameter.is_meta for parameter in network.parameters())
    for world in (1, 2, 4):
        assert build.batch_parts(recipe, world, on_gpu=True) >= 1

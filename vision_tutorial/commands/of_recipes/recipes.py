"""The recipes of the package, a line each. `recipes copy NAME [DIR]` begins one of your own."""

import argparse
import re
from pathlib import Path

from ...core.atomic import make_folder, write_text
from ...core.errors import UserError
from ...recipe.command_line import Parser
from ...recipe.loading import RECIPES, package_recipes, recipe_path
from .. import entry_point


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial recipes", description=__doc__)
    add = made.add_argument
    add("what", nargs="?", choices=("list", "copy"), help="copy: begin your own")
    add("name", nargs="?", help="of the recipe, such as r4 or segmentation/camvid")
    add("folder", nargs="?", default=".", metavar="DIR", help="default: here")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """List the recipes, or copy one."""
    if args.what == "copy":
        if args.name is None:
            raise UserError("recipes copy NAME [DIR]: the name is missing.")
        print(f"{_copy(args.name, Path(args.folder))}: train it with `vision-tutorial train`")
        return 0
    found = {name: described(RECIPES / f"{name}.yaml") for name in package_recipes()}
    width = max(map(len, found))
    for name, text in found.items():
        print(f"{name:<{width}}  {text}")
    return 0


def described(path: Path) -> str:
    """The first comment of a recipe, its first sentence."""
    first = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    return re.split(r"(?<=[a-z)%.])[.;] ", first.removeprefix(f"{path.stem}: "))[0].rstrip(".")


def _copy(name: str, folder: Path) -> Path:
    """The recipe in `folder`; what it extends stays the package's."""
    source = recipe_path(name)
    if not source.is_file() or not source.resolve().is_relative_to(RECIPES.resolve()):
        raise UserError(
            f"no recipe of the package is called '{name}'; `vision-tutorial recipes` lists them."
        )
    target = folder / source.name
    if target.exists():
        raise UserError(f"{target} exists; name another folder, or remove it first.")
    inside = source.resolve().relative_to(RECIPES.resolve()).parent

    def named(found: re.Match[str]) -> str:
        return f"extends: {(inside / found[1]).as_posix()}"

    make_folder(folder)
    write_text(target, re.sub(r"(?m)^extends: (\S+)", named, source.read_text("utf-8")))
    return target

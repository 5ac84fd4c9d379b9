"""A data set as an arrays folder: mapped into memory, so it may be larger. Train on it with
dataset={arrays: {root: FOLDER}}.
"""

import argparse
import os
from pathlib import Path

from ..core import arrays, registry
from ..core.atomic import check_folder
from ..core.cli_types import loading
from ..core.errors import UserError, counted
from ..core.folders import typed_path
from ..recipe.command_line import Parser, add_overrides
from ..recipe.loading import load
from . import entry_point


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial pack", description=__doc__)
    add = made.add_argument
    add("form", choices=["arrays"], help="what to make of it")
    add("recipe", help="a recipe (file or name); its `dataset` is packed")
    add("folder", help="the folder to make")
    add_overrides(made, "change the recipe")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Write the folder, and say how to use it."""
    loaded = load(args.recipe, args.overrides)
    folder = Path(os.path.abspath(check_folder(typed_path(args.folder))))
    if not folder.name:
        raise UserError(f"{folder} cannot be made; name a folder in it.")
    with loading():  # after the recipe is known to be good
        from .. import build

    build.import_files(loaded.imports, args.trust_imports)
    choice = loaded.recipe.dataset
    make = registry.datasets.build(choice.name, **choice.options)
    splits = {split: make(split) for split in ("train", "test")}
    manifest = arrays.write(folder, splits["train"].name, splits)
    counts = ""
    for name, facts in manifest.splits.items():
        n, height, width, _ = facts.images.shape
        counts += f"{name} {counted(n, 'image')} of {width}x{height}, "
    print(f"{folder}: {manifest.name}, {counts}{counted(len(manifest.classes), 'class')}")
    print(f"use it with: 'dataset={{arrays: {{root: {folder}}}}}'")
    return 0

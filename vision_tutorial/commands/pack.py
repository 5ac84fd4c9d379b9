"""A data set as an arrays folder: mapped into memory, so it may be larger. Train on it with
dataset={arrays: {root: FOLDER}}.
"""

import argparse
import os
from pathlib import Path

from ..core import arrays, registry
from ..core.atomic import check_folder
from ..core.errors import UserError
from ..core.folders import typed_path
from ..recipe.loading import load
from . import entry_point


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="vision-tutorial pack", description=__doc__)
    add = made.add_argument
    add("form", choices=["arrays"], help="what to make of it")
    add("recipe", help="a recipe (file or name); its `dataset` is packed")
    add("folder", help="the folder to make")
    add("overrides", nargs="*", metavar="key.sub=value", help="change the recipe")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Write the folder, and say how to use it."""
    loaded = load(args.recipe, args.overrides)
    folder = Path(os.path.abspath(check_folder(typed_path(args.folder))))
    if not folder.name:
        raise UserError(f"{folder} cannot be made; name a folder in it.")
    from .. import build  # after the recipe is known to be good: this takes seconds

    build.import_files(loaded.imports, args.trust_imports)
    choice = loaded.recipe.dataset
    make = registry.datasets.build(choice.name, **choice.options)
    splits = {split: make(split) for split in ("train", "test")}
    manifest = arrays.write(folder, splits["train"].name, splits)
    counts = ""
    for name, facts in manifest.splits.items():
        n, height, width, _ = facts.images.shape
        counts += f"{name} {n:,} images of {width}x{height}, "
    print(f"{folder}: {manifest.name}, {counts}{len(manifest.classes)} classes")
    print(f"use it with: 'dataset={{arrays: {{root: {folder}}}}}'")
    return 0

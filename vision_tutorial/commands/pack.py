"""A data set as a folder of NumPy files that are mapped into memory."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..core import arrays, registry
from ..core.errors import UserError, run_main
from ..recipe.loading import load


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial pack",
        description="A data set as an arrays folder: mapped into memory, so it may be larger. "
        "Train on it with dataset={arrays: {root: FOLDER}}.",
    )
    actions = made.add_subparsers(dest="action", required=True, metavar="arrays")
    add = actions.add_parser("arrays", description="A recipe's data set as an arrays folder.")
    add.add_argument("recipe", help="a recipe (file or name); its `dataset` is packed")
    add.add_argument("folder", help="the folder to make")
    add.add_argument("overrides", nargs="*", metavar="key.sub=value", help="change the recipe")
    add.add_argument(
        "--trust-imports", action="store_true", help="run the files that the recipe imports"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial pack`."""
    args = parser().parse_args(argv)
    return run_main(lambda: _pack_arrays(args))


def _pack_arrays(args: argparse.Namespace) -> int:
    loaded = load(args.recipe, args.overrides)
    folder = Path(os.path.abspath(Path(args.folder).expanduser()))
    if not folder.name:
        raise UserError(f"{folder} cannot be made; name a folder in it.")
    from .. import build  # after the recipe is known to be good: this takes seconds

    build.import_files(loaded.imports, args.trust_imports)
    choice = loaded.recipe.dataset
    make = registry.datasets.build(choice.name, **choice.options)
    splits = {split: make(split) for split in ("train", "test")}
    manifest = arrays.write(folder, splits["train"].name, splits)
    counts = []
    for name, facts in manifest.splits.items():
        n, height, width, _ = facts.images.shape
        counts.append(f"{name} {n:,} images of {width}x{height}")
    print(f"{folder}: {manifest.name}, {', '.join(counts)}, {len(manifest.classes)} classes")
    print(f"use it with: 'dataset={{arrays: {{root: {folder}}}}}'")
    return 0

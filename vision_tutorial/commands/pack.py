"""A data set as files that are mapped into memory, or as sprites that can be carried in parts."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..benchmarking import sprites
from ..core import arrays, registry
from ..core.errors import UserError, run_main
from ..core.machine import usable_cores
from ..recipe.loading import load

EPILOG = """\
arrays   the data set of RECIPE -> FOLDER; train on it with dataset={arrays: {root: FOLDER}}
parts    FOLDER -> OUT/part-1-of-2 …: lossless WebP sprites, to be carried where sizes are limited
unpack   parts -> FOLDER again, bit for bit; in any order, in one call or several
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial pack",
        description="A data set as an arrays folder: mapped into memory, so it may be larger.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = made.add_subparsers(dest="action", required=True, metavar="arrays|parts|unpack")
    add = actions.add_parser("arrays", description="A recipe's data set as an arrays folder.")
    add.add_argument("recipe", help="a recipe (file or name); its `dataset` is packed")
    add.add_argument("folder", help="the folder to make")
    add.add_argument("overrides", nargs="*", metavar="key.sub=value", help="change the recipe")
    add.add_argument(
        "--trust-imports", action="store_true", help="run the files that the recipe imports"
    )
    add = actions.add_parser("parts", description="An arrays folder as parts to be carried.")
    add.add_argument("folder", help="an arrays folder")
    add.add_argument("out", help="the folder of parts to make")
    add.add_argument(
        "--mib", type=float, default=60.0, help="most of a part (default: %(default)s)"
    )
    add = actions.add_parser("unpack", description="Parts as an arrays folder.")
    add.add_argument("parts", nargs="+", metavar="PART", help="a part's folder")
    add.add_argument("--to", required=True, metavar="FOLDER", help="the arrays folder to make")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial pack`."""
    args = parser().parse_args(argv)
    work = {"arrays": pack_arrays, "parts": pack_parts, "unpack": unpack}[args.action]
    return run_main(lambda: work(args))


def pack_arrays(args: argparse.Namespace) -> int:
    """The recipe's data set, both splits, whole."""
    loaded = load(args.recipe, args.overrides)
    from .. import build  # after the recipe is known to be good: this takes seconds

    build.import_files(loaded.imports, args.trust_imports)
    choice = loaded.recipe.dataset
    make = registry.datasets.build(choice.name, **choice.options)
    splits = {split: make(split) for split in ("train", "test")}
    manifest = arrays.write(place(args.folder), splits["train"].name, splits)
    print(described(place(args.folder), manifest))
    return 0


def pack_parts(args: argparse.Namespace) -> int:
    """An arrays folder in parts."""
    if not 0 < args.mib < 1e6:
        raise UserError(f"--mib is {args.mib:g}; a size above 0 is expected.")
    for part, size in sprites.pack(
        place(args.folder), place(args.out), int(args.mib * 2**20), len(usable_cores())
    ):
        print(f"{part}: {size / 2**20:.1f} MiB")
    return 0


def unpack(args: argparse.Namespace) -> int:
    """Parts as an arrays folder; says which are missing."""
    target = place(args.to)
    manifest, missing = sprites.unpack(
        [Path(part) for part in args.parts], target, len(usable_cores())
    )
    if missing:
        print(f"{target}: still missing {', '.join(missing)}; unpack to the same folder.")
    else:
        print(described(target, manifest))
    return 0


def place(text: str) -> Path:
    """A folder by its whole path, which has a name even where `.` was given."""
    path = Path(os.path.abspath(Path(text).expanduser()))
    if not path.name:
        raise UserError(f"{path} cannot be made; name a folder in it.")
    return path


def described(folder: Path, manifest: arrays.Manifest) -> str:
    """What an arrays folder holds, and how to use it."""
    splits = ", ".join(
        f"{name} {n:,} images of {w}x{h}"
        for name, facts in manifest.splits.items()
        for n, h, w, _ in [facts.images.shape]
    )
    return (
        f"{folder}: {manifest.name}, {splits}, {len(manifest.classes)} classes\n"
        f"use it with: 'dataset={{arrays: {{root: {folder}}}}}'"
    )


if __name__ == "__main__":
    sys.exit(main())

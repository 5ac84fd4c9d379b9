"""An arrays folder as parts that are small enough to upload, and back. For `gpu.sh`.

    python benchmarks/pack_parts.py pack SET OUT [--mib 60]
    python benchmarks/pack_parts.py unpack PART ... --to SET

A part holds sheets of up to 1,000 images as lossless WebP (CIFAR-100: 96 MiB instead of 176).
Parts may come in any order, in one call or in several. At the end all digests are compared.
"""

import argparse
import hashlib
import io
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_tutorial.core import arrays
from vision_tutorial.core.atomic import read_json, write_bytes, write_json
from vision_tutorial.core.errors import UserError, run_main

IMAGES, COLUMNS = 1000, 25  # on one sheet
LONGEST = 16_383  # pixels of a side: the limit of WebP
WEBP = {"lossless": True, "exact": True, "quality": 75, "method": 6}
DTYPES = {"images": np.uint8, "masks": np.uint8, "targets": np.dtype("<i8")}


def pack(root: Path, out: Path, most: int) -> None:
    """Write the arrays folder `root` as parts of at most `most` bytes."""
    manifest = read_json(root / "arrays.json")
    sheets = []
    for split in manifest["splits"]:
        source = arrays.load(root, split, verify=True)
        height, width = source.images.shape[1:3]
        columns = min(COLUMNS, LONGEST // width)
        count = min(IMAGES, columns * (LONGEST // height))
        for array in ("images", "masks"):
            if getattr(source, array) is not None:
                starts = range(0, len(source), count)
                sheets += [(source, split, array, first, count, columns) for first in starts]
    with ThreadPoolExecutor() as pool:
        sprites = list(pool.map(lambda sheet: encode(*sheet), sheets))
    parts: list[list[tuple[dict[str, Any], bytes]]] = [[]]
    for sprite in sprites:
        if parts[-1] and sum(s[0]["bytes"] for s in (*parts[-1], sprite)) > most:
            parts.append([])
        parts[-1].append(sprite)
    for number, part in enumerate(parts, start=1):
        folder = out / f"part-{number}-of-{len(parts)}"
        folder.mkdir(parents=True)
        for facts, content in part:
            write_bytes(folder / file_of(facts), content)
        head = {"format": "vision_tutorial.sprites/1", "part": number, "of": len(parts)}
        write_json(
            folder / "part.json", {**head, "whole": manifest, "sprites": [f for f, _ in part]}
        )
        print(f"{folder}: {sum(f['bytes'] for f, _ in part) / 2**20:.1f} MiB")


def encode(
    source: Any, split: str, array: str, first: int, count: int, columns: int
) -> tuple[dict[str, Any], bytes]:
    """One sheet: its facts and its bytes. Empty places are black."""
    rows = getattr(source, array)[first : first + count]
    rows = np.repeat(rows[..., None], 3, axis=-1) if rows.ndim == 3 else rows
    n, height, width, _ = rows.shape
    lines = -(-n // columns)
    grid = np.zeros((lines * columns, height, width, 3), np.uint8)
    grid[:n] = rows
    grid = grid.reshape(lines, columns, height, width, 3).swapaxes(1, 2)
    buffer = io.BytesIO()
    Image.fromarray(grid.reshape(lines * height, columns * width, 3)).save(buffer, "WEBP", **WEBP)
    content = buffer.getvalue()
    facts = {"split": split, "array": array, "first": first, "count": n, "columns": columns}
    facts |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    targets = source.targets[first : first + n].tolist() if array == "images" else []
    return {**facts, "targets": targets}, content


def unpack(folders: list[Path], target: Path) -> None:
    """Put parts into the arrays folder `target`; say which parts are still missing."""
    parts = [read_json(folder / "part.json") for folder in folders]
    whole, of = parts[0]["whole"], parts[0]["of"]
    if any((part["whole"], part["of"]) != (whole, of) for part in parts):
        raise UserError("these are not parts of one data set.")
    work = target.with_name(f".{target.name}.unpacking")
    known = {"whole": whole, "of": of}
    if not (work / "whole.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        for path, name, shape in stored(whole, work):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(path, "w+", DTYPES[name], shape)
        write_json(work / "whole.json", known)
    elif read_json(work / "whole.json") != known:
        raise UserError(f"{work} holds parts of another data set; remove it.")
    for folder, part in zip(folders, parts, strict=True):
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(
                    lambda facts, at=folder: decode(at, facts, work / "arrays"), part["sprites"]
                )
            )
        (work / f"part-{part['part']}").touch()
    there = {path.name for path in work.glob("part-*")}
    missing = [f"part-{n}-of-{of}" for n in range(1, of + 1) if f"part-{n}" not in there]
    if missing:
        print(f"{target}: still missing {', '.join(missing)}; unpack to the same folder.")
        return
    write_json(work / "arrays" / "arrays.json", whole)
    for split in whole["splits"]:
        arrays.load(work / "arrays", split, verify=True)
    os.replace(work / "arrays", target)
    shutil.rmtree(work)
    print(f"{target}: complete")


def stored(whole: dict[str, Any], work: Path) -> list[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of each array of a data set."""
    return [
        (work / "arrays" / split / f"{name}.npy", name, tuple(facts[name]["shape"]))
        for split, facts in whole["splits"].items()
        for name in DTYPES
        if facts.get(name)
    ]


def decode(folder: Path, facts: dict[str, Any], root: Path) -> None:
    """Put the images of one sheet into their place."""
    path = folder / file_of(facts)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise UserError(f"{path}: its digest differs; copy it again.")
    array = np.lib.format.open_memmap(root / facts["split"] / f"{facts['array']}.npy", "r+")
    height, width = array.shape[1:3]
    grid = np.asarray(Image.open(io.BytesIO(content), formats=["WEBP"]))
    cells = grid.reshape(-1, height, facts["columns"], width, 3).swapaxes(1, 2)
    rows = slice(facts["first"], facts["first"] + facts["count"])
    images = cells.reshape(-1, height, width, 3)[: facts["count"]]
    array[rows] = images if facts["array"] == "images" else images[..., 0]
    array.flush()
    if facts["array"] == "images":
        targets = np.lib.format.open_memmap(root / facts["split"] / "targets.npy", "r+")
        targets[rows] = facts["targets"]
        targets.flush()


def file_of(facts: dict[str, Any]) -> str:
    """The name of a sheet in the folder of its part."""
    return f"{facts['split']}-{facts['array']}-{facts['first']:09d}.webp"


def main(argv: list[str]) -> int:
    """Parse and call."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    actions = made.add_subparsers(dest="action", required=True)
    add = actions.add_parser("pack").add_argument
    add("folder", type=Path)
    add("out", type=Path)
    add("--mib", type=float, default=60.0)
    add = actions.add_parser("unpack").add_argument
    add("parts", nargs="+", type=Path)
    add("--to", required=True, type=Path)
    args = made.parse_args(argv)
    if args.action == "pack":
        pack(args.folder, args.out, int(args.mib * 2**20))
    else:
        unpack(args.parts, args.to)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))

"""An arrays folder as lossless WebP sprites, in parts small enough to be carried, and back.

CIFAR-100 is 176 MiB as arrays and 96 MiB as sprites of 1,000 images: on one sheet they share what
a file of its own would have to say again. The way there and back is bit for bit, by digests.

    out/part-1-of-2/    part.json    train-images-0000000.webp …
"""

import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, features
from pydantic import Field, model_validator

from ..core.arrays import (
    AGAIN,
    MANIFEST,
    Digest,
    Facts,
    Manifest,
    load,
    mapped_array,
    new_array,
    new_folder,
    read_facts,
    verified,
)
from ..core.atomic import sync_folder, write_bytes, write_json, write_text
from ..core.errors import StorageError, UserError, short

PART = "part.json"
PICTURES, COLUMNS = 1000, 25  # on one sheet
LONGEST = 16_383  # pixels, of a side: WebP's own limit
MOST_PIXELS = 16_000_000  # on one sheet
MOST_BYTES = 64 << 20  # of one sheet
EFFORT = {"lossless": True, "exact": True, "quality": 75, "method": 6}  # 100 gains 0.5 % in 8 times

Count = Annotated[int, Field(ge=1, le=PICTURES)]
ClassId = Annotated[int, Field(ge=0, lt=1_000_000)]


class Sprite(Facts):
    """One sheet of images (or masks), row by row, and the class ids of its images."""

    split: Literal["train", "test"]
    array: Literal["images", "masks"]
    first: Annotated[int, Field(ge=0)]
    count: Count
    columns: Annotated[int, Field(ge=1, le=COLUMNS)]
    bytes: Annotated[int, Field(ge=1, le=MOST_BYTES)]
    sha256: Digest
    targets: Annotated[tuple[ClassId, ...], Field(max_length=PICTURES)]

    @property
    def file(self) -> str:
        """Its name in the part's folder."""
        return f"{self.split}-{self.array}-{self.first:09d}.webp"


class Part(Facts):
    """What part.json says: which part of what, and its sheets."""

    format: Literal["vision_tutorial.sprites/1"] = "vision_tutorial.sprites/1"
    part: Annotated[int, Field(ge=1, le=999)]
    of: Annotated[int, Field(ge=1, le=999)]
    whole: Manifest
    sprites: Annotated[tuple[Sprite, ...], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="after")
    def _fit(self) -> "Part":
        if self.part > self.of:
            raise ValueError(f"part {self.part} of {self.of}")
        for sprite in self.sprites:
            stored = self.whole.splits.get(sprite.split)
            stored = stored and stored.arrays().get(sprite.array)
            if stored is None or sprite.first + sprite.count > stored.shape[0]:
                raise ValueError(f"{sprite.file} has no place in the data set")
            width, height = sheet_size(sprite.count, sprite.columns, *stored.shape[1:3])
            if max(width, height) > LONGEST or width * height > MOST_PIXELS:
                raise ValueError(f"{sprite.file} would have {width}x{height} pixels")
            if len(sprite.targets) != (sprite.count if sprite.array == "images" else 0):
                raise ValueError(f"{sprite.file} has {len(sprite.targets)} class ids")
        return self


def sheet_size(count: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """(width, height) in pixels of a sheet of `count` images."""
    return columns * width, -(-count // columns) * height


def _check_webp() -> None:
    if not features.check("webp"):
        raise UserError("this Pillow has no WebP; install the wheel from PyPI: pip install pillow.")


# -- packing ---------------------------------------------------------------------------------------


def pack(root: Path, out: Path, most: int, threads: int) -> list[tuple[Path, int]]:
    """Write the arrays folder `root` as parts of at most `most` bytes; each part and its bytes."""
    _check_webp()
    whole = read_facts(root / MANIFEST, Manifest)
    with new_folder(out) as work:
        with ThreadPoolExecutor(threads) as pool:  # Pillow lets go of the lock while it encodes
            sprites = [
                sprite
                for split in whole.splits
                for sprite in _sheets(root, split, work, lambda f, xs: list(pool.map(f, xs)))
            ]
        costs = [sprite.bytes + len(sprite.model_dump_json()) + 1 for sprite in sprites]
        head = len(whole.model_dump_json()) + 1000
        groups = shared_out(costs, most - head)
        made = []
        for number, group in enumerate(groups, start=1):
            folder = work / f"part-{number}-of-{len(groups)}"
            folder.mkdir()
            mine = tuple(sprites[index] for index in group)
            for sprite in mine:
                os.replace(work / sprite.file, folder / sprite.file)
            part = Part(part=number, of=len(groups), whole=whole, sprites=mine)
            write_text(folder / PART, part.model_dump_json(exclude_none=True) + "\n")
            made.append((out / folder.name, sum(f.stat().st_size for f in folder.iterdir())))
    return made


def _sheets(root: Path, split: str, folder: Path, map_all: Callable) -> list[Sprite]:
    """Every sheet of one split, written into `folder`."""
    source = load(root, split, verify=True)
    height, width = source.images.shape[1:3]
    if max(height, width) > LONGEST or height * width > MOST_PIXELS:
        raise UserError(f"{root}: images of {width}x{height} are too large for sprites.")
    columns = min(COLUMNS, LONGEST // width)
    count = min(PICTURES, columns * (LONGEST // height), MOST_PIXELS // (height * width))
    columns = min(columns, count)
    arrays = {"images": source.images} | ({} if source.masks is None else {"masks": source.masks})

    def encode(place: tuple[str, int]) -> Sprite:
        name, first = place
        rows = arrays[name][first : first + count]
        buffer = io.BytesIO()
        Image.fromarray(sheet(rows, columns)).save(buffer, "WEBP", **EFFORT)
        content = buffer.getvalue()
        ids = source.targets[first : first + count].tolist() if name == "images" else []
        made = Sprite(
            split=split,
            array=name,
            first=first,
            count=len(rows),
            columns=columns,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            targets=tuple(ids),
        )
        write_bytes(folder / made.file, content)
        return made

    return map_all(encode, [(a, i) for a in arrays for i in range(0, len(source), count)])


def sheet(rows: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, H, W, 3), or masks (n, H, W), side by side: RGB, empty places black."""
    if rows.ndim == 3:
        rows = np.repeat(rows[..., None], 3, axis=-1)
    n, height, width, _ = rows.shape
    lines = -(-n // columns)
    grid = np.zeros((lines * columns, height, width, 3), np.uint8)
    grid[:n] = rows
    grid = grid.reshape(lines, columns, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(lines * height, columns * width, 3))


def images(grid: np.ndarray, count: int, columns: int, height: int, width: int) -> np.ndarray:
    """What `sheet` was made of, as (count, H, W, 3)."""
    lines = -(-count // columns)
    cells = grid.reshape(lines, height, columns, width, 3).swapaxes(1, 2)
    return cells.reshape(-1, height, width, 3)[:count]


def shared_out(costs: Sequence[int], most: int) -> list[list[int]]:
    """Indices in order, in as few groups of about equal cost as `most` allows each."""
    if max(costs) > most:
        raise UserError(
            f"one sprite has {max(costs) / 2**20:.1f} MiB, more than a part may have; allow more."
        )
    number = math.ceil(sum(costs) / most)
    while True:
        share, before = sum(costs) / number, 0.0
        groups: list[list[int]] = [[] for _ in range(number)]
        for index, cost in enumerate(costs):
            groups[int((before + cost / 2) / share)].append(index)
            before += cost
        if all(sum(costs[index] for index in group) <= most for group in groups):
            return [group for group in groups if group]
        number += 1


# -- unpacking -------------------------------------------------------------------------------------


def unpack(folders: Sequence[Path], target: Path, threads: int) -> tuple[Manifest, list[str]]:
    """Put parts into the arrays folder `target`; the names of the parts that are missing still.

    In any order, in one call or several: what has come is kept beside `target` until all is there.
    """
    _check_webp()
    parts = [(folder, read_facts(folder / PART, Part)) for folder in folders]
    whole, of = parts[0][1].whole, parts[0][1].of
    for folder, part in parts:
        if (part.whole, part.of) != (whole, of):
            raise UserError(f"{folder} and {folders[0]} are not parts of one packing.")
    work = target.with_name(f".{target.name}.unpacking")
    if (target / MANIFEST).exists():
        if read_facts(target / MANIFEST, Manifest) != whole:
            raise UserError(f"{target} holds another data set; name another folder, or remove it.")
        shutil.rmtree(work, ignore_errors=True)  # of a process that ended at its last line
        return whole, []
    try:
        _prepare(work, whole, of)
        for folder, part in parts:
            mark = work / _named(part.part, of)
            if not mark.exists():
                _place(folder, part, work / "arrays", threads)
                write_text(mark, "")
        missing = [_named(n, of) for n in range(1, of + 1) if not (work / _named(n, of)).exists()]
        if not missing:
            _finish(work, whole, target)
    except OSError as error:
        raise StorageError(
            f"cannot write {work} ({error.strerror or error}). Make room, or name another folder."
        ) from error
    return whole, missing


def _named(part: int, of: int) -> str:
    return f"part-{part}-of-{of}"


def _prepare(work: Path, whole: Manifest, of: int) -> None:
    """Empty arrays with their room reserved, unless they are there from an earlier call."""
    known = work / f"of-{of}.json"
    if known.exists():
        if read_facts(known, Manifest) == whole:
            return
    if work.exists():
        raise UserError(f"{work} holds parts of another packing; remove it.")
    with new_folder(work) as fresh:
        for split, facts in whole.splits.items():
            (fresh / "arrays" / split).mkdir(parents=True)
            for name, stored in facts.arrays().items():
                new_array(fresh / "arrays" / split / f"{name}.npy", name, stored.shape)
        write_json(fresh / known.name, whole.model_dump(exclude_none=True))


def _place(folder: Path, part: Part, root: Path, threads: int) -> None:
    """Decode every sheet of a part into its place, and bring it to the disk."""
    arrays = {
        (split, name): mapped_array(root / split / f"{name}.npy", name, stored.shape, "r+")
        for split, facts in part.whole.splits.items()
        for name, stored in facts.arrays().items()
    }

    def decode(sprite: Sprite) -> None:
        array = arrays[sprite.split, sprite.array]
        rows = slice(sprite.first, sprite.first + sprite.count)
        height, width = array.shape[1:3]
        size = sheet_size(sprite.count, sprite.columns, height, width)
        grid = read_sheet(folder / sprite.file, sprite, size)
        found = images(grid, sprite.count, sprite.columns, height, width)
        if sprite.array == "masks":
            array[rows] = found[..., 0]
        else:
            array[rows] = found
            arrays[sprite.split, "targets"][rows] = sprite.targets

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, part.sprites))
    for array in arrays.values():
        array.flush()


def read_sheet(path: Path, sprite: Sprite, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a sheet whose bytes and size are those of the manifest; (H, W, 3)."""
    try:
        with path.open("rb") as file:
            content = file.read(sprite.bytes + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); {AGAIN}.") from error
    if len(content) != sprite.bytes or hashlib.sha256(content).hexdigest() != sprite.sha256:
        raise UserError(f"{path}: not the file that was packed (its digest differs); {AGAIN}.")
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            if (image.size, image.mode) == (size, "RGB"):
                return np.asarray(image)
            found = f"{image.width}x{image.height} {image.mode}"
    except Exception as error:  # Pillow's decoders raise whatever they like
        raise UserError(f"{path}: not a readable sprite ({short(str(error), 120)}).") from error
    raise UserError(f"{path}: {found}, it should be {size[0]}x{size[1]} RGB; {AGAIN}.")


def _finish(work: Path, whole: Manifest, target: Path) -> None:
    """Compare every digest, then let the folder appear under its name."""
    for split, facts in whole.splits.items():
        for name, stored in facts.arrays().items():
            path = work / "arrays" / split / f"{name}.npy"
            try:
                verified(path, mapped_array(path, name, stored.shape), stored)
            except UserError:
                shutil.rmtree(work, ignore_errors=True)  # or the next call would find it again
                raise
    write_json(work / "arrays" / MANIFEST, whole.model_dump(exclude_none=True))
    with suppress(FileNotFoundError):
        target.rmdir()  # an empty one may stand there
    os.replace(work / "arrays", target)
    sync_folder(target.parent)
    shutil.rmtree(work, ignore_errors=True)

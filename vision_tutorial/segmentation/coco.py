"""Images with COCO annotations.

Every annotation is drawn when the data set is built, so that a bad one is met at once, and is kept
as run lengths: a few hundred bytes that travel cheaply to the loader's workers. Drawn by
pycocotools' rules to the pixel (the tests compare), not by the package itself: its C code brings
the process down on damaged text (2.0.11), and a data set is a stranger's.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from ..core.atomic import regular
from ..core.errors import UserError, short, shown
from ..core.images import MAX_PIXELS, VOID
from ..core.registry import datasets
from ..core.sources import Source, check_split, data_folder
from .mask_files import DenseFiles, check_files, decoded

BACKGROUND = "Background"  # what no annotation covers; class 0

Id = int | str
_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
_ORDERS = {  # what is drawn first; the last covers the others
    "max_label": lambda region: region.label,
    "area": lambda region: -region.area,
    "order": lambda region: 0,
}
_FINE = 5  # polygons are drawn on a grid this many times finer
_MOST_BITS = 35  # of one number in text


class _Image(BaseModel):
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: _Side
    height: _Side


class _Annotation(BaseModel):
    id: Id | None = None
    image_id: Id
    category_id: Id
    segmentation: Any  # polygons [[x, y, …], …], or run lengths {size, counts}


class _Category(BaseModel):
    id: Id
    name: Annotated[str, Field(min_length=1)]


class _Contents(BaseModel):
    """A COCO file; a test set may come without annotations, and then without categories."""

    images: Annotated[list[_Image], Field(min_length=1)]
    annotations: list[_Annotation] = []
    categories: list[_Category] = []

    @model_validator(mode="after")
    def _fits_together(self) -> "_Contents":
        keys = {"images": ("id", "file_name"), "categories": ("id", "name")}
        for kind, key in ((kind, key) for kind, both in keys.items() for key in both):
            counts = Counter(getattr(entry, key) for entry in getattr(self, kind))
            for value in (value for value, count in counts.items() if count > 1):
                raise UserError(f"two {kind} have the {key} {shown(value)}; correct one")
        for image in self.images:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.file_name} is over {MAX_PIXELS:,} pixels; shrink it")
        if BACKGROUND.casefold() in (category.name.casefold() for category in self.categories):
            raise UserError(f"a category is called '{BACKGROUND}', as what none covers; rename it")
        return self


@datasets.register
def coco(
    split: str,
    *,
    root: str,
    train: str = "train.json",
    test: str = "val.json",
    train_images: str = ".",
    test_images: str = ".",
    overlap: Literal["max_label", "area", "order"] = "max_label",
    skip_unreadable: bool = False,
    follow_links: bool = False,
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """Images with COCO annotations; what none covers is Background, class 0.

    root: a folder, or the name of one below VISION_TUTORIAL_DATA. train, test: annotation files.
    train_images, test_images: the folder below `root` that the files' `file_name`s start from.
    overlap: which annotation is on top, the one of the highest class, the smallest, or the last of
    the file. A test file without annotations gives masks of nothing but VOID: to predict, not to
    score. Crowd regions count as their class. skip_unreadable: leave damaged files out instead of
    stopping. follow_links: links may lead out of `root`.
    """
    check_split(split)
    base = data_folder(root, "coco")
    learned = _read(base / train)
    file = base / (train if split == "train" else test)
    contents = learned if split == "train" else _read(file)
    names, found = (
        {category.id: category.name for category in each.categories} for each in (learned, contents)
    )
    if not names:
        raise UserError(f"{base / train}: no categories, which say what there is to learn.")
    if split == "train" and not contents.annotations:
        raise UserError(f"{file}: no annotations to learn from. Name another file with `train`.")
    if found != names and (found or contents.annotations):
        odd = next(key for key in (*names, *found) if names.get(key) != found.get(key))
        raise UserError(
            f"{file}: category {shown(odd)} is {shown(found.get(odd))}, in {base / train} it "
            f"is {shown(names.get(odd))}. Both files need the same categories."
        )
    folder = base / (train_images if split == "train" else test_images)
    paths = tuple(folder / image.file_name for image in contents.images)
    hint = f"{file} names; `{split}_images` says where they are"
    check_files("coco", base, paths, hint, follow_links)
    regions = _regions(file, contents, list(names), overlap) if contents.annotations else None
    source = DenseFiles(
        "coco",
        paths,
        tuple(image.file_name for image in contents.images),
        (BACKGROUND, *names.values()),
        Drawn(tuple((image.height, image.width) for image in contents.images), regions),
    )
    return decoded(source.checked(file.name, {}, skip_unreadable), cache)


def _read(path: Path) -> _Contents:
    try:
        return _Contents.model_validate_json(regular(path).read_bytes())
    except OSError as error:
        raise UserError(
            f"coco: cannot read {path} ({error.strerror}); `root` names the folder (itself, or "
            "below VISION_TUTORIAL_DATA), `train` and `test` its annotation files."
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        words = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path}: {short(f'{where}: {words}' if where else words, 200)}. A COCO file has "
            "images {id, file_name, width, height}, annotations {image_id, category_id, "
            "segmentation} and categories {id, name}."
        ) from error


def _regions(
    file: Path, contents: _Contents, categories: list[Id], overlap: str
) -> tuple[tuple["Region", ...], ...]:
    """The regions of each image in the order in which they are drawn."""
    images = {image.id: (image, []) for image in contents.images}
    labels = {key: place for place, key in enumerate(categories, start=1)}
    for number, one in enumerate(contents.annotations):
        try:
            for kind, key, known in (
                ("image", one.image_id, images),
                ("category", one.category_id, labels),
            ):
                if key not in known:
                    raise UserError(f"no {kind} has the id {shown(key)}.")
            image, drawn = images[one.image_id]
            label = labels[one.category_id]
            drawn.append(region(label, one.segmentation, image.height, image.width))
        except UserError as error:
            name = shown(one.id if one.id is not None else number)
            raise UserError(f"{file}: annotation {name}: {error} Correct or remove it.") from error
    return tuple(tuple(sorted(drawn, key=_ORDERS[overlap])) for _, drawn in images.values())


# -- drawing ---------------------------------------------------------------------------------------


class Region(NamedTuple):
    """The pixels of one class: how many, and run lengths as `region` makes them, in bytes."""

    label: int
    area: int
    counts: bytes


@dataclass(frozen=True)
class Drawn:
    """Masks as regions in the order in which they are drawn; None where nothing is known."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) of each image
    regions: tuple[tuple[Region, ...], ...] | None
    paths: ClassVar[tuple[Path, ...]] = ()

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self.sizes[index]
        if self.regions is None:
            return np.full((height, width), VOID, np.uint8)
        pixels = np.zeros(height * width, np.uint8)  # down the columns, as run lengths go
        for region in self.regions[index]:
            np.copyto(pixels, region.label, where=_covered(np.frombuffer(region.counts, "<u4")))
        return np.ascontiguousarray(pixels.reshape(width, height).T)

    def some(self, rows: Sequence[int]) -> "Drawn":
        """Those of some images."""
        regions = None if self.regions is None else tuple(self.regions[row] for row in rows)
        return Drawn(tuple(self.sizes[row] for row in rows), regions)

    def digest(self) -> str:
        return hashlib.sha256(repr((self.sizes, self.regions)).encode()).hexdigest()


def region(label: int, segmentation: Any, height: int, width: int) -> Region:
    """An annotation drawn: runs down the columns, so many pixels outside, so many inside, …

    segmentation: polygons [[x, y, …], …] or run lengths {size, counts}. UserError: what is wrong.
    """
    if isinstance(segmentation, dict):
        counts = _run_lengths(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        counts, *more = [_polygon(polygon, height, width) for polygon in segmentation]
        if more:
            covered = np.logical_or.reduce([_covered(each) for each in (counts, *more)])
            changes = np.flatnonzero(np.diff(covered, prepend=False))
            counts = np.diff(changes, prepend=0, append=height * width)
    else:
        raise UserError(f"its segmentation is {shown(segmentation)}; give polygons or run lengths.")
    return Region(label, int(counts[1::2].sum()), counts.astype("<u4").tobytes())


def _covered(counts: np.ndarray) -> np.ndarray:
    """Run lengths -> which pixels are inside, bool (height * width,)."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def _polygon(polygon: Any, height: int, width: int) -> np.ndarray:
    """Run lengths int64 of a polygon [x, y, …], as pycocotools draws it.

    The outline is walked on the fine grid. Where it passes the middle of a column of pixels, what
    lies below changes sides.
    """
    numbers = isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise UserError(f"a polygon is {shown(polygon)}; 3 or more points [x, y, …] are expected.")
    low, high, most = min(polygon), max(polygon), max(height, width)
    if not (-most <= low and high <= 2 * most and math.isfinite(sum(polygon))):
        raise UserError(
            f"a polygon from {shown(low)} to {shown(high)} is far outside {width}x{height} pixels."
        )
    points = np.array(polygon, np.float64).reshape(-1, 2)
    x, y = _walk((_FINE * points + 0.5).astype(np.int64))
    column, off = np.divmod(np.minimum(x[1:], x[:-1]) - _FINE // 2, _FINE)
    row = np.clip(-((_FINE // 2 - np.minimum(y[1:], y[:-1])) // _FINE), 0, height)  # rounded up
    passed = (x[1:] != x[:-1]) & (off == 0) & (column >= 0) & (column < width)
    places, times = np.unique(column[passed] * height + row[passed], return_counts=True)
    changes = places[(times % 2 == 1) & (places < height * width)]
    return np.diff(changes, prepend=0, append=height * width)


def _walk(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every point on the closed outline of corners int64 (n, 2), edge after edge.

    An edge goes in steps of one along its longer axis, and is rounded as seen from its lower end.
    """
    start, end = corners.copy(), np.roll(corners, -1, axis=0)
    span = np.abs(end - start)
    tall, length = span[:, 1] > span[:, 0], span.max(1)
    for points in (start, end):
        points[tall] = points[tall, ::-1]  # the longer axis first
    back = (start[:, 0] > end[:, 0])[:, None]
    low, high = np.where(back, end, start), np.where(back, start, end)
    slope = (high - low)[:, 1] / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(back[edge, 0], length[edge] - step, step)
    along = low[edge, 0] + step
    side = (low[edge, 1] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(tall[edge], side, along), np.where(tall[edge], along, side)


def _run_lengths(coded: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The counts of {size, counts}, a list or COCO's text; they must cover the whole image."""
    size, given = coded.get("size"), coded.get("counts")
    counts = _text_counts(given) if isinstance(given, str) else given
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise UserError(
            f"its run lengths are {shown(given)}; numbers from 0 up, or COCO's text, are expected."
        )
    if size != [height, width] or sum(counts) != height * width:
        raise UserError(
            f"its run lengths are of {shown(size)}, {sum(counts)} pixels, not [{height}, {width}]."
        )
    return np.array(counts, np.int64)


def _text_counts(text: str) -> list[int] | None:
    """The numbers in COCO's text of run lengths; None where it is damaged.

    Letters hold five bits each, the lowest first, and whether the number goes on; from the fourth
    on, a number is what is to be added to the one two before it.
    """
    counts: list[int] = []
    number = bits = 0
    for letter in text.encode(errors="replace"):
        letter -= 48
        if not 0 <= letter < 64 or bits == _MOST_BITS:
            return None
        number |= (letter & 31) << bits
        bits += 5
        if not letter & 32:
            if letter & 16:  # below zero, in two's complement
                number -= 1 << bits
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = bits = 0
    return None if bits or not counts else counts

"""Images with COCO annotations.

Every annotation is drawn when the data set is built, so that a bad one is met at once.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from ..core.atomic import regular
from ..core.errors import UserError, all_at_once, short, shown, some
from ..core.folders import data_folder
from ..core.images import MAX_PIXELS, stored
from ..core.registry import datasets
from ..core.sources import Source, check_split
from .coco_regions import Drawn, Region, polygon_runs, region
from .mask_files import DenseFiles, check_files, decoded

BACKGROUND = "Background"  # what no annotation covers; class 0

Id = int | str
_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
_ORDERS = {  # what is drawn first; the last covers the others
    "max_label": lambda region: region.label,
    "area": lambda region: -region.area,
    "order": lambda region: 0,
}
_FORM = (
    "A COCO file has images {id, file_name, width, height}, annotations {image_id, category_id, "
    "segmentation} and categories {id, name}."
)


class _Image(BaseModel):
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: _Side
    height: _Side


class _Annotation(BaseModel):
    """What is wrong with one is found when it is drawn, so that all are."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    segmentation: Any = None  # polygons [[x, y, …], …], or run lengths {size, counts}


class _Category(BaseModel):
    id: Id
    name: Annotated[str, Field(min_length=1)]
    supercategory: Any = None


class _Contents(BaseModel):
    """A COCO file; a test set may come without annotations, and then without categories."""

    images: Annotated[list[_Image], Field(min_length=1)]
    annotations: list[_Annotation] = []
    categories: list[_Category] = []

    @model_validator(mode="after")
    def _fits_together(self) -> "_Contents":
        for kind, key in (("images", "id"), ("images", "file_name"), ("categories", "id")):
            _refuse_twins(kind, key, getattr(self, kind))
        for image in self.images:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.file_name} is over {MAX_PIXELS:,} pixels; shrink it")
        return self

    def used(self) -> set[Any]:
        """The ids of the categories that annotations have."""
        ids = (each.category_id for each in self.annotations)
        return {id for id in ids if isinstance(id, Hashable)}

    def names(self) -> tuple[dict[Id, str], list[str]]:
        """Categories by id; and those that are left out, since no annotation has them and they are
        the parent of others or a second one of their name (Roboflow's root), or Background."""
        kept, left_out, used = list(self.categories), [], self.used()
        for each in self.categories:
            others = [other for other in kept if other is not each]
            known = {x for other in others for x in (other.name, str(other.supercategory))}
            if each.id not in used and (each.name in known or _is_background(each.name)):
                kept, left_out = others, [*left_out, f"{each.name} ({each.id})"]
        _refuse_twins("categories", "name", kept)
        if any(_is_background(each.name) for each in kept):
            raise UserError(f"a category is called '{BACKGROUND}', as what none covers; rename it")
        return {each.id: each.name for each in kept}, left_out


def _is_background(name: str) -> bool:
    return name.casefold() == BACKGROUND.casefold()


def _refuse_twins(kind: str, key: str, entries: Sequence[BaseModel]) -> None:
    counts = Counter(getattr(entry, key) for entry in entries)
    for value in (value for value, count in counts.items() if count > 1):
        raise UserError(f"two {kind} have the {key} {shown(value)}; correct one")


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
    invalid: Literal["refuse", "skip"] = "refuse",
    skip_unreadable: bool = False,
    follow_links: bool = False,
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """Images with COCO annotations; what none covers is Background, class 0.

    root: a folder, or the name of one below VISION_TUTORIAL_DATA. train, test: annotation files.
    train_images, test_images: the folder below `root` that the files' `file_name`s start from.
    overlap: which annotation is on top, the one of the highest class, the smallest, or the last of
    the file. A test file without annotations gives masks of nothing but VOID: to predict, not to
    score. Crowd regions count as their class. invalid: whether annotations that cannot be drawn are
    refused, or left out. skip_unreadable: leave damaged files out instead of
    stopping. follow_links: links may lead out of `root`.
    """
    check_split(split)
    base = data_folder(root, "coco")
    learned = _read(base / train)
    file = base / (train if split == "train" else test)
    contents = learned if split == "train" else _read(file)
    names, notices = _names(base / train, learned, file, contents)
    if split == "train" and not contents.annotations:
        raise UserError(f"{file}: no annotations to learn from. Name another file with `train`.")
    folder = base / (train_images if split == "train" else test_images)
    paths = tuple(stored(folder, image.file_name) for image in contents.images)
    hint = f"{file} names; `{split}_images` says where they are"
    check_files("coco", base, paths, hint, follow_links)
    regions = None
    if contents.annotations:
        regions, odd = _regions(file, contents, list(names), overlap, invalid == "skip")
        notices += odd
    source = DenseFiles(
        "coco",
        paths,
        tuple(image.file_name for image in contents.images),
        (BACKGROUND, *names.values()),
        Drawn(tuple((image.height, image.width) for image in contents.images), regions),
    ).checked(file.name, {}, skip_unreadable)
    notices = [f"coco, {file.name}: {line}" for line in notices]
    return decoded(replace(source, notices=(*source.notices, *notices)), cache)


def _names(
    base: Path, learned: _Contents, file: Path, contents: _Contents
) -> tuple[dict[Id, str], list[str]]:
    """The classes of the training file `base` by category id, and what is odd in those of `file`.
    UserError if the two do not fit."""
    both: dict[Path, tuple[dict[Id, str], list[str]]] = {}
    for path, each in ((base, learned), (file, contents)):
        try:
            both[path] = each.names()
        except UserError as error:
            raise UserError(f"{path}: {error}. {_FORM}") from error
    (names, _), (found, left_out) = both[base], both[file]
    if not names:
        raise UserError(f"{base}: no categories, which say what there is to learn.")
    used, ids = contents.used(), {name.casefold(): id for id, name in names.items()}
    odd = []
    for id, name in found.items():
        if id in names and names[id] != name:
            text = f"category {shown(id)} is {shown(name)}, in {base} it is {shown(names[id])}"
            odd.append(text + " (another case)" * (names[id].casefold() == name.casefold()))
        elif id not in names and id in used:
            text = f"category {shown(id)}, {shown(name)}, is not in {base}"
            there = ids.get(name.casefold())
            odd.append(text if there is None else f"{text}, where {shown(there)} has that name")
    if contents.annotations and not found:
        odd = [f"no categories; those of {base} are expected"]
    if odd:
        problem = some(odd, apart="; ")
        raise UserError(f"{file}: {problem}. Both files need the same ids and names of classes.")
    text = "categories left out, which no annotation has and which repeat or hold others"
    return names, [f"{text}: {some(left_out)}"] if left_out else []


def _read(path: Path) -> _Contents:
    try:
        return _Contents.model_validate_json(regular(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8, as JSON is; save it with that encoding.") from error
    except OSError as error:
        raise UserError(
            f"coco: cannot read {path} ({error.strerror}); `root` names the folder (itself, or "
            "below VISION_TUTORIAL_DATA), `train` and `test` its annotation files."
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        words = first["msg"].removeprefix("Value error, ")
        problem = short(f"{where}: {words}" if where else words, 200)
        raise UserError(f"{path}: {problem}. {_FORM}") from error


def _regions(
    file: Path, contents: _Contents, categories: list[Id], overlap: str, skip: bool
) -> tuple[tuple[tuple[Region, ...], ...], list[str]]:
    """The regions of each image in the order in which they are drawn, and what is odd with them.
    UserError for annotations that cannot be drawn, unless they are to be left out."""
    images = {image.id: (image, []) for image in contents.images}
    labels = {key: place for place, key in enumerate(categories, start=1)}
    bad: list[tuple[str, str]] = []
    for number, one in enumerate(contents.annotations):
        name = shown(one.id if one.id is not None else number)
        try:
            for kind, key, known in (
                ("image", one.image_id, images),
                ("category", one.category_id, labels),
            ):
                if not isinstance(key, Hashable) or key not in known:
                    ids = f"there are {shown(next(iter(known)))}, …"
                    raise UserError(f"no {kind} has the id {shown(key)} ({ids}).")
            image, drawn = images[one.image_id]
            label = labels[one.category_id]
            parts = one.segmentation
            try:
                drawn.append(region(label, parts, image.height, image.width))
            except UserError:
                each = parts if isinstance(parts, list) else ()
                if good := [part for part in each if _good(part, image)]:  # the rest of it stays
                    drawn.append(region(label, good, image.height, image.width))
                raise
        except UserError as error:
            bad.append((name, f"{file}: annotation {name}: {error}"))
    if bad and not skip:
        todo = "Correct or remove it, or leave out all such: invalid: skip."
        raise all_at_once([f"{text} {todo}" for _, text in bad], "annotations")
    found = [each for _, drawn in images.values() for each in drawn]
    left_out = some([name for name, _ in bad])
    counts = {
        f"bad annotations are left out, or parts of them: {left_out}": len(bad),
        "annotations lie within 0 … 1, as in YOLO's files": _shares(file, contents, found),
        "annotations cover no pixel": sum(not each.area for each in found),
        "images have no annotation": sum(not drawn for _, drawn in images.values()),
    }
    lines = [f"{count:,} {what}" for what, count in counts.items() if count]
    return tuple(tuple(sorted(drawn, key=_ORDERS[overlap])) for _, drawn in images.values()), lines


def _good(polygon: Any, image: _Image) -> bool:
    with suppress(UserError):
        return bool(len(polygon_runs(polygon, image.height, image.width)))
    return False


def _shares(file: Path, contents: _Contents, found: Sequence[Region]) -> int:
    """How many annotations have shares of the sides, as YOLO has, in the place of pixels.
    UserError if all polygons do."""
    each = [one.segmentation for one in contents.annotations if isinstance(one.segmentation, list)]
    drawn = [parts for parts in each if parts and all(isinstance(part, list) for part in parts)]
    count = sum(
        all(isinstance(x, int | float) and 0 <= x <= 1 for part in parts for x in part)
        for parts in drawn
    )
    if count and count == len(drawn) and all(region.area <= 4 for region in found):
        raise UserError(
            f"{file}: all polygons lie within 0 … 1, as in YOLO's files, and fill no pixels. "
            "Multiply x by the image's width and y by its height."
        )
    return count

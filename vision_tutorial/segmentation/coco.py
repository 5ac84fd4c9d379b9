"""Images with COCO annotations.

Every annotation is drawn when the data set is built, so that a bad one is met at once, and is kept
as run lengths: a few hundred bytes that travel cheaply to the loader's workers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ..core.errors import UserError, short, shown
from ..core.images import MAX_PIXELS, stay_inside
from ..core.registry import datasets
from ..core.sources import Source, check_split, data_folder
from .coco_masks import Drawn, Region, region
from .decoding import decoded
from .mask_files import DenseFiles

BACKGROUND = "Background"  # what no annotation covers; class 0

Id = int | str
_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]


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


_ORDERS: dict[str, Callable[[Region], int]] = {  # what is drawn first; the last covers the others
    "max_label": lambda one: one.label,
    "area": lambda one: -one.area,
    "order": lambda one: 0,
}


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
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """Images with COCO annotations; what none covers is Background, class 0.

    root: a folder, or the name of one below VISION_TUTORIAL_DATA. train, test: annotation files.
    train_images, test_images: the folder below `root` that the files' `file_name`s start from.
    overlap: which annotation is on top, the one of the highest class, the smallest, or the last of
    the file. A test file without annotations gives masks of nothing but VOID: to predict, not to
    score. Crowd regions count as their class.
    """
    check_split(split)
    base = data_folder(root)
    file = base / train
    learned = _read(file)
    categories = {category.id: category.name for category in learned.categories}
    classes = _classes(file, learned.categories)
    contents = learned
    if split == "test":
        file = base / test
        contents = _read(file)
        if contents.categories or contents.annotations:
            _same(base / train, categories, file, contents.categories)
    elif not contents.annotations:
        raise UserError(f"{file}: no annotations to learn from. Name another file with `train`.")
    folder = base / (train_images if split == "train" else test_images)
    labels = {key: place for place, key in enumerate(categories, start=1)}
    images = _images(file, contents.images)
    regions = _regions(file, contents.annotations, images, labels, _ORDERS[overlap])
    source = DenseFiles(
        "coco",
        _paths(file, contents.images, folder, base, f"{split}_images"),
        tuple(image.file_name for image in contents.images),
        classes,
        Drawn(tuple((p.height, p.width) for p in contents.images), regions),
    )
    return decoded(source, cache)


def _read(path: Path) -> _Contents:
    try:
        return _Contents.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"coco: no {path}; `root` names the folder (itself, or below VISION_TUTORIAL_DATA), "
            "`train` and `test` its annotation files."
        ) from error
    except OSError as error:
        raise UserError(f"coco: cannot read {path} ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        words = short(f"{where}: {first['msg']}" if where else first["msg"], 200)
        raise UserError(
            f"{path}: {words}. A COCO file has images {{id, file_name, width, height}}, "
            "annotations {image_id, category_id, segmentation} and categories {id, name}."
        ) from error


def _classes(file: Path, categories: Sequence[_Category]) -> tuple[str, ...]:
    """Background, and the file's categories in its order."""
    if not categories:
        raise UserError(f"{file}: no categories, which say what there is to learn.")
    _check_unique(f"{file}: two categories", categories, "id", "name")
    names = [category.name for category in categories]
    taken = next((name for name in names if name.casefold() == BACKGROUND.casefold()), None)
    if taken:
        raise UserError(
            f"{file}: a category called '{taken}', which is the name of what no annotation covers. "
            "Rename it, or remove it and its annotations."
        )
    return (BACKGROUND, *names)


def _same(train: Path, known: dict[Id, str], test: Path, categories: Sequence[_Category]) -> None:
    """Refuse a test file whose categories are not those that were learned, whatever their order."""
    found = {category.id: category.name for category in categories}
    if found != known:
        odd = next(key for key in (*known, *found) if known.get(key) != found.get(key))
        raise UserError(
            f"{test}: category {shown(odd)} is {shown(found.get(odd))}, in {train} it is "
            f"{shown(known.get(odd))}. Both files need the same categories."
        )


def _images(file: Path, images: Sequence[_Image]) -> dict[Id, tuple[int, _Image]]:
    """Place and entry of each image by its id."""
    _check_unique(f"{file}: two images", images, "id", "file_name")
    large = next((p for p in images if p.width * p.height > MAX_PIXELS), None)
    if large:
        raise UserError(
            f"{file}: {large.file_name} has {large.width}x{large.height} pixels; at most "
            f"{MAX_PIXELS:,} are read. Make the image smaller."
        )
    return {image.id: (place, image) for place, image in enumerate(images)}


def _check_unique(what: str, entries: Sequence[BaseModel], *keys: str) -> None:
    for key in keys:
        counts = Counter(getattr(entry, key) for entry in entries)
        value, count = counts.most_common(1)[0]
        if count > 1:
            raise UserError(f"{what} of the {key} {shown(value)}. Correct or remove one.")


def _paths(
    file: Path, images: Sequence[_Image], folder: Path, base: Path, option: str
) -> tuple[Path, ...]:
    """Where the images are; all of them must be there, and below `base`."""
    paths = tuple(folder / image.file_name for image in images)
    for parent in {path.parent for path in paths}:
        stay_inside(parent, base, "coco")
    for path in paths:
        if path.is_symlink():
            stay_inside(path, base, "coco")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"coco: no image {missing[0]}, which {file} names ({len(missing):,} of "
            f"{len(paths):,} are missing); `{option}` is the folder that its file names start from."
        )
    return paths


def _regions(
    file: Path,
    annotations: Sequence[_Annotation],
    images: dict[Id, tuple[int, _Image]],
    labels: dict[Id, int],
    order: Callable[[Region], int],
) -> tuple[tuple[Region, ...], ...] | None:
    """The regions of each image in the order in which they are drawn; None without any at all."""
    if not annotations:
        return None
    found: list[list[Region]] = [[] for _ in images]
    for number, annotation in enumerate(annotations):
        name = shown(annotation.id if annotation.id is not None else number)
        where = f"{file}: annotation {name}"
        if annotation.image_id not in images:
            raise UserError(
                f"{where}: no image has the id {shown(annotation.image_id)}"
                f"{_other_kind(annotation.image_id, images)}. Correct its image_id or remove it."
            )
        if annotation.category_id not in labels:
            raise UserError(
                f"{where}: no category has the id {shown(annotation.category_id)}"
                f"{_other_kind(annotation.category_id, labels)}. Correct its category_id or "
                "remove it."
            )
        place, image = images[annotation.image_id]
        try:
            label, shape = labels[annotation.category_id], annotation.segmentation
            found[place].append(region(label, shape, image.height, image.width))
        except UserError as error:
            raise UserError(f"{where}: {error} Correct or remove it.") from error
    return tuple(tuple(sorted(regions, key=order)) for regions in found)


def _other_kind(key: Id, known: dict[Id, Any]) -> str:
    """A hint where the id is there as text and was asked for as a number, or the other way."""
    other = next((k for k in known if str(k) == str(key)), None)
    return f", but one has {shown(other)} (text is not a number)" if other is not None else ""

"""Images with COCO annotations.

Every annotation is drawn when the data set is built, so that a bad one is met at once, and is kept
as run lengths: a few hundred bytes that travel cheaply to the loader's workers.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from ..core.errors import UserError, short, shown
from ..core.images import MAX_PIXELS, stay_inside
from ..core.registry import datasets
from ..core.sources import Source, check_split, data_folder
from .coco_masks import Drawn, Region, counts_of
from .mask_files import DenseFiles, decoded

BACKGROUND = "Background"  # what no annotation covers; class 0

Id = int | str
_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
_ORDERS = {  # what is drawn first; the last covers the others
    "max_label": lambda region: region.label,
    "area": lambda region: -region.area,
    "order": lambda region: 0,
}


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
    def _entries_differ(self) -> "_Contents":
        for kind, keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
            for key in keys:
                counts = Counter(getattr(entry, key) for entry in getattr(self, kind))
                for value, count in counts.most_common(1):
                    if count > 1:
                        raise UserError(f"two {kind} have the {key} {shown(value)}; correct one")
        for image in self.images:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{image.file_name} has {image.width}x{image.height} pixels; at most "
                    f"{MAX_PIXELS:,} are read, so make the image smaller"
                )
        for category in self.categories:
            if category.name.casefold() == BACKGROUND.casefold():
                raise UserError(
                    f"a category is called '{category.name}', which is the name of what no "
                    "annotation covers; rename it, or remove it and its annotations"
                )
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
    contents = learned = _read(file)
    names = {category.id: category.name for category in learned.categories}
    if not names:
        raise UserError(f"{file}: no categories, which say what there is to learn.")
    if split == "test":
        file = base / test
        contents = _read(file)
        found = {category.id: category.name for category in contents.categories}
        if found != names and (found or contents.annotations):
            odd = next(key for key in (*names, *found) if names.get(key) != found.get(key))
            raise UserError(
                f"{file}: category {shown(odd)} is {shown(found.get(odd))}, in {base / train} it "
                f"is {shown(names.get(odd))}. Both files need the same categories."
            )
    elif not contents.annotations:
        raise UserError(f"{file}: no annotations to learn from. Name another file with `train`.")
    regions = _regions(file, contents, list(names), overlap) if contents.annotations else None
    folder = base / (train_images if split == "train" else test_images)
    paths = tuple(folder / image.file_name for image in contents.images)
    _check_paths(paths, base, f"{file} names; `{split}_images` says where they are")
    source = DenseFiles(
        "coco",
        paths,
        tuple(image.file_name for image in contents.images),
        (BACKGROUND, *names.values()),
        Drawn(tuple((image.height, image.width) for image in contents.images), regions),
    )
    return decoded(source, cache)


def _read(path: Path) -> _Contents:
    try:
        return _Contents.model_validate_json(path.read_bytes())
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


def _check_paths(paths: tuple[Path, ...], base: Path, hint: str) -> None:
    """All images must be there, and below `base`."""
    for path in {path.parent for path in paths} | {path for path in paths if path.is_symlink()}:
        stay_inside(path, base, "coco")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"coco: no image {missing[0]} ({len(missing):,} of {len(paths):,} are missing), which "
            f"{hint}."
        )


def _regions(
    file: Path, contents: _Contents, categories: list[Id], overlap: str
) -> tuple[tuple[Region, ...], ...]:
    """The regions of each image in the order in which they are drawn."""
    images = {image.id: place for place, image in enumerate(contents.images)}
    labels = {key: place for place, key in enumerate(categories, start=1)}
    found: list[list[Region]] = [[] for _ in images]
    for number, one in enumerate(contents.annotations):
        try:
            for kind, key, known in (
                ("image", one.image_id, images),
                ("category", one.category_id, labels),
            ):
                if key not in known:
                    raise UserError(f"no {kind} has the id {shown(key)}.")
            place = images[one.image_id]
            image = contents.images[place]
            counts = counts_of(one.segmentation, image.height, image.width)
        except UserError as error:
            name = shown(one.id if one.id is not None else number)
            raise UserError(f"{file}: annotation {name}: {error} Correct or remove it.") from error
        found[place].append(Region.of(labels[one.category_id], counts))
    return tuple(tuple(sorted(regions, key=_ORDERS[overlap])) for regions in found)

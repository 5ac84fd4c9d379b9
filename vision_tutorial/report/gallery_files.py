"""A run's gallery: what its network said of images, and what augmentation does to one.

`gallery.json` is written last and replaced as a whole, and images are named by their contents, so
nobody is shown half a gallery, or one image for another.
"""

import hashlib
import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ..core.atomic import make_folder, regular, replacing, write_bytes, write_text
from ..core.errors import UserError, short
from ..recipe.fields import Frozen

FOLDER, FILE = "gallery", "gallery.json"
_MOST_BYTES = 8 * 2**20  # of gallery.json
_MOST_IMAGE_BYTES = 2**20
MOST_CLASSES = 200  # of a confusion matrix
_LOSSLESS_SIDE = 96  # images up to this size are kept to the bit, as PNG
_KINDS = {".png": b"\x89PNG\r\n\x1a\n", ".webp": b"RIFF"}

_Text = Annotated[str, Field(max_length=300)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_Side = Annotated[int, Field(ge=1, le=8192)]
_Colour = Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]


class GalleryImage(Frozen):
    """A file in the gallery's folder, and its size in pixels."""

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{16}\.(png|webp)$")]
    width: _Side
    height: _Side


class GalleryAnswer(Frozen):
    """What a classifier said of an image: the classes it found likeliest, the first one first."""

    image: GalleryImage
    key: _Text  # what the data set calls the image
    truth: _Text
    said: Annotated[tuple[tuple[_Text, _Share], ...], Field(min_length=1, max_length=10)]
    grad_cam: GalleryImage | None = None  # where the image speaks for the class said first


class Mask(Frozen):
    """Image, truth and prediction of one image. iou: the mean over its classes, in per cent."""

    images: tuple[GalleryImage, GalleryImage, GalleryImage]
    key: _Text
    iou: float | None


class Tile(Frozen):
    """One image of the augmentation preview, and what was done to it."""

    image: GalleryImage
    label: _Text


class Group(Frozen):
    """Tiles that belong together: one entry of a chain, the operations of one policy."""

    title: _Text
    tiles: tuple[Tile, ...]


class Gallery(Frozen):
    """All that gallery.json says. confusion: counts, a row for each true class."""

    weights: _Text
    split: _Text
    images: _Count
    classes: tuple[_Text, ...]
    right: tuple[GalleryAnswer, ...] = ()
    wrong: tuple[GalleryAnswer, ...] = ()
    worst: tuple[Mask, ...] = ()
    masks: tuple[Mask, ...] = ()
    palette: tuple[tuple[_Text, _Colour], ...] = ()
    confusion: tuple[tuple[_Count, ...], ...] = ()
    microscope: tuple[Group, ...] = ()  # the augmentation preview, by its name in old files


def exists(run: Path) -> bool:
    """Whether a run has a gallery."""
    return (run / FOLDER / FILE).is_file()


def read(run: Path) -> Gallery:
    """A run's gallery. UserError, one line, if there is none or it is damaged."""
    path = run / FOLDER / FILE
    try:
        return Gallery.model_validate_json(_read(path, _MOST_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = short(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 200)
        raise _damaged(path, reason) from error


def image_bytes(run: Path, image: GalleryImage) -> bytes:
    """The file of an image. UserError unless it is the image that was kept, of a modest size."""
    path = run / FOLDER / image.name
    found = _read(path, _MOST_IMAGE_BYTES)
    if not found.startswith(_KINDS[path.suffix]) or _digest(found) != path.stem:
        raise _damaged(path, "it is not the image that was written")
    return found


def _read(path: Path, most: int) -> bytes:
    try:
        with regular(path).open("rb") as file:
            return file.read(most)  # what is larger is none of ours, and damaged without its end
    except OSError as error:
        raise _damaged(path, error.strerror) from error


def _damaged(path: Path, reason: str | None) -> UserError:
    return UserError(f"{path}: {reason}. Make it again: gallery {path.parent.parent}.")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


class Writer:
    """Keeps images for a run's gallery; `finish` makes the gallery be."""

    def __init__(self, run: Path):
        self.folder = make_folder(run / FOLDER)
        self.names: set[str] = set()

    def keep(self, pixels: Any, mask: bool = False) -> GalleryImage:
        """uint8 (H, W, 3), written as a file; made smaller where a side is longer than 256.

        mask: the colours are those of classes, and stay what they are.
        """
        from PIL import Image

        made = Image.fromarray(pixels)
        made.thumbnail((256, 256), Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)
        out = io.BytesIO()
        kind = "png" if mask or max(made.size) <= _LOSSLESS_SIDE else "webp"
        made.save(out, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
        name = f"{_digest(out.getvalue())}.{kind}"
        self.names.add(name)
        with replacing(self.folder / name) as temporary:
            write_bytes(temporary, out.getvalue())
        return GalleryImage(name=name, width=made.width, height=made.height)

    def finish(self, gallery: Gallery) -> Path:
        """Write gallery.json; then take away what an earlier gallery left. Returns its path."""
        path = self.folder / FILE
        write_text(path, gallery.model_dump_json() + "\n")
        for old in self.folder.iterdir():
            if old.suffix in (*_KINDS, ".tmp") and old.name not in self.names:
                with suppress(OSError):
                    old.unlink()
        return path


def images(gallery: Gallery) -> Iterable[GalleryImage]:
    """Every image of a gallery."""
    for answer in (*gallery.wrong, *gallery.right):
        yield from filter(None, (answer.image, answer.grad_cam))
    for mask in (*gallery.worst, *gallery.masks):
        yield from mask.images
    for group in gallery.microscope:
        yield from (tile.image for tile in group.tiles)

"""Image files: which there are in a folder, and what is in one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import UserError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 64_000_000  # a larger image is a mistake or an attack
SPREAD = ("L;2", "L;4")  # Pillow spreads the grey levels of these over 0 … 255
VOID = 255  # where nothing counts in a mask uint8, as it lies in files


def images_in(folder: Path, base: Path, who: str) -> Iterator[Path]:
    """The image files at or below `folder`; links may lead to files inside `base`. `who` asks."""
    stay_inside(folder, base, who)
    for parent, folders, files in os.walk(folder):  # links to folders are not followed
        folders[:] = filter(visible, folders)
        for name in files:
            path = Path(parent, name)
            if visible(name) and path.suffix.lower() in EXTENSIONS:
                if path.is_symlink():
                    stay_inside(path, base, who)
                if path.is_file():  # no pipes, no links to nowhere
                    yield path


def visible(name: str) -> bool:
    """Whether a file or folder is meant to be seen."""
    return not name.startswith(".")  # such as .ipynb_checkpoints, or macOS's ._image.jpg


def stay_inside(path: Path, base: Path, who: str) -> None:
    """Refuse a path that leads out of the folder `base`, by `..` or by a link."""
    if not path.resolve().is_relative_to(base.resolve()):
        raise UserError(f"{who}: {path} leads outside {base}, to {path.resolve()}; put it inside.")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose header was read; whatever is wrong with it is one line."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height} pixels"
                raise ValueError(f"{size}; at most {MAX_PIXELS:,} are read")
            yield image
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        raise UserError(f"{path}: not a readable image ({error}). Replace or remove it.") from error


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, as the file's head says; nothing is decoded."""
    with _opened(path) as image:
        return image.size


def read_image(path: Path) -> Image.Image:
    """Decode the whole file to RGB (Pillow's `verify()` would pass half a JPEG)."""
    with _opened(path) as image:
        return image.convert("RGB")


def read_mask(path: Path, classes: int, void: int | None = None) -> np.ndarray:
    """The class ids in a PNG, uint8 (H, W), below `classes` or VOID; `void` becomes VOID, too."""
    with _opened(path) as image:
        spread = any(tile[3] in SPREAD for tile in image.tile)
        mask, kind, mode = np.array(image), image.format, image.mode
    if kind != "PNG" or mode not in ("L", "P") or spread:
        raise UserError(
            f"{path}: {kind}, {mode}; a mask is a PNG whose pixels are class ids: a palette, or "
            "grey with 8 bits. Convert it, without resampling."
        )
    if void is not None:
        mask[mask == void] = VOID
    check_ids(mask, classes, str(path))
    return mask


def check_ids(ids: np.ndarray, classes: int, where: str, void: int | None = VOID) -> None:
    """UserError for class ids, any shape, that are neither below `classes` nor `void`."""
    strange = ids[((ids < 0) | (ids >= classes)) & (ids != void)]
    if strange.size:
        also = "" if void is None else f", and {void} where nothing counts"
        raise UserError(
            f"{where}: class id {strange[0]} in {strange.size:,} places; there are {classes} "
            f"classes, 0 to {classes - 1}{also}. Correct the data, the list of classes, or the id "
            "that is void."
        )

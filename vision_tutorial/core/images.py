"""Image files: which there are in a folder, and what is in one."""

import errno
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from .atomic import regular
from .errors import StorageError, UserError, short

FORMATS = (  # that Pillow reads by itself; EPS, say, would start another program
    *("JPEG", "PNG", "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "QOI", "TGA"),
    *("TIFF", "WEBP"),
)
HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
MAX_PIXELS = 100_000_000  # a larger image is a mistake or an attack
Image.MAX_IMAGE_PIXELS = None  # Pillow would warn from 89,478,485 on; every reader here asks first
SPREAD = ("L;2", "L;4")  # Pillow spreads the grey levels of these over 0 … 255
VOID = 255  # where nothing counts in a mask uint8, as it lies in files

_HEIC = "HEIC needs pip install 'vision-tutorial[heif]'"
# what the disk, the network or this process lacks at the moment: no reason to leave a file out
_NOT_THE_FILE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
_UNSEEN = ("__macosx", "thumbs.db", "desktop.ini")  # what systems leave behind
_TURNS = {  # EXIF's orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", module=r"PIL\.")  # such as damaged EXIF, a line for each file


# -- which there are -------------------------------------------------------------------------------


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read; HEIF where pillow-heif is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return (*FORMATS, "HEIF")
    return FORMATS


@cache
def suffixes() -> tuple[str, ...]:
    """The endings of the files that count as images, in small letters."""
    known = Image.registered_extensions()
    read = formats()  # which may register more
    return tuple(sorted(ending for ending, kind in known.items() if kind in read))


def images_in(
    folder: Path, base: Path, who: str, skipped: Counter[str], follow_links: bool | None = None
) -> list[Path]:
    """The image files at or below `folder` by name. `skipped` counts the others by their kind.

    Links must lead to what is inside `base`, unless `follow_links`; None where `who`, who asks, has
    no such option. Links to folders are followed with it only.
    """
    stay_inside(folder, base, who, follow_links)
    if _leads_up(folder):
        raise UserError(f"{who}: {folder} is a link to a folder above it; remove it.")
    found, seen = [], {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=bool(follow_links)):
        folders[:] = filter(visible, folders)
        for linked in [name for name in folders if os.path.islink(os.path.join(parent, name))]:
            real = os.path.realpath(os.path.join(parent, linked))
            if not follow_links:
                skipped["linked folder"] += 1
            elif real in seen or _leads_up(Path(parent, linked)):  # the same images again
                skipped["link to a folder above or known"] += 1
                folders.remove(linked)
            seen.add(real)
        for path in (Path(parent, name) for name in filter(visible, files)):
            if path.suffix.lower() not in suffixes():
                skipped[path.suffix.lower() or "no suffix"] += 1
                continue
            if path.is_symlink():
                stay_inside(path, base, who, follow_links)
            if path.is_file():
                found.append(path)
            else:  # a pipe, a link to nowhere
                skipped["no regular file"] += 1
    return sorted(found)


def _leads_up(path: Path) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def split_folder(who: str, base: Path, split: str, name: str) -> Path:
    """The folder `name` of a split below `base`, or one of another usual name of it, in capitals or
    not."""
    usual = {"train": ("train", "training"), "test": ("val", "valid", "validation")}[split]
    names = usual if name == usual[0] else (name,)
    there = sorted(path for path in base.iterdir() if visible(path.name) and path.is_dir())
    for each in names:
        alike = [path for path in there if path.name.lower() == each] if len(names) > 1 else []
        if found := next(filter(Path.is_dir, (base / each, *alike)), None):
            return found
    listed = ", ".join(path.name for path in there[:8])
    listed = f"there are {listed}" if there else "it has no folders"
    deeper = (path for above in ("*", "*/*") for path in base.glob(f"{above}/{names[0]}"))
    if below := next(filter(Path.is_dir, deeper), None):
        raise UserError(f"{who}: no folder {base / name}, but {below}. Set `root: {below.parent}`.")
    flat = " If these are the classes: `train: .`, and a part held out, `holdout: 0.1`."
    flat *= who == "image_folder" and split == "train" and len(there) > 1
    raise UserError(f"{who}: no folder {base / name}; {listed}. Name one with `{split}: …`.{flat}")


def visible(name: str) -> bool:
    """Whether a file or folder is meant to be seen."""
    # not .ipynb_checkpoints, .DS_Store, or macOS's ._image.jpg
    return not name.startswith(".") and name.lower() not in _UNSEEN


def stored(folder: Path, name: str) -> Path:
    """The file `name` in `folder`, which may be written there as other systems do: with `/` for
    Windows' backslashes, letters such as ü and 각 composed or, on macOS, decomposed, the suffix in
    capitals or not."""
    plain = name.replace("\\", "/")
    names = (name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    found = next((path for each in names if (path := folder / each).exists()), None)
    path = folder / plain
    endings = (path.suffix.lower(), path.suffix.upper()) if found is None else ()
    cased = (path.parent / f"{path.stem}{ending}" for ending in endings)
    return found or next((each for each in cased if each.exists()), path)


def stay_inside(path: Path, base: Path, who: str, follow_links: bool | None = None) -> None:
    """Refuse a path that leads out of the folder `base`, by `..` or, unless `follow_links`, by a
    link."""
    inside = os.path.abspath if follow_links else os.path.realpath
    if not Path(inside(path)).is_relative_to(inside(base)):
        todo = "put it inside" + (", or set follow_links: true" if follow_links is False else "")
        raise UserError(f"{who}: {path} leads outside {base}, to {inside(path)}; {todo}.")


def said_of(skipped: Mapping[str, int], who: str) -> tuple[str, ...]:
    """A line on what was skipped, if anything was."""
    there = [item for item in skipped.items() if item[1]]
    if not there:
        return ()
    kinds = sorted(there, key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count:,} x {short(kind, 40)}" for kind, count in kinds[:12])
    listed += ", …" if len(kinds) > 12 else ""
    if any(skipped.get(suffix) for suffix in HEIF):
        listed += f"; {_HEIC}"
    return (f"{who}: {sum(skipped.values()):,} skipped, not read as images: {listed}",)


def no_images(folder: Path, who: str, skipped: Mapping[str, int]) -> UserError:
    """The error where a folder has no image."""
    also = "".join(f" ({line.partition(': ')[2]})" for line in said_of(skipped, who))
    return UserError(f"{who}: no images in {folder}{also}; looked for {', '.join(suffixes())}.")


# -- what is in one --------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path | BytesIO, name: str = "") -> Iterator[Image.Image]:
    """An image file whose header was read; whatever is wrong with it is one line. name: what it is
    called, if it lies in memory."""
    within = isinstance(path, BytesIO)
    try:
        with Image.open(path if within else regular(path), formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height} pixels"
                raise ValueError(f"{size}, over the {MAX_PIXELS:,} that are read")
            yield image
    except (MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        reason = str(error)
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise StorageError(f"cannot read {path}: {error.strerror}. Try again.") from error
        if isinstance(error, Image.UnidentifiedImageError):
            head = path.getvalue() if within else path.read_bytes()
            start = " ".join(head[:40].decode("ascii", "replace").split())
            reason = f"none of {', '.join(formats())}" if start else "an empty file"
            if start and start.isascii() and start.isprintable():  # of Git LFS, of a server
                reason = f"text that begins '{start}'"
            if not within and path.suffix.lower() in HEIF and "HEIF" not in formats():
                reason = _HEIC
        problem = f"not a readable image ({reason})"
        raise UserError(f"{name or path}: {problem}. Replace or remove it.") from error


def image_size(path: Path, upright: bool = True) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, or of what is stored, by the file's head;
    nothing is decoded."""
    with _opened(path) as image:
        return image.size[::-1] if upright and _orientation(image) >= 5 else image.size


def read_image(path: Path | BytesIO, name: str = "") -> Image.Image:
    """Decode the whole file to upright RGB (Pillow's `verify()` would pass half a JPEG).

    16 bits become 8, the high ones; float values 0 … 1 become 0 … 255; what is transparent lies on
    white. UserError for other integers and floats, whose range nobody knows.
    """
    with _opened(path, name) as image:
        turn = _TURNS.get(_orientation(image))
        made = _rgb(image)
        return made if turn is None else made.transpose(turn)


def pages(path: Path) -> bool:
    """Whether a file has more images than the first, which is the one that is read."""
    with _opened(path) as image:  # a phone's JPEG (MPO) has previews behind it, which say no more
        return image.format != "MPO" and getattr(image, "is_animated", False)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 … 8; 1 where there is none, or Pillow turns the image by itself (TIFF)."""
    if image.format == "TIFF" or (image.format == "PNG" and not _has_exif(image)):
        return 1
    with suppress(Exception):  # damaged EXIF is common, and no reason to refuse the pixels
        return int(image.getexif().get(0x0112, 1))
    return 1


def _has_exif(image: Image.Image) -> bool:
    """Whether a PNG, freshly opened, may have EXIF. Pillow would decode it to know."""
    if {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & {*image.info}:
        return True
    file, start = image.fp, image.fp.tell()
    file.seek(8)
    kinds = set()
    while len(head := file.read(8)) == 8:
        kinds.add(head[4:])
        file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
    file.seek(start)
    return b"eXIf" in kinds


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel, RGB, of an image that is not yet decoded."""
    stored = image.tile[0][3] if image.tile else None  # how pixels lie in the file, for Pillow
    stored = stored[0] if isinstance(stored, tuple) else stored
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"float values from {low:g} to {high:g}, not within 0 to 1")
        image = Image.fromarray((values * 255).round().astype(np.uint8))
    elif image.mode[0] == "I":
        if image.mode == "I" and image.format != "PPM" and stored not in ("I;16", "I;16B"):
            raise ValueError("integers of 32 bits, or signed, not of 8 or 16 bits unsigned")
        values = np.asarray(image) >> (4 if stored == "I;12" else 8)
        image = Image.fromarray(values.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """The class ids in a PNG, uint8 (H, W), as they lie there."""
    with _opened(path) as image:
        spread = any(tile[3] in SPREAD for tile in image.tile)
        mask, kind, mode = np.array(image), image.format, image.mode
    if kind != "PNG" or mode not in ("L", "P", "1") or spread:
        raise UserError(
            f"{path}: {kind}, {mode}; a mask is a PNG whose pixels are class ids: a palette, or "
            "grey with 1 or 8 bits. Convert it, without resampling."
        )
    return mask.astype(np.uint8, copy=False)


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

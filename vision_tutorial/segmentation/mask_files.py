"""Images in files with a mask each, two sources as one, and both decoded once.

An epoch would decode all images again. `decoded` keeps them in memory where they fit, else in files
that are mapped: what was read, bit for bit, under the digest of the files, so that a run may go on
with either form.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import psutil
from PIL import Image

from ..core import arrays
from ..core.errors import StorageError, UserError, counted
from ..core.images import VOID, check_ids, image_size, read_image, read_mask, stay_inside
from ..core.processes import locked
from ..core.sources import ArraySource, Source, check_readable, kept_at, leaves, notices


@dataclass(frozen=True)
class MaskFiles:
    """Masks in PNG files, of `classes` classes; `void` is an id of theirs that does not count, and
    `ids` has the class of those that mean another (VOID is one), such as {255: 1}."""

    paths: Sequence[Path]
    classes: int
    void: int | None = None
    ids: Mapping[int, int] | None = None

    def __getitem__(self, index: int) -> np.ndarray:
        mask = read_mask(self.paths[index])
        table = np.arange(256, dtype=np.uint8)
        for id, label in ({self.void: VOID} | (self.ids or {})).items():
            table[VOID if id is None else id] = label
        mask = table[mask]
        try:
            check_ids(mask, self.classes, str(self.paths[index]))
        except UserError as error:
            if self.ids is None:
                raise
            raise UserError(f"{error} `map` makes classes of other ids: map={{3: 1}}.") from error
        return mask

    def some(self, rows: Sequence[int]) -> "MaskFiles":
        """Those of some images."""
        return replace(self, paths=[self.paths[row] for row in rows])

    def digest(self) -> str:
        head = f"{self.classes} {self.void}{f' {sorted(self.ids.items())}' if self.ids else ''}"
        return _digest(head, [p.name for p in self.paths], self.paths)


@dataclass(frozen=True)
class DenseFiles:
    """Images in files and their masks, decoded when asked for."""

    name: str
    paths: Sequence[Path]
    keys: Sequence[str]
    classes: tuple[str, ...]
    masks: Any  # MaskFiles, or what gives uint8 (H, W) and has `paths`, `some`, a digest as they do
    notices: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    dense: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= VOID:
            count = len(self.classes)
            raise UserError(
                f"{self.name}: {counted(count, 'class')}; masks hold 1 to {VOID}. Merge some."
            )

    @property
    def timed_files(self) -> list[Path]:
        """Images and masks; see `kept_at`."""
        return [*self.paths, *self.masks.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image = read_image(self.paths[index])
        return image, self.target(index, image.size)

    def target(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """The mask alone, of an image of `size` (width, height), or of what its file says."""
        mask, (width, height) = self.masks[index], size or image_size(self.paths[index])
        if mask.shape != (height, width):
            turned, todo = "", "Replace one of the two."
            if mask.shape[::-1] == image_size(self.paths[index], upright=False) != (width, height):
                turned = " as EXIF turns it"
                todo = "Turn what was drawn on it, too, or store the image upright, without EXIF."
            raise UserError(
                f"{self.paths[index]}: {width}x{height} pixels{turned}, its mask or "
                f"annotation has {mask.shape[1]}x{mask.shape[0]}. {todo}"
            )
        return mask

    @property
    def targets(self) -> np.ndarray:
        """Nothing to keep in shares: a hold-out is drawn at random."""
        return np.zeros(len(self), np.int64)

    def key(self, index: int) -> str:
        return self.keys[index]

    def checked(
        self, part: str, skipped: Mapping[str, int], skip: bool | None = None
    ) -> "DenseFiles":
        """Without the images that cannot be read with their masks: a UserError unless `skip`.
        part: of the set, for what is said, as of the files that were `skipped`."""
        who = f"{self.name}, {part}"
        files = [(path, *self.masks.paths[i : i + 1]) for i, path in enumerate(self.paths)]
        good, said = check_readable(who, files, self.keys, skipped, skip)
        paths, keys = ([values[index] for index in good] for values in (self.paths, self.keys))
        return replace(self, paths=paths, keys=keys, masks=self.masks.some(good), **said)

    def digest(self) -> str:
        return _digest(self.masks.digest(), self.keys, self.paths)


class Joined:
    """Two sources of the same classes, one behind the other."""

    dense = True

    def __init__(self, name: str, first: Source, second: Source):
        self.name, self.first, self.second, self.classes = name, first, second, first.classes
        self.targets = np.concatenate([first.targets, second.targets])
        self.notices = notices(first, second)
        both = first, second
        self.left_out = tuple(n for each in both for n in getattr(each, "left_out", ()))
        self.places = [(each, i) for each in both for i in range(len(each))]

    def __len__(self) -> int:
        return len(self.places)

    def origin(self, index: int) -> tuple[Source, int]:
        """The source and the index there of what stands at `index`."""
        return self.places[index]

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        source, place = self.places[index]
        return source[place]

    def key(self, index: int) -> str:
        source, place = self.places[index]
        return source.key(place)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.first.digest()} {self.second.digest()}".encode()).hexdigest()


def check_files(
    who: str, base: Path, paths: Sequence[Path], hint: str, follow_links: bool | None = None
) -> None:
    """UserError unless all files are there, and below `base`; `hint` says who needs them."""
    links = {path for path in paths if path.is_symlink()}
    for path in sorted({path.parent for path in paths} | links):
        stay_inside(path, base, who, follow_links)
    if missing := [path for path in paths if not path.is_file()]:
        counts = f"{len(missing):,} of {len(paths):,} are missing"
        raise UserError(f"{who}: no {missing[0]} ({counts}), which {hint}.")


def check_palettes(who: str, paths: Sequence[Path]) -> None:
    """UserError where palettes show that ids are each file's own: a colour that has one id here and
    another there, as tools leave it that keep only the colours of a file."""
    found: dict[Path, bytes] = {}
    try:
        for path in paths:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode == "P":
                    found[path] = bytes(image.getpalette("RGB") or ())
    except (OSError, SyntaxError, ValueError):
        return  # who reads the file says what is wrong with it
    if len(set(found.values())) < 2:
        return
    known: dict[bytes, tuple[int, Path]] = {}
    for path, palette in found.items():
        colours = [palette[at : at + 3] for at in range(0, len(palette), 3)]
        for id in np.unique(read_mask(path)).tolist():
            colour = colours[id] if id < len(colours) else b""
            first, where = known.setdefault(colour, (id, path))
            if colour and id != first and colour not in colours[first : first + 1]:
                raise UserError(
                    f"{who}: the order of the palettes is not that of the classes: the colour "
                    f"{tuple(colour)} is {first} in {where} and {id} in {path}. Save all masks "
                    "with one palette, or as grey PNGs of class ids."
                )


def _digest(head: str, names: Iterable[str], paths: Sequence[Path]) -> str:
    """A hash of `head`, and of the files' names and sizes."""
    digest = hashlib.sha256(head.encode())
    for name, path in zip(names, paths, strict=True):
        digest.update(f"{name}:{path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def decoded(source: Source, cache: Literal["auto", "memory", "disk", "none"]) -> Source:
    """`source` in arrays, if its images are of one size; `none`, or `auto` if they are not: as
    it is. `auto` keeps up to a quarter of the available memory there, and more on the disk."""
    if cache == "none":
        return source
    sizes = (size for leaf in leaves(source) for size in _sizes(leaf))
    width, height = next(sizes)
    other = next((size for size in sizes if size != (width, height)), None)
    if other:
        if cache == "auto":
            return source
        raise UserError(
            f"{source.name}: cache is {cache}, which needs images of one size; there are "
            f"{width}x{height} and {other[0]}x{other[1]}. Use cache: none, or resize the files."
        )
    needed = len(source) * width * height * 4  # three channels, and the mask
    if cache == "disk" or (cache == "auto" and needed > psutil.virtual_memory().available / 4):
        return _on_disk(source)
    images = np.empty((len(source), height, width, 3), np.uint8)
    masks = np.empty((len(source), height, width), np.uint8)
    arrays.fill(source, images, masks)
    return ArraySource(
        source.name,
        images,
        source.targets,
        source.classes,
        masks,
        known_digest=source.digest(),
        dense=True,
        keys=arrays.names_of(source),
        notices=source.notices,
        left_out=source.left_out,
    )


def _on_disk(source: Source) -> ArraySource:
    """The same in the cache folder, written at first and mapped from then on."""
    folder = kept_at(source, "decoded")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{folder}.lock")):  # of several processes one writes, the others wait
            if not (folder / arrays.MANIFEST).exists():
                arrays.write(folder, source.name, {"train": source})
    except (OSError, StorageError) as error:
        raise StorageError(
            f"{source.name}: decoded images cannot be kept ({error}). Set XDG_CACHE_HOME to a "
            "folder that has room, or cache: none."
        ) from error
    said = {"notices": source.notices, "left_out": source.left_out}
    return replace(arrays.load(folder, "train"), known_digest=source.digest(), **said)


def _sizes(leaf: Source) -> Iterator[tuple[int, int]]:
    """(width, height) of the images."""
    if isinstance(leaf, DenseFiles):
        return map(image_size, leaf.paths)
    return (leaf[index][0].size for index in range(len(leaf)))

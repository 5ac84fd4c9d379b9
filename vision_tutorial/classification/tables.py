"""Images whose labels are in a table: a CSV file, as contests have it, or a data set of the hub."""

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import UserError, counted, shown, some, unknown
from ..core.folders import data_folder
from ..core.images import images_in, no_images, read_image
from ..core.registry import datasets
from ..core.sources import FileSource, check_split
from .label_files import read_labels

_NO_TEST = (
    "has no labelled test split; set holdout: 0.1, which keeps a part of train for validation"
)


@datasets.register
def csv_labels(
    split: str,
    *,
    root: str,
    table: str = "train.csv",
    images: str = "train",
    test_table: str | None = None,
    test_images: str | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
) -> FileSource:
    """Your own images in one folder, their labels in a CSV file, as contests have it.

    root/train.csv has a column of file names (`image`, `id`, `file` …; the ending may be left out)
    and one of labels (`label`, `class` …). test_table, test_images: the same for the test split;
    without them set `holdout`. root: a folder, or the name of one below VISION_TUTORIAL_DATA.
    """
    check_split(split)
    who, base = "csv_labels", data_folder(root, "csv_labels")
    train = read_labels(base / table)
    classes = tuple(sorted(set(train.values()), key=_by_number))
    labels, folder = train, base / images
    if split == "test":
        if test_table is None:
            raise UserError(f"{who}: {base} {_NO_TEST}, or name test_table.")
        labels, folder = read_labels(base / test_table), base / (test_images or images)
        if strange := sorted(set(labels.values()) - set(classes)):
            raise UserError(
                f"{who}: {test_table} has classes that {table} has not: {some(strange)}."
            )
    if not folder.is_dir():
        raise UserError(f"{who}: no folder {folder}; `images` names it, as seen from {base}.")
    skipped: Counter[str] = Counter()
    found = images_in(folder, base, who, skipped, follow_links)
    if not found:
        raise no_images(folder, who, skipped)
    by_name = {path.relative_to(folder).as_posix(): path for path in found}
    by_stem = {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    paths = {name: by_name.get(name) or by_stem.get(name) for name in labels}
    if missing := [name for name, path in paths.items() if path is None]:
        raise UserError(
            f"{who}: {folder} lacks {counted(len(missing), 'image')} of the table: {some(missing)}."
        )
    skipped["not in the table"] += len(found) - len(set(paths.values()))
    targets = np.array([classes.index(label) for label in labels.values()], np.int64)
    source = FileSource(who, list(paths.values()), targets, classes, root=folder)
    return source.checked(who, +skipped, skip_unreadable)


def _by_number(label: str) -> tuple:
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)


@datasets.register
def hub(
    split: str,
    *,
    name: str,
    config: str | None = None,
    train: str = "train",
    test: str = "test",
    image: str | None = None,
    label: str | None = None,
) -> "HubSource":
    """A data set of the Hugging Face hub, or a folder of parquet files, by the `datasets` library.

    name: `uoft-cs/cifar100`, say, or a folder. config: one of several that it has. train, test: its
    names of the splits. image, label: its columns; null takes the only ones of their kind. It needs
    `pip install datasets`, and the network at the first time.
    """
    check_split(split)
    try:
        import datasets as library
    except ImportError as error:
        raise UserError("hub: it needs the package datasets: pip install datasets.") from error
    library.disable_progress_bars()
    wanted = train if split == "train" else test
    try:
        table = library.load_dataset(name, config, split=wanted)
    except Exception as error:  # the library raises whatever it likes
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"hub: cannot load the split '{wanted}' of {name} ({reason}). Without a network, "
            "`name` may be a folder of parquet files; train and test name the splits."
        ) from error
    kinds = {key: type(feature).__name__ for key, feature in table.features.items()}
    picture = _column(
        "image", image, [key for key, kind in kinds.items() if kind == "Image"], kinds
    )
    target = _column(
        "label", label, [k for k, kind in kinds.items() if kind == "ClassLabel"], kinds
    )
    classes = getattr(table.features[target], "names", None)
    if classes is None:
        raise UserError(f"hub: the column '{target}' of {name} holds no class labels.")
    table = table.cast_column(picture, library.Image(decode=False))
    return HubSource(f"hub {name}", table, picture, target, tuple(classes))


def _column(kind: str, given: str | None, fitting: list[str], known: dict[str, str]) -> str:
    if given is not None and given not in known:
        raise UserError(f"hub: {unknown('column', given, known)}")
    if given is None and len(fitting) != 1:
        raise UserError(
            f"hub: {len(fitting)} columns may be the {kind}; name one of {shown(known)}."
        )
    return given or fitting[0]


@dataclass(frozen=True)
class HubSource:
    """Images of a table of the `datasets` library, decoded when asked for."""

    name: str
    table: Any
    image: str
    label: str
    classes: tuple[str, ...]
    dense: bool = False
    notices: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @cached_property
    def targets(self) -> np.ndarray:
        return np.asarray(self.table[self.label], np.int64)

    def __len__(self) -> int:
        return len(self.table)

    def key(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        found = self.table[index]
        image = found[self.image]
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        image = read_image(io.BytesIO(content), f"{self.name}, row {index}")
        return image, int(found[self.label])

    def digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.targets))
        for image in self.table[self.image]:
            digest.update(f"{len(image['bytes'] or image['path'])} ".encode())
        return digest.hexdigest()

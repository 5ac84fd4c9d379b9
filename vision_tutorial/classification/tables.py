"""Images whose labels are in a table: a CSV file, as contests have it, or a data set of the hub."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import UserError, counted, short, some, unknown
from ..core.folders import data_folder, data_root, typed_path
from ..core.images import images_in, no_images, read_image
from ..core.registry import datasets
from ..core.sources import FileSource, check_split
from ..core.weights import look_for_hub
from .label_files import read_labels


@datasets.register
def csv_labels(
    split: str,
    *,
    root: str,
    table: str = "train.csv",
    images: str = "train",
    test_table: str | None = None,
    test_images: str | None = None,
    name_column: str | None = None,
    label_column: str | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
) -> FileSource:
    """Your own images in one folder, their labels in a CSV file, as contests have it.

    root/train.csv has a column of file names (`image`, `id`, `file` …; the ending may be left out)
    and one of labels (`label`, `class` …); name_column and label_column name others. test_table,
    test_images: the same for the test split; without them set `holdout`. root: a folder, or the
    name of one below VISION_TUTORIAL_DATA.
    """
    check_split(split)
    who, base = "csv_labels", data_folder(root, "csv_labels")
    columns = (name_column, label_column)
    train = read_labels(base / table, *columns)
    classes = tuple(sorted(set(train.values()), key=_by_number))
    labels, folder = train, base / images
    if split == "test":
        if test_table is None:
            raise UserError(
                f"{who}: {base} has no labelled test split; set holdout: 0.1, which keeps a "
                "part of train for validation, or name test_table."
            )
        labels, folder = read_labels(base / test_table, *columns), base / (test_images or images)
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
    stems = Counter(Path(name).with_suffix("").as_posix() for name in by_name)
    by_stem = {Path(name).with_suffix("").as_posix(): path for name, path in by_name.items()}
    paths = {name: by_name.get(name) or by_stem.get(name) for name in labels}
    if twice := [name for name in paths if name not in by_name and stems[name] > 1]:
        raise UserError(
            f"{who}: {folder} has several files called {twice[0]}; write their endings into the "
            "table, or remove one."
        )
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
    `pip install 'vision-tutorial[hub]'`, and the network at the first time.
    """
    check_split(split)
    folder = next(filter(Path.is_dir, (typed_path(name), data_root() / name)), None)
    if folder is None:
        look_for_hub()  # before the library is imported, which reads once whether it is offline
    try:
        import datasets as library
    except ImportError as error:
        raise UserError(
            f"hub: it needs {error.name}: pip install 'vision-tutorial[hub]'."
        ) from error
    library.disable_progress_bars()

    def table(wanted: str) -> Any:
        try:
            return library.load_dataset(str(folder or name), config, split=wanted)
        except Exception as error:  # the library raises whatever it likes
            reason = short(" ".join(str(error).split()), 300)
            raise UserError(
                f"hub: cannot load the split '{wanted}' of {name} ({reason}). Without a network, "
                "`name` may be a folder of parquet files; train and test name the splits."
            ) from error

    rows = table(train)  # which say what classes there are
    kinds = {key: type(feature).__name__ for key, feature in rows.features.items()}
    image = _column("image", image, kinds, "Image")
    label = _column(
        "label", label, {key: kinds[key] for key in kinds if key != image}, "ClassLabel"
    )
    classes = getattr(rows.features[label], "names", None)
    if classes is None:
        classes = sorted(
            {str(said) for said in _values(rows, label) if said is not None}, key=_by_number
        )
    rows = rows if split == "train" else table(test)
    targets = _targets(f"hub: the split '{split}' of {name}", rows, label, classes)
    try:
        rows = rows.cast_column(image, library.Image(decode=False))
    except Exception as error:
        raise UserError(f"hub: the column '{image}' of {name} holds no images.") from error
    return HubSource(f"hub {name}", rows, image, targets, tuple(classes))


def _column(kind: str, given: str | None, kinds: dict[str, str], wanted: str) -> str:
    """The column that is named, or the only one of its kind, or the only one."""
    if given is not None and given not in kinds:
        raise UserError(f"hub: {unknown('column', given, kinds)}")
    fitting = [key for key, found in kinds.items() if found == wanted] or list(kinds)
    if given is None and len(fitting) != 1:
        names = some(fitting) or "none"
        raise UserError(f"hub: which column is the {kind}? Set `{kind}` to one of: {names}.")
    return given or fitting[0]


def _values(rows: Any, column: str) -> list[Any]:
    return rows.select_columns([column])[:][column]


def _targets(who: str, rows: Any, label: str, classes: Sequence[str]) -> np.ndarray:
    """The class of each row; those of a `ClassLabel` are numbers already, and -1 is none."""
    values = _values(rows, label)
    if not hasattr(rows.features[label], "names"):
        numbers = {name: number for number, name in enumerate(classes)}
        if strange := sorted({str(said) for said in values if said is not None} - numbers.keys()):
            raise UserError(f"{who} has classes that its training split has not: {some(strange)}.")
        values = [None if said is None else numbers[str(said)] for said in values]
    if lacking := sum(said is None or said < 0 for said in values):
        raise UserError(f"{who}: {lacking:,} of {len(values):,} rows have no label ('{label}').")
    return np.array(values, np.int64)


@dataclass(frozen=True)
class HubSource:
    """Images of a table of the `datasets` library, decoded when asked for. targets int64 (N,)."""

    name: str
    table: Any
    image: str
    targets: np.ndarray
    classes: tuple[str, ...]
    dense: bool = False
    notices: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def key(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        found, row = self.table[index][self.image], f"{self.name}, row {index}"
        if not found or not (found["bytes"] or found["path"]):
            raise UserError(f"{row}: no image in the column '{self.image}'.")
        content = io.BytesIO(found["bytes"]) if found["bytes"] else Path(found["path"])
        return read_image(content, row), int(self.targets[index])

    def digest(self) -> str:
        """Of the labels, and of the images' sizes in bytes, which the table knows unread."""
        import pyarrow.compute

        digest = hashlib.sha256(self.targets)
        for rows in self.table.select_columns([self.image]).with_format("arrow").iter(1000):
            content = pyarrow.compute.struct_field(rows[self.image], "bytes")
            digest.update(f"{pyarrow.compute.binary_length(content).to_pylist()}\n".encode())
        return digest.hexdigest()

"""Data sets of classification: CIFAR-10, CIFAR-100, and any folder with one sub-folder per class.

CIFAR comes as pickles, which can execute code when read: the bytes that are unpickled are the very
bytes whose MD5 was compared with the published one, so nothing unverified is ever opened.
"""

import hashlib
import logging
import os
import pickle
import shutil
import tarfile
import tempfile
import unicodedata
import urllib.request
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
from rich.console import Console
from rich.progress import wrap_file
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from ..core.atomic import regular
from ..core.errors import StorageError, UserError
from ..core.folders import data_folder, data_root
from ..core.images import images_in, no_images, split_folder, stay_inside, visible
from ..core.processes import locked
from ..core.registry import datasets
from ..core.sources import ArraySource, FileSource, check_split

PATIENCE = 30  # seconds without a byte before a download gives up
MIRROR = "https://dataset.bj.bcebos.com/cifar"  # PaddlePaddle's copies, of the same MD5
_ELSEWHERE = "set `root` or VISION_TUTORIAL_DATA to the folder that has it"

logger = logging.getLogger(__name__)
_Archive = type[CIFAR10]  # torchvision's class, for the names, the address and the digests it holds


@datasets.register
def cifar10(split: str, *, root: str | None = None, download: bool = False) -> ArraySource:
    """CIFAR-10: 50,000 + 10,000 images of 32x32, 10 classes (Krizhevsky 2009)."""
    return _cifar("cifar10", CIFAR10, split, root, download)


@datasets.register
def cifar100(split: str, *, root: str | None = None, download: bool = False) -> ArraySource:
    """CIFAR-100: 50,000 + 10,000 images of 32x32, 100 classes (Krizhevsky 2009)."""
    return _cifar("cifar100", CIFAR100, split, root, download)


@datasets.register
def image_folder(
    split: str,
    *,
    root: str,
    train: str = "train",
    test: str = "val",
    skip_unreadable: bool = False,
    follow_links: bool = False,
) -> FileSource:
    """Your own images: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg (png, webp, … too).

    root: a folder, or the name of one below VISION_TUTORIAL_DATA. `training`, `valid` and
    `validation` do as well. skip_unreadable: leave damaged files out instead of stopping.
    follow_links: links may lead out of `root`, and to folders of images.
    """
    check_split(split)
    who, base = "image_folder", data_folder(root, "image_folder")
    skipped: Counter[str] = Counter()
    # The training folder alone says which classes there are, and in which order.
    top = split_folder(who, base, "train", train)
    folders = _class_folders(top, base, follow_links, skipped if split == "train" else Counter())
    classes = tuple(map(_class_name, folders))
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(
            f"image_folder: {top} has two folders '{twice}', with composed and decomposed letters "
            "(macOS writes these); put their images into one."
        )
    if split == "test":
        known, top = top, split_folder(who, base, "test", test)
        folders = _class_folders(top, base, follow_links, skipped)
        strange = [name for name in map(_class_name, folders) if name not in classes]
        if strange:
            near = [name for name in classes if name.casefold() == strange[0].casefold()]
            also = f", it has '{near[0]}'" if near else ""
            raise UserError(
                f"image_folder: {top} has the class '{strange[0]}', which {known} "
                f"has not{also} ({len(strange)} such). Rename or remove it, or add it to both."
            )
    images = [images_in(folder, base, who, skipped, follow_links) for folder in folders]
    empty = [folder for folder, paths in zip(folders, images, strict=True) if not paths]
    if empty and (split == "train" or len(empty) == len(folders)):
        raise no_images(empty[0], who, skipped)
    labels = [classes.index(_class_name(folder)) for folder in folders]
    targets = np.repeat(np.array(labels, np.int64), [len(paths) for paths in images])
    source = FileSource(who, [p for each in images for p in each], targets, classes, root=top)
    return source.checked(f"{who}, {top.name}", skipped, skip_unreadable)


def _class_name(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name)  # macOS decomposes what it writes


def _class_folders(
    folder: Path, base: Path, follow_links: bool, skipped: Counter[str]
) -> list[Path]:
    stay_inside(folder, base, "image_folder", follow_links)
    entries = [entry for entry in folder.iterdir() if visible(entry.name)]
    folders = sorted(entry for entry in entries if entry.is_dir())
    if not folders:
        raise UserError(f"image_folder: {folder} has no sub-folders; it needs one per class.")
    if len(folders) < len(entries):
        skipped["beside the class folders"] += len(entries) - len(folders)
    return folders


def _cifar(name: str, kind: _Archive, split: str, root: str | None, download: bool) -> ArraySource:
    check_split(split)
    folder = data_root(root)
    if folder.name != kind.base_folder:
        folder = folder / kind.base_folder
    if download and not _intact(kind, folder):
        _fetch(name, kind, folder)
    parts = kind.train_list if split == "train" else kind.test_list
    tables = [_unpickle(name, folder / part, md5) for part, md5 in parts]
    meta = _unpickle(name, folder / kind.meta["filename"], kind.meta["md5"])
    classes = tuple(_text(word) for word in meta[kind.meta["key"]])
    targets = np.concatenate([t.get("fine_labels", t.get("labels")) for t in tables])
    images, filled = np.empty((len(targets), 32, 32, 3), np.uint8), 0
    while tables:  # each is let go of once it is copied
        rows = tables.pop(0)["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        images[filled : filled + len(rows)] = rows
        filled += len(rows)
    return ArraySource(name, images, targets.astype(np.int64), classes)


def _unpickle(name: str, path: Path, md5: str) -> dict:
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{name}: no readable {path} ({error.strerror}); set `download: true`, or {_ELSEWHERE}."
        ) from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{name}: {path} is damaged: MD5 {found}, not {md5}; copy it, or `download: true`."
        )
    # as bytes, the table is used where it was read; as text it would be copied twice more
    return {_text(key): value for key, value in pickle.loads(content, encoding="bytes").items()}


def _text(word: bytes | str) -> str:
    return word.decode() if isinstance(word, bytes) else word


def _intact(kind: _Archive, folder: Path) -> bool:
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return all(check_integrity(folder / part, md5) for part, md5 in files)


def _fetch(name: str, kind: _Archive, folder: Path) -> None:
    """Download the archive and put its files in place; of several processes one does."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            locked(folder.with_suffix(".lock")),
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as temporary,
        ):
            if _intact(kind, folder):  # another process was first
                return
            archive = Path(temporary, kind.filename)
            _download(name, kind, archive)
            folder.mkdir(exist_ok=True)
            with tarfile.open(archive) as tar:
                for part, *_ in (*kind.train_list, *kind.test_list, [kind.meta["filename"]]):
                    tar.extract(f"{kind.base_folder}/{part}", temporary, filter="data")
                    os.replace(Path(temporary, kind.base_folder, part), folder / part)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{name}: cannot write {folder} ({reason}); {_ELSEWHERE}.") from error


def _download(name: str, kind: _Archive, archive: Path) -> None:
    """Fetch the archive, showing progress, from the first address that has the published MD5."""
    faults: list[str] = []
    for url in (kind.url, f"{MIRROR}/{kind.filename}"):
        if faults:
            logger.warning("%s: %s; trying %s", name, faults[-1], url)
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
                bar = wrap_file(answer, size, description=name, console=Console(stderr=True))
                with bar as stream, archive.open("wb") as file:
                    shutil.copyfileobj(stream, file)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            faults.append(f"{url} ({reason})")
            continue
        if check_integrity(archive, kind.tgz_md5):
            return
        faults.append(f"{url} (it has not MD5 {kind.tgz_md5})")
    raise UserError(
        f"{name}: cannot download {', nor '.join(faults)}. Nothing was kept. Without a network: "
        f"unpack it on another machine, copy {kind.base_folder} here, and {_ELSEWHERE}."
    )

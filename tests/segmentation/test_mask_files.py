"""Masks in files: their palettes, and what is decoded once."""

import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mask_sets import drawn, refused, same
from PIL import Image

from vision_tutorial.core import arrays
from vision_tutorial.core.errors import StorageError
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.segmentation import mask_files
from vision_tutorial.segmentation.datasets import mask_folder
from vision_tutorial.segmentation.mask_files import DenseFiles

pytestmark = pytest.mark.usefixtures("cache")


def test_palettes_that_are_each_files_own(tmp_path: Path):
    colours = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)]

    def painted(name: str, ids: list[int], palette: list[tuple]) -> None:
        for part in ("train", "val"):
            drawn(tmp_path / part, tmp_path / f"{part}_masks", name, ids)
            path = tmp_path / f"{part}_masks" / name
            mask = Image.fromarray(np.asarray(Image.open(path)))
            mask.putpalette([x for colour in palette for x in colour])
            mask.save(path)

    painted("a.png", [0, 1, 2, 3], colours)
    painted("b.png", [0, 3], colours)
    painted("c.png", [0, 1], colours[:2])
    mask_folder("train", root=str(tmp_path), classes=list("wxyz"))
    painted("b.png", [0, 1], [colours[0], colours[3]])  # only those in use, as a tool leaves it
    said = refused(mask_folder, root=str(tmp_path), classes=list("wxyz"))
    assert (
        "the order of the palettes is not that of the classes: the colour (0, 0, 200) is 3" in said
    )
    for name in ("b", "c"):
        shutil.copy(tmp_path / "train_masks/a.png", tmp_path / f"train_masks/{name}.png")
    for name in ("a", "c"):
        shutil.copy(tmp_path / "val_masks/b.png", tmp_path / f"val_masks/{name}.png")
    mask_folder("train", root=str(tmp_path), classes=list("wxyz"))  # each split agrees with itself
    assert "the colour (0, 0, 200) is 3" in refused(
        mask_folder, "test", root=str(tmp_path), classes=list("wxyz")
    )
    painted("b.png", [0, 1], [colours[0], (9, 9, 9)])  # another colour may be the same class
    mask_folder("train", root=str(tmp_path), classes=list("wxyz"))


# -- decoded once ----------------------------------------------------------------------------------


def test_every_cache_gives_the_same(pets: Path, monkeypatch: pytest.MonkeyPatch):
    plain = mask_folder("train", root=str(pets), cache="none")
    assert isinstance(plain, DenseFiles)
    for kind, stored in (("memory", np.ndarray), ("disk", np.memmap)):
        found = mask_folder("train", root=str(pets), cache=kind)
        assert isinstance(found, ArraySource) and type(found.images) is stored
        same(found, plain)
        same(pickle.loads(pickle.dumps(found)), plain)
    assert len(pickle.dumps(found)) < 2000
    needed = 3 * 6 * 4 * 4
    for free, stored in ((4 * needed, np.ndarray), (4 * needed - 1, np.memmap)):  # what fits
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(mask_files.psutil, "virtual_memory", lambda memory=memory: memory)
        assert type(mask_folder("train", root=str(pets)).images) is stored


def test_the_disk_is_used_again_until_a_file_changes(pets: Path, monkeypatch, cache: Path):
    first = mask_folder("train", root=str(pets), cache="disk")
    monkeypatch.setattr(arrays, "fill", lambda *_: pytest.fail("decoded again"))
    same(mask_folder("train", root=str(pets), cache="disk"), first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    changed = pets / "train_masks" / "b.png"
    size = changed.stat().st_size
    Image.fromarray(np.full((4, 6), 1, np.uint8)).save(changed)
    with changed.open("ab") as file:  # as many bytes as before
        file.write(bytes(size - changed.stat().st_size))
    os.utime(changed, ns=(1, 1))
    assert changed.stat().st_size == size
    again = mask_folder("train", root=str(pets), cache="disk")
    assert again.digest() == first.digest() and (again[1][1] == 1).all()
    shutil.rmtree(cache)
    cache.write_text("in the way")
    with pytest.raises(StorageError, match="XDG_CACHE_HOME to a folder that has room, or cache:"):
        mask_folder("train", root=str(pets), cache="disk")


def test_images_of_several_sizes_stay_files(pets: Path):
    drawn(pets / "train", pets / "train_masks", "c.png", [0, 1], size=(9, 3))
    source = mask_folder("train", root=str(pets))
    assert isinstance(source, DenseFiles) and source[2][1].shape == (3, 9)
    said = refused(mask_folder, root=str(pets), cache="memory")
    assert "cache is memory, which needs images of one size; there are 6x4 and 9x3" in said

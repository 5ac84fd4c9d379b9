"""The arrays folder: what is written is what is mapped, and every fault is one clear line."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mask_sets import refused
from PIL import Image

from vision_tutorial.core import arrays as module
from vision_tutorial.core.errors import StorageError, UserError
from vision_tutorial.core.registry import datasets
from vision_tutorial.core.sources import ArraySource, FileSource, Subset
from vision_tutorial.data import shapes  # noqa: F401  (fills the registry)
from vision_tutorial.data.loader import arrays


def made() -> dict[str, ArraySource]:
    build = datasets.build("shapes", size=16, train=60, test=30)
    return {split: build(split) for split in ("train", "test")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module.write(tmp_path / "set", "shapes", made())
    return tmp_path / "set"


def answer(folder: Path, split: str = "train", **options) -> str:
    """The one line that the entry answers with."""
    return refused(arrays, split, root=str(folder), **options)


def change(folder: Path, edit) -> None:
    path = folder / module.MANIFEST
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_what_is_written_is_what_is_mapped(folder: Path):
    for split, source in made().items():
        found = arrays(split, root=str(folder))
        assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
        for name in ("images", "targets", "masks"):
            wanted, got = getattr(source, name), getattr(found, name)
            np.testing.assert_array_equal(got, wanted)
            assert got.dtype == wanted.dtype
        assert (found.name, found.classes) == (source.name, source.classes)
        assert found.digest() == source.digest(), "a run may go on with either form of the data"
        image, target = found[7]
        assert (np.asarray(image) == source.images[7]).all() and target == source.targets[7]
        assert not found.dense and found.keys is None and found.key(3) == "3"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set"], "nothing left beside it"


def test_images_in_files_must_be_of_one_size(tmp_path: Path):
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for level, path in enumerate(paths):
        Image.new("RGB", (5, 4), (level, 10, 200)).save(path)
    source = FileSource("pets", paths, np.array([0, 1, 0]), ("cat", "dog"))
    module.write(tmp_path / "set", "pets", {"train": source, "test": Subset(source, [1])})
    found = arrays("train", root=str(tmp_path / "set"))
    assert found.images.shape == (3, 4, 5, 3) and found.images[2, 3, 4].tolist() == [2, 10, 200]
    assert found.targets.tolist() == [0, 1, 0] and found.masks is None
    Image.new("RGB", (4, 4)).save(paths[2])
    with pytest.raises(UserError, match="pets, image 2: 4x4 pixels, the first has 5x4"):
        module.write(tmp_path / "other", "pets", {"train": source})
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".other*"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_mapped_set_is_split_and_hashed_without_being_read_into_memory(tmp_path: Path):
    n = 12_000  # 35 MiB
    images = np.zeros((n, 32, 32, 3), np.uint8)
    source = ArraySource("big", images, np.arange(n) % 10, tuple("abcdefghij"))
    module.write(tmp_path / "set", "big", {"train": source})
    code = f"""
from pathlib import Path
from dataclasses import replace
from vision_tutorial.core.arrays import load
from vision_tutorial.core.sources import hold_out, take

def own():  # memory of this process alone, in MiB
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) >> 10

before = own()
source = load(Path({str(tmp_path / "set")!r}), "train", verify=True)
rest, held = hold_out(source, 0.1, 0)
some = take(rest, 1000, 0)
assert replace(source, known_digest=None).digest() == source.digest()
some.digest(), some[3], held[5]
assert own() - before < 15, own() - before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_mapped_set_travels_to_a_loader_process_by_name(folder: Path):
    source = arrays("train", root=str(folder))
    sent = pickle.dumps(Subset(source, np.arange(5)))
    assert len(sent) < 5000 < source.images.nbytes
    found = pickle.loads(sent).source
    assert found.digest() == source.digest() and isinstance(found.masks, np.memmap)
    # a piece of a map, or one whose file is gone, travels by value
    piece = ArraySource("piece", source.images[3:9], source.targets[3:9], source.classes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(piece)).images, source.images[3:9])
    (folder / "train" / "images.npy").unlink()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).images, source.images)


# -- masks as targets ------------------------------------------------------------------------------


def lazy() -> Subset:
    """A dense source that is no array, as data sets in files are."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 4, 5, 3), np.uint8)
    masks = rng.choice(np.array([0, 1, 255], np.uint8), (7, 4, 5))
    keys = [f"batch/{index:04}.jpg" for index in range(7)]
    more = {"masks": masks, "dense": True, "keys": keys}
    source = ArraySource("lazy", images, np.zeros(7, np.int64), ("ground", "thing"), **more)
    return Subset(source, np.array([4, 1, 5, 0]))


def test_a_dense_source_comes_back_dense(tmp_path: Path):
    source = lazy()
    module.write(tmp_path / "set", "lazy", {"test": source})
    found = arrays("test", root=str(tmp_path / "set"))
    assert found.dense and found.classes == source.classes and len(found) == len(source)
    for index in range(len(source)):
        for got, wanted in zip(found[index], source[index], strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert found.key(index) == source.key(index)


def test_masks_with_strange_ids_and_manifests_without_masks(tmp_path: Path, folder: Path):
    source = lazy()
    module.write(tmp_path / "lazy", "lazy", {"train": source})
    change(tmp_path / "lazy", lambda values: values["classes"].pop())
    assert "masks.npy, mask 0: class id 1 in" in answer(tmp_path / "lazy")
    change(tmp_path / "lazy", lambda values: values["splits"]["train"]["keys"].pop())
    assert "masks or keys of 'train' are missing" in answer(tmp_path / "lazy")
    change(folder, lambda values: [s.pop("masks") for s in values["splits"].values()])
    change(folder, lambda values: values.update(dense=True))
    assert "masks or keys of 'train' are missing" in answer(folder)
    source.source.masks[5, 1, 2] = 2
    with pytest.raises(UserError, match="lazy, mask 2: class id 2 in 1 places; there are 2 class"):
        module.write(tmp_path / "no", "lazy", {"train": source})
    assert not list(tmp_path.glob("*no*"))


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda v: v.update(name="../../up"), "name"),
        (lambda v: v.update(format="of tomorrow"), "should be 'vision_tutorial.arrays/1'"),
        (lambda v: v.update(more=1), "more: Extra inputs"),
        (lambda v: v["splits"]["train"].pop("targets"), "splits.train.targets: Field required"),
        (lambda v: v["splits"]["train"]["images"].update(shape=[59, 16, 16, 3]), "images.npy"),
        (lambda v: v["splits"].pop("train"), "has no split 'train', only test"),
    ],
)
def test_a_damaged_manifest(folder: Path, edit, said: str):
    change(folder, edit)
    assert said in answer(folder)
    (folder / module.MANIFEST).write_text("[" * 100_000)
    assert "Invalid JSON" in answer(folder)
    (folder / module.MANIFEST).unlink()
    assert f"cannot read {folder / 'arrays.json'} (No such file" in answer(folder)
    assert "no split called 'val'" in answer(folder, "val")


def test_a_damaged_file(folder: Path):
    path = folder / "train" / "images.npy"
    content, images = path.read_bytes(), np.load(path)
    for damaged in (content[:-1], content[:50], b"PK\3\4" + content):
        path.write_bytes(damaged)
        assert f"{path}: not a whole NumPy file" in answer(folder, verify=False)
    for other in (images.astype(np.int16), np.asfortranarray(images), images[:, :8]):
        np.save(path, other)
        message = f"{path}: holds {other.dtype} {other.shape}; arrays.json needs uint8 (60, 16"
        assert message in answer(folder)
    np.save(path, images.astype(object), allow_pickle=True)
    message = answer(folder)
    assert "not a whole NumPy file" in message and "bject" in message, "and never unpickled"
    path.unlink()
    assert f"{path}: not a whole NumPy file ([Errno 2] No such" in answer(folder, verify=False)


def test_class_ids_must_be_those_of_the_classes(folder: Path):
    path = folder / "train" / "targets.npy"
    targets = np.load(path)
    for wrong in (10, -1, 255):
        np.save(path, np.where(targets == 9, wrong, targets))
        said = f"{path}: class id {wrong} in 6 places; there are 10 classes, 0 to 9. Correct"
        assert said in answer(folder, verify=False)


def test_a_flipped_bit_is_noticed_unless_that_was_waived(folder: Path, monkeypatch):
    path = folder / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"{path}: damaged: not the SHA-256" in answer(folder)
    arrays("train", root=str(folder), verify=False)
    monkeypatch.setattr(module, "SMALL", 100)
    arrays("train", root=str(folder))
    assert "damaged" in answer(folder, verify=True)


# -- writing ---------------------------------------------------------------------------------------


def test_what_is_there_is_never_overwritten(folder: Path, tmp_path: Path):
    before = (folder / module.MANIFEST).read_bytes()
    with pytest.raises(UserError, match=f"there is a {folder} already"):
        module.write(folder, "shapes", made())
    assert (folder / module.MANIFEST).read_bytes() == before
    (tmp_path / "empty").mkdir()
    module.write(tmp_path / "empty", "lazy", {"test": lazy()})
    assert len(arrays("test", root=str(tmp_path / "empty"))) == 4


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for free, said in (10**9, f"cannot write {tmp_path / 'set'}: No space left"), (10, "MiB are"):
        monkeypatch.setattr(module, "free_space", lambda path, free=free: free)
        with pytest.raises(StorageError, match=said):
            module.write(tmp_path / "set", "shapes", made())
        assert not list(tmp_path.iterdir())

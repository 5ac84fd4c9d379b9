"""The arrays folder: what is written is what is mapped, and every fault is one clear line."""

import errno
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_tutorial.core import arrays as module
from vision_tutorial.core.errors import StorageError, UserError
from vision_tutorial.core.registry import datasets
from vision_tutorial.core.sources import ArraySource, FileSource, Subset
from vision_tutorial.data import shapes  # noqa: F401  (fills the registry)
from vision_tutorial.data.arrays import arrays
from vision_tutorial.recipe.loading import load

SPLITS = ("train", "test")


def made() -> dict[str, ArraySource]:
    return {s: datasets.build("shapes", size=16, train=60, test=30)(s) for s in SPLITS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module.write(tmp_path / "set", "shapes", made())
    return tmp_path / "set"


def refused(folder: Path, split: str = "train", **options) -> str:
    """The one line that the entry answers with."""
    with pytest.raises(UserError) as caught:
        arrays(split, root=str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


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


def test_images_in_files_of_one_size(tmp_path: Path):
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for level, path in enumerate(paths):
        Image.new("RGB", (5, 4), (level, 10, 200)).save(path)
    source = FileSource("pets", paths, np.array([0, 1, 0]), ("cat", "dog"))
    module.write(tmp_path / "set", "pets", {"train": source, "test": Subset(source, [1])})
    found = arrays("train", root=str(tmp_path / "set"))
    assert found.images.shape == (3, 4, 5, 3) and found.images[2, 3, 4].tolist() == [2, 10, 200]
    assert found.targets.tolist() == [0, 1, 0] and found.masks is None
    assert arrays("test", root=str(tmp_path / "set")).targets.tolist() == [1]
    Image.new("RGB", (4, 4)).save(paths[2])
    with pytest.raises(UserError, match="pets, image 2: 4x4 pixels, the first has 5x4"):
        module.write(tmp_path / "other", "pets", {"train": source})
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".other*"))


def test_a_mapped_set_is_split_and_hashed_without_being_read_into_memory(tmp_path: Path):
    n = 40_000  # 117 MiB
    images = np.zeros((n, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(n) % 251
    source = ArraySource("big", images, np.arange(n) % 10, tuple("abcdefghij"))
    module.write(tmp_path / "set", "big", {"train": source})
    code = f"""
import sys
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
assert own() - before < 20, own() - before
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- masks as targets ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lazy:
    """A dense source that is no array, as data sets in files are."""

    images: np.ndarray
    masks: np.ndarray
    name = "lazy"
    classes = ("ground", "thing")
    dense = True

    @property
    def targets(self) -> np.ndarray:
        return np.zeros(len(self.images), np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return Image.fromarray(self.images[index]), self.masks[index]

    def key(self, index: int) -> str:
        return f"batch/{index:04}.jpg"

    def digest(self) -> str:
        return "0" * 64


def lazy() -> Lazy:
    rng = np.random.default_rng(0)
    masks = rng.choice(np.array([0, 1, 255], np.uint8), (7, 4, 5))
    return Lazy(rng.integers(0, 256, (7, 4, 5, 3), np.uint8), masks)


@pytest.mark.parametrize("rows", [None, [4, 1]])
def test_a_dense_source_comes_back_dense(tmp_path: Path, rows):
    source = lazy() if rows is None else Subset(lazy(), np.array(rows))
    module.write(tmp_path / "set", "lazy", {"train": source, "test": source})
    found = arrays("test", root=str(tmp_path / "set"))
    assert found.dense and found.classes == source.classes and len(found) == len(source)
    for index in range(len(source)):
        image, mask = source[index]
        got, got_mask = found[index]
        assert np.asarray(got).tobytes() == np.asarray(image).tobytes()
        np.testing.assert_array_equal(got_mask, mask)
        assert found.key(index) == source.key(index)


def test_a_mask_with_a_strange_id_is_not_packed(tmp_path: Path):
    source = lazy()
    source.masks[5, 1, 2] = 2
    with pytest.raises(UserError, match="lazy, mask 5: class id 2, but there are 2 classes"):
        module.write(tmp_path / "set", "lazy", {"train": source})
    assert not list(tmp_path.iterdir())


def test_a_dense_manifest_that_contradicts_its_arrays(tmp_path: Path, folder: Path):
    change(folder, lambda values: [s.pop("masks") for s in values["splits"].values()])
    change(folder, lambda values: values.update(dense=True))
    assert "masks are missing" in refused(folder)
    module.write(tmp_path / "lazy", "lazy", {"train": lazy()})
    change(tmp_path / "lazy", lambda values: values["classes"].pop())
    assert "masks.npy, mask 0: class id 1, but there are 1 classes" in refused(tmp_path / "lazy")
    change(tmp_path / "lazy", lambda values: values["splits"]["train"]["keys"].pop())
    assert "splits.train: Value error, 6 keys for 7 images" in refused(tmp_path / "lazy")


def test_images_are_read_in_order_with_a_bar_only_on_a_terminal(monkeypatch, capsys):
    source, images = lazy(), np.empty((7, 4, 5, 3), np.uint8)
    masks = np.empty((7, 4, 5), np.uint8)
    module.fill(source, images, masks)
    assert (images == source.images).all() and (masks == source.masks).all()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    module.fill(source, images)
    out, err = capsys.readouterr()
    assert out == "" and "reading lazy" in err


# -- faults ----------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_or_another(tmp_path: Path):
    assert f"no {tmp_path / 'none' / 'arrays.json'}; name a folder" in refused(tmp_path / "none")
    (tmp_path / "arrays.json").mkdir()
    assert "cannot read" in refused(tmp_path)
    with pytest.raises(UserError, match="no split called 'val'"):
        arrays("val", root=str(tmp_path))


@pytest.mark.parametrize(
    "content, said",
    [
        ("[1, 2]", "should be an object"),
        ('{"format": "of tomorrow"}', "format: Input should be 'vision_tutorial.arrays/1'"),
        ("[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_damaged_manifest(folder: Path, content: str, said: str):
    (folder / module.MANIFEST).write_text(content)
    message = refused(folder)
    assert str(folder / module.MANIFEST) in message and said in message
    os.truncate(folder / module.MANIFEST, module.MOST_MANIFEST + 1)
    assert "more than 67,108,864 bytes" in refused(folder)


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda v: v.update(classes=[]), "classes"),
        (lambda v: v.update(name="../../up"), "name"),
        (lambda v: v.update(more=1), "more: Extra inputs"),
        (lambda v: v["splits"]["train"].pop("targets"), "splits.train.targets: Field required"),
        (lambda v: v["splits"]["train"]["images"].update(shape=[60, 16, 16]), "not (N, H, W, 3)"),
        (lambda v: v["splits"]["train"]["targets"].update(shape=[59]), "the images need (60,)"),
        (lambda v: v["splits"]["train"]["masks"].update(shape=[60, 8, 16]), "masks have the shape"),
    ],
)
def test_a_manifest_that_contradicts_itself(folder: Path, edit, said: str):
    change(folder, edit)
    assert said in refused(folder)


def test_a_file_that_is_missing_cut_short_or_too_long(folder: Path):
    path = folder / "train" / "masks.npy"
    content = path.read_bytes()
    for damage, said in [
        (content[:-1], "not a whole NumPy file"),
        (content[:50], "not a whole NumPy file"),
        (b"PK\3\4" + content, "not a whole NumPy file"),
        (content + b"\0", "bytes, it should have"),
    ]:
        path.write_bytes(damage)
        message = refused(folder, verify=False)
        assert str(path) in message and said in message
    path.unlink()
    assert f"no {path}" in refused(folder, verify=False)


def test_a_file_of_another_kind(folder: Path):
    path = folder / "train" / "images.npy"
    images = np.load(path)
    np.save(path, images.astype(np.int16))
    assert f"{path}: holds int16; images are uint8" in refused(folder)
    np.save(path, np.asfortranarray(images))
    assert "in Fortran's order" in refused(folder)
    np.save(path, images[:, :8])
    assert "its shape is (60, 8, 16, 3), arrays.json says (60, 16, 16, 3)" in refused(folder)
    np.save(path, images.astype(object), allow_pickle=True)
    message = refused(folder)
    assert "not a whole NumPy file" in message and "bject" in message, "and never unpickled"


def test_class_ids_must_be_those_of_the_classes(folder: Path):
    path = folder / "train" / "targets.npy"
    targets = np.load(path)
    for wrong, said in [(targets + 1, "from 1 to 10"), (targets - 1, "from -1 to 8")]:
        np.save(path, wrong)
        message = refused(folder, verify=False)
        assert f"{path}: class ids {said}, but arrays.json names 10 classes" in message


def test_a_flipped_bit_is_noticed_unless_that_was_waived(folder: Path, monkeypatch):
    path = folder / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"{path}: damaged: its SHA-256" in refused(folder)
    assert "damaged" in refused(folder, verify=True)
    arrays("train", root=str(folder), verify=False)
    monkeypatch.setattr(module, "SMALL", 100)
    arrays("train", root=str(folder))
    assert "damaged" in refused(folder, verify=True)


# -- writing ---------------------------------------------------------------------------------------


def test_what_is_there_is_never_overwritten(folder: Path):
    before = (folder / module.MANIFEST).read_bytes()
    with pytest.raises(UserError, match=f"there is a {folder} already"):
        module.write(folder, "shapes", made())
    assert (folder / module.MANIFEST).read_bytes() == before
    empty = folder.with_name("empty")
    empty.mkdir()
    module.write(empty, "shapes", made())
    assert len(arrays("test", root=str(empty))) == 30
    change(empty, lambda values: values["splits"].pop("test"))
    assert "has no split 'test', only train" in refused(empty, "test")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path / 'set'} .No space left"):
        module.write(tmp_path / "set", "shapes", made())
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(module, "free_space", lambda path: 10)
    with pytest.raises(StorageError, match="MiB are needed, fewer are free"):
        module.write(tmp_path / "set", "shapes", made())
    assert not list(tmp_path.iterdir())


def test_the_recipe_knows_the_entry(folder: Path):
    for words, wanted in [("", "auto"), (", verify: true", True)]:
        override = f"dataset={{arrays: {{root: {folder}{words}}}}}"
        assert load("debug", [override]).recipe.dataset.options["verify"] == wanted
    with pytest.raises(UserError, match="verify"):
        load("debug", [f"dataset={{arrays: {{root: {folder}, verify: maybe}}}}"])


def test_a_mapped_set_travels_to_a_loader_process_by_name(folder: Path):
    source = arrays("train", root=str(folder))
    sent = pickle.dumps(Subset(source, np.arange(5)))
    assert len(sent) < 5000 < source.images.nbytes
    found = pickle.loads(sent).source
    assert found.digest() == source.digest() and isinstance(found.masks, np.memmap)
    np.testing.assert_array_equal(found.images, source.images)
    # a piece of a map, or one whose file is gone, travels by value
    piece = ArraySource("piece", source.images[3:9], source.targets[3:9], source.classes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(piece)).images, source.images[3:9])
    for path in (folder / "train").iterdir():
        path.unlink()
    sent = pickle.dumps(source)
    assert len(sent) > source.images.nbytes
    np.testing.assert_array_equal(pickle.loads(sent).images, source.images)

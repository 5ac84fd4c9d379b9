"""CamVid, VOC, folders of masks, pseudo-labels: what they read, keep and refuse."""

import json
import os
import pickle
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_tutorial.core import arrays
from vision_tutorial.core.errors import StorageError, UserError
from vision_tutorial.core.registry import datasets
from vision_tutorial.core.sources import ArraySource, Source
from vision_tutorial.data import shapes  # noqa: F401  (fills the registry)
from vision_tutorial.segmentation import mask_files
from vision_tutorial.segmentation.datasets import (
    CAMVID,
    VOC,
    camvid,
    mask_folder,
    shared_rows,
    voc,
    with_pseudo_labels,
)
from vision_tutorial.segmentation.mask_files import DenseFiles

SIZE = (6, 4)  # width, height


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision_tutorial" / "decoded"


def drawn(folder: Path, masks: Path, name: str, ids: list[int], size=SIZE, seed: int = 0) -> None:
    """An image of noise, losslessly, and its mask of these ids."""
    rng = np.random.default_rng([seed, *name.encode()])
    for parent in ((folder / name).parent, (masks / name).parent):
        parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    mask = rng.choice(np.array(ids, np.uint8), size[::-1])
    mask.flat[: len(ids)] = ids
    Image.fromarray(mask).save((masks / name).with_suffix(".png"))


def same(one: Source, other: Source) -> None:
    """Equal images, masks, names, digest."""
    assert len(one) == len(other) and one.digest() == other.digest()
    assert (one.name, one.classes, one.dense) == (other.name, other.classes, other.dense)
    assert one.targets.tolist() == other.targets.tolist()
    for index in range(len(one)):
        (image, mask), (image_, mask_) = one[index], other[index]
        assert image.mode == image_.mode == "RGB" and mask.dtype == mask_.dtype == np.uint8
        assert image.tobytes() == image_.tobytes() and one.key(index) == other.key(index)
        np.testing.assert_array_equal(mask, mask_)


def refused(entry, split: str = "train", **options) -> str:
    """The one line that the entry answers with."""
    with pytest.raises(UserError) as caught:
        entry(split, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# -- CamVid ----------------------------------------------------------------------------------------


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A tiny set in CamVid's layout; its root."""
    base = tmp_path / "data" / "camvid"
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        for i in range(count):
            drawn(base / part, base / f"{part}_masks", f"{part}_{i}.png", [0, 5, 10, 11])
    return tmp_path / "data"


def test_camvid(street: Path, monkeypatch: pytest.MonkeyPatch):
    for split, options, names in (
        ("train", {}, ["train"] * 5),
        ("test", {}, ["val"] * 3),
        ("train", {"train": "trainval"}, ["train"] * 5 + ["val"] * 3),
        ("test", {"test": "test"}, ["test"] * 2),
    ):
        source = camvid(split, root=str(street), **options)
        assert source.dense and source.classes == CAMVID and len(CAMVID) == 11
        assert [source.key(i).partition("_")[0] for i in range(len(source))] == names
        for index, name in enumerate(names):
            folder = street / "camvid" / name
            image, mask = source[index]
            assert image.tobytes() == Image.open(folder / source.key(index)).tobytes()
            stored = np.asarray(Image.open(f"{folder}_masks/{source.key(index)}"))
            np.testing.assert_array_equal(mask, np.where(stored == 11, 255, stored))
    before = camvid("train", root=str(street))
    assert before.targets.tolist() == [0] * 5
    (street / "camvid" / "train_masks").rename(street / "camvid" / "trainannot")  # as SegNet's
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(street))
    same(camvid("train"), before)
    monkeypatch.setenv("VISION_TUTORIAL_DATA", "/nowhere")
    assert "no folder /nowhere/camvid/train; images lie in one folder" in refused(camvid)
    assert "no split called 'val'" in refused(camvid, "val")


def test_the_real_camvid(data_root: Path):
    if not (data_root / "camvid").is_dir():
        pytest.skip("no camvid here")
    splits = [("train", {}), ("test", {}), ("test", {"test": "test"})]
    sources = [camvid(s, root=str(data_root), cache="none", **options) for s, options in splits]
    assert [len(source) for source in sources] == [367, 101, 233]
    masks = sources[0].masks
    counts = sum(np.bincount(masks[index].ravel(), minlength=256) for index in range(367))
    assert counts[11:255].sum() == 0 and counts[255] > 0
    shares = 100 * counts[:11] / counts[:11].sum()
    wanted = [17.5, 24.2, 1.0, 33.0, 4.7, 10.1, 1.2, 1.2, 6.1, 0.67, 0.30]
    np.testing.assert_allclose(shares, wanted, atol=0.05)
    image, mask = sources[0][0]
    assert image.size == (480, 360) and mask.shape == (360, 480)


# -- VOC -------------------------------------------------------------------------------------------


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A tiny VOCdevkit; its VOC2012."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, ids in (("train", "2007_01 2007_02"), ("val", "2007_03"), ("trainval", "")):
        (lists / f"{name}.txt").write_text(ids.replace(" ", "\n") + "\n")
        for i in ids.split():
            drawn(base / "JPEGImages", base / "SegmentationClass", f"{i}.png", [0, 20, 255])
            Image.open(base / "JPEGImages" / f"{i}.png").save(base / "JPEGImages" / f"{i}.jpg")
    return base


def test_voc(devkit: Path):
    root = str(devkit.parent.parent)
    train, val = (voc(split, root=root) for split in ("train", "test"))
    assert train.classes == VOC and len(VOC) == 21 and VOC[15] == "person"
    assert [train.key(i) for i in range(2)] == ["2007_01.jpg", "2007_02.jpg"]
    image, mask = val[0]
    stored = Image.open(devkit / "SegmentationClass" / "2007_03.png")
    np.testing.assert_array_equal(mask, np.asarray(stored))
    assert image.tobytes() == Image.open(devkit / "JPEGImages" / "2007_03.jpg").tobytes()
    assert "cannot read" in refused(voc, root=root, year=2007)
    assert "trainval.txt names no images" in refused(voc, root=root, train="trainval")
    (devkit / "SegmentationClass" / "2007_02.png").unlink()
    assert "SegmentationClass/2007_02.png (1 of 4 are missing), which" in refused(voc, root=root)
    (devkit / "ImageSets" / "Segmentation" / "val.txt").write_text("../../../secret\n")
    assert "leads outside" in refused(voc, "test", root=root)


# -- folders of masks ------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """root/train and root/val with masks of the ids 0 … 2, 255; one image deeper than others."""
    root = tmp_path / "pets"
    for part in ("train", "val"):
        for name in ("b.png", "a.png", "deep/a.png"):
            drawn(root / part, root / f"{part}_masks", name, [0, 1, 2, 255])
    return root


def test_mask_folder(pets: Path, monkeypatch: pytest.MonkeyPatch):
    train, val = (mask_folder(split, root=str(pets)) for split in ("train", "test"))
    assert train.classes == val.classes == ("0", "1", "2"), "255 is no class"
    assert [train.key(i) for i in range(3)] == ["a.png", "b.png", "deep/a.png"]
    for index in range(3):
        stored = Image.open(pets / "val_masks" / val.key(index))
        np.testing.assert_array_equal(val[index][1], np.asarray(stored))
    (pets / "classes.txt").write_text("ground\n cat \n\ndog\n")
    assert mask_folder("test", root=str(pets)).classes == ("ground", "cat", "dog")
    given = mask_folder("train", root=str(pets), classes=["x", "y"], void=2)
    assert given.classes == ("x", "y") and set(np.unique(given[0][1])) == {0, 1, 255}
    three = mask_folder("train", root=str(pets), classes=["x", "y", "z"], void=2)
    assert len({given.digest(), train.digest(), three.digest()}) == 3
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(pets.parent))
    before = mask_folder("test", root=str(pets))
    same(mask_folder("test", root=pets.name), before)
    (pets / "labels").mkdir()
    (pets / "val").rename(pets / "validation")
    (pets / "val_masks").rename(pets / "labels" / "val")
    options = {"test": "validation", "test_masks": "labels/val"}
    same(mask_folder("test", root=str(pets), **options), before)
    said = refused(mask_folder, "test", root=str(pets), test="validation")
    assert f"no folder {pets}/validation_masks; images lie in one folder" in said


def test_what_a_mask_folder_refuses(pets: Path):
    def said(split: str = "train", **options) -> str:
        return refused(mask_folder, split, root=str(pets), **options)

    assert "two classes called 'x'" in said(classes=["x", "y", "x"])
    assert "class id 2 in" in said(classes=["x", "y"])
    (pets / "classes.txt").write_bytes(b"\xff")
    assert "classes.txt" in said() and "one class a line" in said()
    (pets / "classes.txt").unlink()
    (pets / "train_masks" / "deep" / "a.png").unlink()
    assert f"no {pets}/train_masks/deep/a.png (1 of 3 are missing)" in said()
    (pets / "train_masks" / "deep" / "a.png").write_bytes(b"no image")
    assert "train_masks/deep/a.png: not a readable image" in said()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(pets / "train_masks" / "deep" / "a.png")
    assert "a.png: 6x4 pixels, its mask or annotation has 6x5" in said(classes=["x", "y", "z"])
    (pets / "empty").mkdir()
    (pets / "empty_masks").mkdir()
    assert f"no images in {pets}/empty; looked for .apng" in said(train="empty")


def test_damaged_images_and_masks_are_listed_or_left_out(pets: Path):
    """With their masks; the cache, the key and the digest are those of a set without them."""
    (pets / "train" / "b.png").write_bytes(b"")
    (pets / "train_masks" / "a.png").write_bytes((pets / "train_masks" / "a.png").read_bytes()[:50])
    said = refused(mask_folder, root=str(pets), classes=["x", "y", "z"])
    assert (
        said.startswith("2 images cannot be used: ") and "train_masks/a.png: not a readable" in said
    )
    assert said.endswith("or leave such images out: skip_unreadable: true.")
    options = {"root": str(pets), "classes": ["x", "y", "z"], "skip_unreadable": True}
    source = mask_folder("train", **options)
    assert [source.key(i) for i in range(len(source))] == ["deep/a.png"]
    assert source.left_out == ("a.png", "b.png")
    assert source.notices == ("mask_folder, train: 2 of 3 left out, unreadable: a.png, b.png",)
    same(source, mask_folder("train", **options, cache="none"))
    for name in ("train/a.png", "train/b.png", "train_masks/a.png", "train_masks/b.png"):
        (pets / name).unlink()
    same(source, mask_folder("train", **options))


def test_images_of_16_bits_and_floats_are_those_of_8(pets: Path):
    before = mask_folder("train", root=str(pets))
    for path in sorted((pets / "train").rglob("*.png")):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    same_grey = mask_folder("train", root=str(pets))
    for index in range(3):
        (image, mask), (other, other_mask) = before[index], same_grey[index]
        np.testing.assert_array_equal(np.asarray(other)[..., 1], image.convert("L"))
        np.testing.assert_array_equal(mask, other_mask)
        assert len(np.unique(other)) > 10
    path = pets / "train" / "deep" / "a.png"
    path.unlink()
    grey = np.asarray(before[2][0].convert("L"))
    Image.fromarray(grey.astype(np.float32) / 255).save(path.with_suffix(".tif"))
    floats = mask_folder("train", root=str(pets))
    np.testing.assert_array_equal(np.asarray(floats[2][0])[..., 0], grey)
    Image.fromarray(grey.astype(np.float32)).save(path.with_suffix(".tif"))
    assert "a.tif: not a readable image (float values from" in refused(mask_folder, root=str(pets))


def test_two_images_of_one_mask_are_refused(pets: Path):
    Image.new("RGB", SIZE).save(pets / "train" / "deep" / "a.jpg")
    said = refused(mask_folder, root=str(pets))
    assert "deep/a.jpg and deep/a.png in" in said and "would share the mask" in said


def test_images_and_masks_upright_and_in_other_usual_folders(pets: Path):
    """A mask fits the image as a viewer shows it; validation/ is found without being named."""
    (pets / "val").rename(pets / "validation")
    (pets / "val_masks").rename(pets / "validation_masks")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in sorted((pets / "validation").rglob("*.png")):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    source = mask_folder("test", root=str(pets))
    assert [source.key(i) for i in range(3)] == ["a.png", "b.png", "deep/a.png"]
    assert source[0][0].size == SIZE and source[0][1].shape == SIZE[::-1]
    mask = Image.open(pets / "validation_masks/b.png").transpose(Image.Transpose.ROTATE_90)
    mask.save(pets / "validation_masks/b.png")  # drawn on the image as it is stored
    with pytest.raises(UserError, match="6x4 pixels as EXIF turns it, its mask .* has 4x6. Turn"):
        mask_folder("test", root=str(pets))[1]


@pytest.mark.parametrize(("form", "suffix"), [("NFC", "png"), ("NFD", "png"), ("NFD", "PNG")])
def test_names_as_other_systems_write_them(tmp_path: Path, form: str, suffix: str):
    for split, other in (("train", "NFC"), ("val", form)):
        image, mask = (unicodedata.normalize(each, "강/각") for each in ("NFD", other))
        drawn(tmp_path / split, tmp_path / f"{split}_masks", f"{image}.png", [0, 1])
        drawn(tmp_path / "x", tmp_path / f"{split}_found", f"{mask}.{suffix}", [0, 1])
        source = mask_folder(
            "train" if split == "train" else "test",
            root=str(tmp_path),
            train_masks="train_found",
            test_masks="val_found" if split == "val" else None,
        )
        assert len(source) == 1


def test_ids_of_files_are_mapped_to_classes(pets: Path):
    plain = mask_folder("train", root=str(pets), classes=["x", "y", "z"])
    options = {"classes": ["x", "y"], "map": {"255": 1, "1": 0, "2": 255}, "void": 0}
    mapped = mask_folder("train", root=str(pets), **options)
    table = np.arange(256)
    table[[255, 1, 2, 0]] = [1, 0, 255, 255]
    for index in range(3):
        np.testing.assert_array_equal(mapped[index][1], table[plain[index][1]])
    same(mask_folder("train", root=str(pets), cache="none", **options), mapped)
    others = [mask_folder("train", root=str(pets), **{**options, "map": {"2": x}}) for x in (0, 1)]
    assert len({mapped.digest(), plain.digest(), *(other.digest() for other in others)}) == 4
    for wrong in ({"x": 1}, {"256": 1}, {"-1": 1}, {"1": 256}, {"1": "0"}, {"1": True}):
        assert "map is {" in refused(mask_folder, root=str(pets), map=wrong)
    said = refused(mask_folder, root=str(pets), classes=["x", "y"])
    assert "`map` makes classes of other ids" in said


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([0, 128], 'have the ids 0, 128, so 127 of 129 classes .*map={"128": 1}. If not, name all'),
        ([0, 85, 170, 254], 'map={"85": 1, "170": 2, "254": 3}. If'),
        ([0, 128, 255], 'map={"128": 1} (255 is void; to have it as a class, add 255: 2). If'),
        ([0, 2, 5, 255], None),
    ],
)
def test_grey_levels_are_no_classes(tmp_path: Path, ids: list[int], said: str | None):
    for part in ("train", "val"):
        drawn(tmp_path / part, tmp_path / f"{part}_masks", "a.png", ids)
    if said:
        text = refused(mask_folder, root=str(tmp_path))
        assert all(part in text for part in said.split(".*"))
        named = mask_folder("train", root=str(tmp_path), classes=[str(i) for i in range(255)])
        assert set(np.unique(named[0][1])) == set(ids)
    else:
        assert len(mask_folder("train", root=str(tmp_path)).classes) == 6


def test_names_that_differ_by_what_they_end_with(tmp_path: Path):
    base = tmp_path / "cities"
    for split in ("train", "val"):
        for city in ("aachen", "bonn"):
            image, mask = (base / kind / split / city for kind in ("leftImg8bit", "gtFine"))
            drawn(image, mask, f"{city}_0.png", [0, 1, 2])
            for kind in ("_labelIds", "_labelTrainIds"):
                shutil.copy(mask / f"{city}_0.png", mask / f"{city}_0_gtFine{kind}.png")
            (mask / f"{city}_0.png").unlink()
            (image / f"{city}_0.png").rename(image / f"{city}_0_leftImg8bit.png")
            shutil.copy(image / f"{city}_0_leftImg8bit.png", image / f"{city}_0_depth.png")
    places = {"train": "leftImg8bit/train", "train_masks": "gtFine/train"}
    places |= {"test": "leftImg8bit/val", "test_masks": "gtFine/val", "root": str(base)}
    said = refused(mask_folder, **places)
    assert "or say what names end with: image_suffix, mask_suffix" in said
    for ending in ("", ".png"):
        suffixes = {"image_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelTrainIds"}
        suffixes = {name: suffix + ending for name, suffix in suffixes.items()}
        source = mask_folder("test", **places, **suffixes)
        assert source.keys == ("aachen/aachen_0_leftImg8bit.png", "bonn/bonn_0_leftImg8bit.png")
        stored = Image.open(base / "gtFine/val/bonn/bonn_0_gtFine_labelTrainIds.png")
        np.testing.assert_array_equal(source[1][1], np.asarray(stored))


def test_masks_beside_or_below_the_images(tmp_path: Path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            drawn(tmp_path / part, tmp_path / part / "masks", f"{name}.png", [0, 1])
            path = tmp_path / part / f"{name}.png"
            Image.open(path).save(path.with_suffix(".jpg"))
            path.unlink()
    below = {"train_masks": "train/masks", "test_masks": "val/masks", "root": str(tmp_path)}
    source = mask_folder("train", **below)
    assert source.keys == ("a.jpg", "b.jpg"), "masks are no images"
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / "masks" / f"{name}.png").rename(tmp_path / part / f"{name}.png")
    beside = {"train_masks": "train", "test_masks": "val", "root": str(tmp_path)}
    assert "lie in one folder" in refused(mask_folder, **beside)
    assert "lie in one folder" in refused(mask_folder, **beside, image_suffix=".png")
    same(mask_folder("train", **beside, image_suffix=".jpg"), source)
    drawn(tmp_path / "train", tmp_path / "train", "b.png", [0, 1])
    apart = refused(mask_folder, root=str(tmp_path), train_masks="val")
    assert "a.jpg and a.png in" in apart and "would share the mask" in apart


def test_masks_without_an_image_are_counted(pets: Path):
    shutil.copy(pets / "train_masks" / "a.png", pets / "train_masks" / "more.png")
    (line,) = mask_folder("train", root=str(pets)).notices
    assert line == "mask_folder, train: 1 skipped, not read as images: 1 x masks without an image"


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


def test_lists_with_a_byte_order_mark(pets: Path, devkit: Path):
    (pets / "classes.txt").write_text("ground\ncat\ndog\n", encoding="utf-8-sig")
    assert mask_folder("train", root=str(pets)).classes == ("ground", "cat", "dog")
    (devkit / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xef\xbb\xbf2007_03\r\n")
    assert len(voc("test", root=str(devkit.parent.parent))) == 1


@pytest.mark.parametrize("link", ["train/b.png", "train_masks/b.png", "train_masks"])
def test_links_lead_no_further_than_the_root(pets: Path, link: str):
    secret = pets.parent / "secret"
    path = pets / link
    path.rename(secret)
    path.symlink_to(secret)
    assert f"{path} leads outside {pets}" in refused(mask_folder, root=str(pets))
    assert len(mask_folder("train", root=str(pets), follow_links=True)) == 3


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


# -- pseudo-labels ---------------------------------------------------------------------------------


@pytest.fixture
def guessed(pets: Path) -> Path:
    """A folder of two pseudo-labelled images."""
    folder = pets / "guessed"
    for name in ("p.png", "q.png"):
        drawn(folder / "images", folder / "masks", name, [0, 2, 255], seed=1)
    (folder / "ledger.json").write_text(json.dumps({"classes": ["0", "1", "2"], "kept": 2}))
    return folder


def mixed(split: str, pets: Path, **options) -> Source:
    given = {"dataset": "mask_folder", "options": {"root": str(pets)}}
    return with_pseudo_labels(split, **{**given, "folder": str(pets / "guessed"), **options})


def test_pseudo_labels_beside_a_labelled_set(pets: Path, guessed: Path):
    source = mixed("train", pets)
    assert isinstance(source, ArraySource) and source.classes == ("0", "1", "2") and source.dense
    names = ["a.png", "b.png", "deep/a.png", "p.png", "q.png"]
    assert [source.key(i) for i in range(len(source))] == names
    labelled = mask_folder("train", root=str(pets))
    for index in range(3):
        np.testing.assert_array_equal(source[index][1], labelled[index][1])
    stored = Image.open(guessed / "masks" / "q.png")
    np.testing.assert_array_equal(source[4][1], np.asarray(stored))
    same(mixed("train", pets, cache="disk"), source)
    same(mixed("test", pets), mask_folder("test", root=str(pets)))


@given(st.integers(1, 60), st.integers(1, 60), st.none() | st.floats(0, 0.95), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_the_share_of_pseudo_labels(labelled: int, extra: int, ratio: float | None, seed: int):
    rows = shared_rows(labelled, extra, ratio, seed)
    assert rows.dtype == np.int64
    assert (rows == shared_rows(labelled, extra, ratio, seed)).all()
    assert (shared_rows(10, 40, 0.5, 0) != shared_rows(10, 40, 0.5, 1)).any(), "the seed chooses"
    assert rows[:labelled].tolist() == list(range(labelled)), "each labelled image, once"
    counts = np.bincount(rows[labelled:] - labelled, minlength=extra)
    assert len(counts) == extra and np.ptp(counts) <= 1
    if ratio is None:
        assert (counts == 1).all()
    else:  # no other whole number of images comes nearer
        wanted = ratio / (1 - ratio) * labelled
        assert abs(counts.sum() - wanted) <= 0.5 + 1e-9


def test_what_pseudo_labels_refuse(pets: Path, guessed: Path):
    def said(**options) -> str:
        return refused(mixed, pets=pets, **options)

    typo = said(dataset="mask_foldr")
    assert "no dataset called 'mask_foldr'; did you mean 'mask_folder'?" in typo
    assert "'mask_folder' needs a value for 'root'" in said(options=None)
    assert "shapes has no masks" in said(dataset="shapes", options={"train": 20})
    assert "ratio is 1.0; a number in [0, 1)" in said(ratio=1.0)
    (guessed / "ledger.json").write_text('{"classes": ["0", "1", "cat"]}')
    assert 'are for the classes ["0", "1", "cat"]' in said()
    (guessed / "ledger.json").unlink()
    assert "ledger.json; name a folder of pseudo-labels" in said()


def test_pseudo_labels_beside_a_students_own_set(guessed: Path, monkeypatch: pytest.MonkeyPatch):
    def mine(split: str) -> Source:
        return shapes.shapes(split, size=16, train=20, test=10, masks=True)

    monkeypatch.setitem(datasets.entries, "mine", mine)
    (guessed / "ledger.json").write_text("{}")
    made = with_pseudo_labels("train", dataset="mine", folder=str(guessed))
    assert len(made) == 22 and made[0][1].shape == (16, 16) and made[21][1].shape == (4, 6)

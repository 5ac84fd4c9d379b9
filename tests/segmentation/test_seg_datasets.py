"""CamVid, VOC, folders of masks, pseudo-labels: what they read, keep and refuse."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from mask_sets import SIZE, drawn, refused, same
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.data import shapes  # noqa: F401  (fills the registry)
from vision_tutorial.segmentation.datasets import (
    CAMVID,
    VOC,
    camvid,
    mask_folder,
    voc,
)

pytestmark = pytest.mark.usefixtures("cache")

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

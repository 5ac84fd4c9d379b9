"""COCO data sets: what lies on top of what, every fault as one line; polygons and run lengths, by
hand, by plain loops, and as pycocotools draws them, to the pixel."""

import contextlib
import copy
import io
import json
import pickle
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_sets import refused
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.segmentation.coco import BACKGROUND, coco

WIDTH, HEIGHT = 8, 6
# pycocotools 2.0.11 has not heard of NumPy's newest wish
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    """A polygon that covers the pixels left … right - 1, top … bottom - 1."""
    return [left, top, right, top, right, bottom, left, bottom]


CATEGORIES = [{"id": 7, "name": "paper"}, {"id": 3, "name": "glass"}, {"id": 12, "name": "metal"}]


def contents() -> dict[str, Any]:
    """Two images; on the first, three boxes over each other."""
    names = ("batch_01/1.jpg", "batch_01/2.jpg")
    size = {"width": WIDTH, "height": HEIGHT}
    boxes = [(1, 12, (0, 0, 4, 4)), (2, 7, (2, 2, 8, 6)), (3, 3, (3, 3, 5, 5))]
    return {
        "info": {"year": 2021},
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": kind, "segmentation": [box(*corners)]}
            for number, kind, corners in boxes
        ],
        "categories": copy.deepcopy(CATEGORIES),
    }


def built(root: Path, edit=lambda values: None, split: str = "train", **options):
    """The set whose file was changed."""
    values = contents()
    edit(values)
    name = "train.json" if split == "train" else "val.json"
    (root / name).write_text(json.dumps(values))
    return coco(split, root=str(root), **options)


def said_of(root: Path, edit, split: str = "train") -> str:
    """What is said of a changed file, in one line."""
    return refused(lambda split: built(root, edit, split), split)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with its images; val.json is train.json."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "trash"
    (root / "batch_01").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (1, 2):
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(root / "batch_01" / f"{number}.jpg")
    for name in ("train.json", "val.json"):
        (root / name).write_text(json.dumps(contents()))
    return root


@pytest.mark.parametrize(
    "overlap, rows",
    [
        ("max_label", ["33330000", "33330000", "33331111", "33332111", "00122111", "00111111"]),
        ("area", ["33330000", "33330000", "33331111", "33322111", "00122111", "00111111"]),
        ("order", ["33330000", "33330000", "33111111", "33122111", "00122111", "00111111"]),
    ],
)
def test_which_annotation_is_on_top(root: Path, overlap: str, rows: list[str]):
    source = coco("train", root=str(root), overlap=overlap, cache="none")
    assert len(pickle.dumps(source)) < 2000
    source = pickle.loads(pickle.dumps(source))
    assert source.classes == (BACKGROUND, "paper", "glass", "metal") and source.dense
    image, mask = source[0]
    assert ["".join(map(str, row)) for row in mask.tolist()] == rows
    assert mask.dtype == np.uint8 and mask.flags.c_contiguous
    assert image.tobytes() == Image.open(root / "batch_01" / "1.jpg").tobytes()
    assert not source[1][1].any(), "an image without annotations is all background"


def test_where_things_are_found(root: Path, monkeypatch: pytest.MonkeyPatch):
    before = coco("test", root=str(root))
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(root.parent))
    (root / "images" / "val").mkdir(parents=True)
    (root / "batch_01").rename(root / "images" / "val" / "batch_01")
    (root / "annotations").mkdir()
    (root / "val.json").rename(root / "annotations" / "all.json")
    after = coco("test", root="trash", test="annotations/all.json", test_images="images/val")
    assert isinstance(after, ArraySource) and after.digest() == before.digest()
    assert after.key(0) == "batch_01/1.jpg", "as the file has it"


def test_ids_may_be_text_and_categories_in_another_order(root: Path):
    def edit(values):
        for image in values["images"]:
            image["id"] = f"image {image['id']}"
        for annotation in values["annotations"]:
            annotation["image_id"] = "image 0"
            del annotation["id"]
        values["categories"].reverse()

    assert built(root, edit, "test").digest() == coco("train", root=str(root)).digest()


def test_a_test_set_without_annotations_is_void(root: Path):
    for keys in (["annotations"], ["annotations", "categories"]):
        source = built(root, lambda values, keys=keys: [values.pop(key) for key in keys], "test")
        assert (source[0][1] == 255).all() and source[0][1].shape == (HEIGHT, WIDTH)
    said = said_of(root, lambda values: values["annotations"].clear())
    assert "train.json: no annotations to learn from" in said


def changed(key: str, **changes):
    """Changes of the first image or annotation."""
    return lambda values: values[key][0].update(changes)


def test_the_digest_sees_what_is_drawn(root: Path):
    same = built(root, lambda v: v.update(info={"year": 2022}, licenses=[])).digest()
    others = [
        built(root, lambda v: v["annotations"].pop()),
        built(root, changed("annotations", category_id=7)),
        built(root, changed("annotations", segmentation=[box(0, 0, 4, 5)])),
        built(root, overlap="order"),
    ]
    assert same == built(root).digest() and len({same, *(s.digest() for s in others)}) == 5


# -- faults ----------------------------------------------------------------------------------------


def categories(*more: dict):
    return lambda values: values.update(categories=[*CATEGORIES, *more])


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda v: v["images"][1].pop("file_name"), "train.json: images.1.file_name: Field requ"),
        (lambda v: v["categories"].clear(), "train.json: no categories, which say what there is"),
        (changed("images", width=10**4, height=10**4 + 1), "is over 100,000,000 pixels"),
        (changed("images", id=1), "train.json: two images have the id 1; correct one"),
        (changed("images", file_name="batch_01/9.jpg"), "batch_01/9.jpg (1 of 2 are missing)"),
        (changed("images", file_name="../9.jpg"), "leads outside"),
        (changed("annotations", image_id="0"), 'annotation 1: no image has the id "0" (there are '),
        (
            changed("annotations", category_id=1),
            "annotation 1: no category has the id 1 (there are ",
        ),
        (changed("annotations", id=None, segmentation=[]), "annotation 0: its segmentation is []"),
        (lambda v: v["categories"][2].update(name="glass"), 'two categories have the name "glass"'),
        (
            lambda v: v["categories"][0].update(name="backGround"),
            "is called 'Background', as what none",
        ),
        (categories(*({"id": -i, "name": f"{i}"} for i in range(252))), "coco: 256 classes; masks"),
    ],
)
def test_a_faulty_file(root: Path, edit, said: str):
    assert said in said_of(root, edit)


def test_categories_that_were_not_learned(root: Path):
    said = said_of(root, lambda v: v["categories"][1].update(name="Glass"), "test")
    assert f'{root}/val.json: category 3 is "Glass", in {root}/train.json it is "glass"' in said
    assert "(another case)" in said
    said = said_of(root, renumbered, "test")
    assert 'val.json: category 1, "metal", is not in' in said and "where 12 has that name" in said
    said = said_of(root, lambda v: v.pop("categories"), "test")
    assert "val.json: no categories; those of" in said
    few = [each for each in contents()["annotations"] if each["category_id"] != 12]
    for fewer in ({"categories": CATEGORIES[:2], "annotations": few}, {"annotations": few}):
        assert built(root, lambda v, fewer=fewer: v.update(fewer), "test").classes[3] == "metal"


def renumbered(values: dict) -> None:
    values["categories"][2]["id"] = values["annotations"][0]["category_id"] = 1


def roots(values: dict) -> None:
    """Categories as Roboflow writes them: a root of the first one's name, or a name of its own."""
    for number, name in enumerate(("paper", "all", "background")):
        values["categories"].insert(number, {"id": 100 + number, "name": name})
    for each in values["categories"][3:]:
        each["supercategory"] = "all"


def test_categories_that_only_hold_others_are_left_out(root: Path):
    before = built(root).digest()
    for split in ("train", "test"):
        source = built(root, roots, split)
        assert source.classes == (BACKGROUND, "paper", "glass", "metal")
        assert source.digest() == before
        assert "left out, which no annotation has" in source.notices[0]
        assert source.notices[0].endswith(": paper (100), all (101), background (102)")
    own = built(
        root, lambda v: [each.update(supercategory=each["name"]) for each in v["categories"]]
    )
    assert own.digest() == before and len(own.notices) == 1, "as COCO's own, each in itself"


def test_files_that_are_not_there_no_json_or_lead_outside(root: Path):
    with pytest.raises(UserError, match="coco: cannot read .*; `root` names the folder"):
        coco("train", root=str(root), train="none.json")
    with pytest.raises(UserError, match="trash is a folder; a file is expected"):
        coco("train", root=str(root), train=".")
    for content in (b"", b"[1, 2]", "{}".encode("utf-16"), b"[" * 100_000):
        (root / "val.json").write_bytes(content)
        with pytest.raises(UserError, match="val.json: (.*A COCO file has images|not UTF-8)"):
            coco("test", root=str(root))
    secret = root.parent / "secret.jpg"
    (root / "batch_01" / "2.jpg").rename(secret)
    (root / "batch_01" / "2.jpg").symlink_to(secret)
    assert "batch_01/2.jpg leads outside" in said_of(root, lambda values: None)


def bad(values: dict) -> None:
    """Six annotations that cannot be drawn beside the three; one of them in part."""
    good = box(0, 0, 2, 2)
    for id, change in enumerate(
        (
            {"segmentation": []},
            {"segmentation": None},
            {"segmentation": [[1, 1, 2, 2]]},
            {"segmentation": [good, [1, 1, 2, 2], []]},
            {"category_id": 99},
            {"image_id": [1]},
        ),
        start=10,
    ):
        given = {"id": id, "image_id": 1, "category_id": 3, "segmentation": [good], **change}
        values["annotations"].append(given)
    del values["annotations"][4]["segmentation"]


def test_bad_annotations_are_all_listed_or_left_out(root: Path):
    said = said_of(root, bad)
    assert (
        f"{root}/train.json: 6 annotations cannot be used: annotation 10: " in said
        and "; 1 more. " in said
    )
    assert all(f"annotation {id}: " in said for id in range(10, 15)) and "annotation 15" not in said
    assert said.endswith("Correct or remove it, or leave out all such: invalid: skip.")
    source = built(root, bad, invalid="skip", cache="none")
    line = (
        "coco, train.json: 6 bad annotations are left out, or parts of them: 10, 11, 12, 13, 14, 1"
    )
    assert source.notices == (f"{line} more",)
    np.testing.assert_array_equal(source[0][1], coco("test", root=str(root))[0][1])
    good = np.zeros((HEIGHT, WIDTH), np.uint8)
    good[:2, :2] = 2
    np.testing.assert_array_equal(source[1][1], good), "the good part"


def test_what_is_odd_is_said(root: Path):
    def outside(values: dict) -> None:
        values["annotations"][1]["segmentation"] = [box(-8, 0, -4, 4)]

    assert built(root, outside).notices == (
        "coco, train.json: 1 annotations cover no pixel",
        "coco, train.json: 1 images have no annotation",
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_shares_in_the_place_of_pixels(root: Path, split: str):
    def shares(values: dict) -> None:
        for each in values["annotations"]:
            polygon = each["segmentation"][0]
            each["segmentation"] = [
                [x / (HEIGHT, WIDTH)[n % 2 == 0] for n, x in enumerate(polygon)]
            ]

    assert "all polygons lie within 0 … 1, as in YOLO's" in said_of(root, shares, split)
    some = built(root, changed("annotations", segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]]))
    line = "coco, train.json: 1 annotations lie within 0 … 1, as in YOLO's files"
    assert some.notices[0] == line


def test_files_as_other_systems_write_them(root: Path):
    before = built(root)
    values = contents()
    for image in values["images"]:
        image["file_name"] = image["file_name"].replace("/", "\\")
        image.update(id=float(image["id"]), width=float(WIDTH))
    for each in values["annotations"]:
        each.update(image_id=float(each["image_id"]), category_id=float(each["category_id"]))
    values["images"][0]["file_name"] = unicodedata.normalize("NFC", "각.png")
    shutil.copy(
        root / contents()["images"][0]["file_name"], root / unicodedata.normalize("NFD", "각.png")
    )
    (root / "train.json").write_text(json.dumps(values), encoding="utf-8-sig")
    source = coco("train", root=str(root))
    for index in range(2):
        assert (source[index][1] == before[index][1]).all()


# -- the real thing --------------------------------------------------------------------------------


@pytest.mark.parametrize("split, images", [("train", 570), ("test", 143)])
def test_trashcan_as_pycocotools_reads_it(data_root: Path, split: str, images: int):
    folder = data_root / "trashcan"
    if not folder.is_dir():
        pytest.skip("no trashcan here")
    reader = pytest.importorskip("pycocotools.coco")
    source = coco(split, root="trashcan")
    assert len(source) == images and len(source.classes) == 17
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = reader.COCO(folder / {"train": "train.json", "test": "val.json"}[split])
    places = {source.key(i): i for i in range(len(source))}
    order = [category["id"] for category in oracle.dataset["categories"]]
    for image in list(oracle.imgs.values())[::5]:
        wanted = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in oracle.imgToAnns[image["id"]]:
            label = order.index(annotation["category_id"]) + 1
            np.maximum(wanted, oracle.annToMask(annotation) * np.uint8(label), out=wanted)
        np.testing.assert_array_equal(source.masks[places[image["file_name"]]], wanted)

"""COCO data sets: what lies on top of what, every fault as one line, pycocotools' own reader."""

import contextlib
import copy
import io
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.segmentation.coco import BACKGROUND, coco

WIDTH, HEIGHT = 8, 6


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


def put(root: Path, name: str, values: Any) -> None:
    (root / name).write_text(json.dumps(values))


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
        put(root, name, contents())
    return root


def said_of(root: Path, edit, split: str = "train", **options) -> str:
    """What is said of a changed file, in one line."""
    values = contents()
    edit(values)
    put(root, "train.json" if split == "train" else "val.json", values)
    with pytest.raises(UserError) as caught:
        coco(split, root=str(root), **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


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
    assert [source.key(0), source.key(1)] == ["batch_01/1.jpg", "batch_01/2.jpg"]


def test_where_things_are_found(root: Path, monkeypatch: pytest.MonkeyPatch):
    before = coco("test", root=str(root))
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(root.parent))
    assert coco("test", root="trash").digest() == before.digest()
    (root / "images" / "val").mkdir(parents=True)
    (root / "batch_01").rename(root / "images" / "val" / "batch_01")
    (root / "annotations").mkdir()
    (root / "val.json").rename(root / "annotations" / "all.json")
    options = {"test": "annotations/all.json", "test_images": "images/val"}
    after = coco("test", root=str(root), **options)
    assert isinstance(after, ArraySource) and after.digest() == before.digest()
    assert after.key(0) == "batch_01/1.jpg", "as the file has it"


def test_ids_may_be_text_and_categories_in_another_order(root: Path):
    values = contents()
    for image, annotation in itertools.zip_longest(values["images"], values["annotations"]):
        annotation["image_id"] = "image 0"
        del annotation["id"]
        if image:
            image["id"] = f"image {image['id']}"
    values["categories"] = values["categories"][::-1]
    put(root, "val.json", values)
    one, other = (coco(split, root=str(root)) for split in ("train", "test"))
    assert one.digest() == other.digest()


def test_a_test_set_without_annotations_is_void(root: Path):
    values = contents()
    for key in ("annotations", "categories"):
        del values[key]
        put(root, "val.json", values)
        source = coco("test", root=str(root))
        assert (source[0][1] == 255).all() and source[0][1].shape == (HEIGHT, WIDTH)
    put(root, "train.json", contents() | {"annotations": []})
    with pytest.raises(UserError, match="train.json: no annotations to learn from"):
        coco("train", root=str(root))


def test_the_digest_sees_what_is_drawn(root: Path):
    def digest(edit=lambda values: None, **options) -> str:
        values = contents()
        edit(values)
        put(root, "train.json", values)
        return coco("train", root=str(root), **options).digest()

    assert digest() == digest(lambda v: v.update(info={"year": 2022}, licenses=[]))
    others = [
        digest(lambda v: v["annotations"].pop()),
        digest(changed("annotations", category_id=7)),
        digest(changed("annotations", segmentation=[box(0, 0, 4, 5)])),
        digest(overlap="order"),
    ]
    assert len({digest(), *others}) == 5


# -- faults ----------------------------------------------------------------------------------------


def changed(key: str, **changes):
    """Changes of the first image or annotation."""
    return lambda values: values[key][0].update(changes)


def categories(*more: dict):
    return lambda values: values.update(categories=[*CATEGORIES, *more])


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda v: v.clear(), "train.json: images: Field required. A COCO file has images"),
        (lambda v: v["images"][1].pop("file_name"), "train.json: images.1.file_name: Field requ"),
        (lambda v: v["categories"].clear(), "train.json: no categories, which say what there is"),
        (changed("images", height=0), "images.0.height: Input should be greater than or equal"),
        (changed("images", width=10**4, height=10**4), "has 10000x10000 pixels; at most 64,000"),
        (changed("images", id=1), "train.json: two images have the id 1; correct one"),
        (changed("images", file_name="batch_01/9.jpg"), "batch_01/9.jpg (1 of 2 are missing)"),
        (changed("images", file_name="../9.jpg"), "leads outside"),
        (changed("annotations", image_id="0"), 'annotation 1: no image has the id "0". Correct'),
        (changed("annotations", category_id=1), "annotation 1: no category has the id 1. Correct"),
        (changed("annotations", segmentation=[[1, 2]]), "annotation 1: a polygon is [1, 2]; 3 or"),
        (changed("annotations", id=None, segmentation=[]), "annotation 0: its segmentation is []"),
        (categories({"id": 1, "name": "glass"}), 'two categories have the name "glass"'),
        (categories({"id": 1, "name": "background"}), "a category is called 'background', which"),
        (categories(*({"id": -i, "name": f"{i}"} for i in range(252))), "coco: 256 classes; masks"),
    ],
)
def test_a_faulty_file(root: Path, edit, said: str):
    assert said in said_of(root, edit)


def test_categories_that_were_not_learned(root: Path):
    said = said_of(root, lambda v: v["categories"][1].update(name="Glass"), "test")
    assert f'{root}/val.json: category 3 is "Glass", in {root}/train.json it is "glass"' in said
    said = said_of(root, lambda v: v.update(categories=CATEGORIES[:2], annotations=[]), "test")
    assert "val.json: category 12 is null, in" in said and 'it is "metal"' in said


def test_files_that_are_not_there_or_no_json(root: Path):
    for name in ("none.json", "."):
        with pytest.raises(UserError, match="coco: cannot read .*; `root` names the folder"):
            coco("train", root=str(root), train=name)
    for content in (b"", b"[1, 2]", b"\xff\xfe", b"[" * 100_000):
        (root / "train.json").write_bytes(content)
        with pytest.raises(UserError, match="train.json: .*A COCO file has images"):
            coco("train", root=str(root))


def test_a_link_that_leads_outside(root: Path):
    secret = root.parent / "secret.jpg"
    (root / "batch_01" / "2.jpg").rename(secret)
    (root / "batch_01" / "2.jpg").symlink_to(secret)
    assert "batch_01/2.jpg leads outside" in said_of(root, lambda values: None)


# -- the real thing --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
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

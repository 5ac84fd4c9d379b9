"""Pseudo labels: what is kept, what the report says of it, what lands on the disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sets import drawn, refused, same
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import datasets
from vision_tutorial.core.sources import ArraySource, Source
from vision_tutorial.data import shapes  # noqa: F401  (fills the registry)
from vision_tutorial.segmentation.datasets import mask_folder, shared_rows, with_pseudo_labels
from vision_tutorial.segmentation.pseudo_labels import (
    PseudoLabelReport,
    class_pixels,
    leaked_images,
    write_folder,
)

CLASSES = ("background", "paper", "glass")


def report_of(min_confidence=0.0, pixel_threshold=0.0, **options):
    rule = {"min_confidence": min_confidence, "pixel_threshold": pixel_threshold}
    return PseudoLabelReport(CLASSES, ["runs/r1/x"], **rule, **options)


def sure_of(ids, confidences):
    """Probabilities (3, H, W) whose likeliest class is `ids`, as sure as said."""
    ids, confidences = np.array(ids), np.array(confidences, np.float32)
    rest = (1 - confidences) / 2
    return torch.tensor(np.where(np.arange(3)[:, None, None] == ids, confidences, rest))


@pytest.mark.parametrize(
    ("rule", "mask", "dropped"),
    [
        ((0.66, 0), [[0, 1], [2, 1]], "mean confidence below min_confidence"),
        ((0, 0.5), [[0, 1], [2, 255]], None),  # a pixel on it is kept
        ((0, 0.51), [[0, 1], [255, 255]], None),
        ((0.64, 0.85), [[0, 255], [255, 255]], None),
        ((0, 0.95), [[255, 255], [255, 255]], "no pixel reaches pixel_threshold"),
    ],
)
def test_a_rule_keeps_images_and_pixels(rule, mask, dropped):
    report = report_of(*rule)
    made = report.enter("a", sure_of([[0, 1], [2, 1]], [[0.9, 0.8], [0.5, 0.4]]))
    assert made.dtype == np.uint8 and made.tolist() == mask
    assert report.images[0]["dropped"] == dropped and report.before.tolist() == [1, 2, 1]
    assert report.images[0]["confidence"] == pytest.approx(0.65)


def test_thresholds_and_classes_that_do_not_fit():
    for value in (1.5, np.nan):
        with pytest.raises(UserError, match=f"pixel_threshold is {value}"):
            report_of(pixel_threshold=value)
    probabilities = torch.zeros(256, 1, 1)
    probabilities[254] = 1
    report = PseudoLabelReport(["x"] * 255, [])
    assert report.enter("a", probabilities[:255]) == 254
    with pytest.raises(UserError, match="256 classes"):
        report.enter("a", probabilities)


def test_pixels_are_counted_without_the_ignored():
    masks = [np.array([[0, 1], [255, 1]], np.uint8), np.array([[2]], np.uint8)]
    assert class_pixels(masks, 4).tolist() == [1, 2, 1, 0]
    assert class_pixels([], 2).tolist() == [0, 0]
    with pytest.raises(UserError, match="class id 2 in a mask; ids are 0 to 1"):
        class_pixels(masks, 2)


@pytest.fixture
def unlabelled(tmp_path):
    """Three images and their predictions: sure, half sure, unsure."""
    rng = np.random.default_rng(0)
    made = []
    for name, confidences in (
        ("a.png", [[1.0, 0.9], [0.9, 0.8]]),
        ("b.jpg", [[0.9, 0.9], [0.4, 0.4]]),
        ("c.png", [[0.4, 0.4], [0.4, 0.4]]),
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).save(path)
        made.append((path, sure_of([[0, 1], [2, 2]], confidences)))
    return made


def listed(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_of_pseudo_labels(tmp_path, unlabelled):
    target = tmp_path / "pseudo"
    report = report_of(0.5, 0.85, labelled=[10, 10, 0])
    write_folder(target, iter(unlabelled), report)
    names = ["images/a.png", "images/b.jpg", "ledger.json", "masks/a.png", "masks/b.png"]
    assert listed(target) == names
    assert np.array(Image.open(target / "masks/a.png")).tolist() == [[0, 1], [2, 255]]
    assert np.array(Image.open(target / "masks/b.png")).tolist() == [[0, 1], [255, 255]]
    assert (target / "images/b.jpg").read_bytes() == unlabelled[1][0].read_bytes()
    found = json.loads((target / "ledger.json").read_text())
    images = found.pop("images")
    assert [(p["name"], p["dropped"] is None) for p in images] == [
        ("a.png", True),
        ("b.jpg", True),
        ("c.png", False),
    ]
    assert found == {
        "runs": ["runs/r1/x"],
        "rule": {"min_confidence": 0.5, "pixel_threshold": 0.85},
        "unlabelled": 3,
        "kept": 2,
        "dropped": {"mean confidence below min_confidence": 1},
        "confidence": pytest.approx((0.9 + 0.65 + 0.4) / 3),
        "confidence_kept": pytest.approx((0.9 + 0.65) / 2),
        "ignored_kept": pytest.approx((0.25 + 0.5) / 2),
        "classes": list(CLASSES),
        "pixels": {"before": [3, 3, 6], "after": [2, 2, 1], "labelled": [10, 10, 0]},
        "shift": {"before": pytest.approx(0.3), "labelled": pytest.approx(0.2)},
        "twins": [],
    }
    assert report.messages() == [
        "2 of 3 images kept; 1 dropped: mean confidence below min_confidence; "
        "class shares 30.0 % off all predictions (total variation); "
        "class shares 20.0 % off the labelled set (total variation)"
    ]
    report.labelled = [0, 0, 0]
    assert report.plain()["shift"]["labelled"] is None


def test_images_keep_their_folders(tmp_path, unlabelled):
    path, probabilities = unlabelled[0]
    (path.parent / "sub").mkdir()
    same_name = path.parent / "sub" / path.name
    same_name.write_bytes(path.read_bytes())
    both = [(path, probabilities), (same_name, probabilities)]
    write_folder(tmp_path / "pseudo", both, report_of(), root=path.parent)
    names = [f"{kind}/{name}" for kind in ("images", "masks") for name in ("a.png", "sub/a.png")]
    assert listed(tmp_path / "pseudo") == sorted([*names, "ledger.json"])
    ledger = json.loads((tmp_path / "pseudo" / "ledger.json").read_text())
    assert [image["name"] for image in ledger["images"]] == ["a.png", "sub/a.png"]


def refused_folder(target, predictions, *rule):
    """What is said; nothing may be left behind."""
    before = listed(target.parent)
    with pytest.raises(UserError) as error:
        write_folder(target, predictions, report_of(*rule))
    assert listed(target.parent) == before
    return str(error.value)


def test_what_makes_no_folder_is_refused_and_nothing_is_left(tmp_path, unlabelled):
    target = tmp_path / "pseudo"
    said = refused_folder(target, unlabelled, 0.95)
    assert "0 of 3 images kept" in said and "highest mean confidence is 0.9;" in said
    assert "0 of 0 images" in refused_folder(target, [])
    path, probabilities = unlabelled[0]
    said = refused_folder(target, [unlabelled[1], (path, probabilities[:, :1])])
    assert "a.png is 2x2, its prediction 2x1; resize" in said
    again = path.with_suffix(".bmp")
    Image.open(path).save(again)
    assert "a second image called a" in refused_folder(
        target, [unlabelled[0], (again, probabilities)]
    )
    path.write_bytes(b"no image")
    assert "a.png: not a readable image" in refused_folder(target, unlabelled)
    target.mkdir()
    (target / "mine").touch()
    assert "already" in refused_folder(target, unlabelled[1:])


def image(seed, size=(4, 5)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_twins_are_found_by_pixels_and_by_name():
    evaluation = [("val/x.jpg", image(0)), ("val/y.jpg", image(1))]
    unlabelled = [
        ("renamed.png", image(1)),
        ("other/x.png", image(2)),
        ("y.png", image(1)),
        ("new.jpg", image(3)),
        ("turned.jpg", image(0).reshape(5, 4, 3)),  # the same bytes, another image
        ("z.png", np.asfortranarray(image(0))),  # the same pixels in another order of memory
    ]
    report = report_of(leaks=leaked_images(iter(unlabelled), iter(evaluation)))
    assert [tuple(leak.values()) for leak in report.plain()["twins"]] == [
        ("renamed.png", "val/y.jpg", "pixels"),
        ("other/x.png", "val/x.jpg", "name"),
        ("y.png", "val/y.jpg", "pixels"),
        ("z.png", "val/x.jpg", "pixels"),
    ]
    said = report.messages()[1]
    assert "4 of the unlabelled images" in said and "3 by their pixels, 1 by name only" in said


# -- learned from, beside a labelled set -----------------------------------------------------------


@pytest.fixture
def guessed(pets: Path, cache: Path) -> Path:
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

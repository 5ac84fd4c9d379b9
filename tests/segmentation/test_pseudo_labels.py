"""Pseudo labels: what is kept, what the report says of it, what lands on the disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.segmentation.pseudo_labels import (
    PseudoLabelReport,
    Rule,
    class_pixels,
    leaked_images,
    pseudo_label,
    write_folder,
)

CLASSES = ("background", "paper", "glass")


def sure_of(ids, confidences):
    """Probabilities (3, H, W) whose likeliest class is `ids`, as sure as said."""
    ids, confidences = np.array(ids), np.array(confidences, np.float32)
    rest = (1 - confidences) / 2
    return torch.tensor(np.where(np.arange(3)[:, None, None] == ids, confidences, rest))


EXAMPLE = sure_of([[0, 1], [2, 1]], [[0.9, 0.8], [0.5, 0.4]])  # 0.65 on average


@pytest.mark.parametrize(
    ("rule", "mask", "dropped"),
    [
        (Rule(), [[0, 1], [2, 1]], None),
        (Rule(min_confidence=0.66), [[0, 1], [2, 1]], "mean confidence below min_confidence"),
        (Rule(pixel_threshold=0.5), [[0, 1], [2, 255]], None),  # a pixel on it is kept
        (Rule(pixel_threshold=0.51), [[0, 1], [255, 255]], None),
        (Rule(0.64, 0.85), [[0, 255], [255, 255]], None),
        (Rule(0, 0.95), [[255, 255], [255, 255]], "no pixel reaches pixel_threshold"),
    ],
)
def test_a_rule_keeps_images_and_pixels(rule, mask, dropped):
    made = pseudo_label(EXAMPLE, rule)
    assert made.mask.dtype == made.predicted.dtype == np.uint8
    assert made.mask.tolist() == mask and made.dropped == dropped
    assert made.predicted.tolist() == [[0, 1], [2, 1]]
    assert made.confidence == pytest.approx(0.65)


def test_as_many_classes_as_a_mask_holds():
    probabilities = torch.zeros(255, 1, 1)
    probabilities[254] = 1
    assert pseudo_label(probabilities, Rule()).mask == 254
    with pytest.raises(UserError, match="256 classes"):
        pseudo_label(torch.full((256, 1, 1), 1 / 256), Rule())


def test_thresholds_are_probabilities():
    for value in (1.5, -0.1, np.nan):
        with pytest.raises(UserError, match=f"pixel_threshold is {value}"):
            Rule(pixel_threshold=value)


def test_pixels_are_counted_without_the_ignored():
    masks = [np.array([[0, 1], [255, 1]], np.uint8), np.array([[2]], np.uint8)]
    assert class_pixels(masks, 4).tolist() == [1, 2, 1, 0]
    assert class_pixels([], 2).tolist() == [0, 0]
    with pytest.raises(UserError, match="class id 2 in a mask; there are only 2"):
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
    report = PseudoLabelReport(CLASSES, Rule(0.5, 0.85), ["runs/r1/x"], labelled=[10, 10, 0])
    write_folder(target, iter(unlabelled), report)
    names = ["images/a.png", "images/b.jpg", "ledger.json", "masks/a.png", "masks/b.png"]
    assert listed(target) == names
    assert np.array(Image.open(target / "masks/a.png")).tolist() == [[0, 1], [2, 255]]
    assert np.array(Image.open(target / "masks/b.png")).tolist() == [[0, 1], [255, 255]]
    assert (target / "images/b.jpg").read_bytes() == unlabelled[1][0].read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    found = json.loads((target / "ledger.json").read_text())
    assert found["runs"] == ["runs/r1/x"]
    assert found["rule"] == {"min_confidence": 0.5, "pixel_threshold": 0.85}
    assert (found["unlabelled"], found["kept"]) == (3, 2)
    assert found["dropped"] == {"mean confidence below min_confidence": 1}
    assert found["confidence"] == pytest.approx((0.9 + 0.65 + 0.4) / 3)
    assert found["confidence_kept"] == pytest.approx((0.9 + 0.65) / 2)
    assert found["ignored_kept"] == pytest.approx((0.25 + 0.5) / 2)
    assert found["classes"] == list(CLASSES)
    assert found["pixels"] == {"before": [3, 3, 6], "after": [2, 2, 1], "labelled": [10, 10, 0]}
    assert found["shift"] == {"before": pytest.approx(0.3), "labelled": pytest.approx(0.2)}
    assert [p["name"] for p in found["images"]] == ["a.png", "b.jpg", "c.png"]
    assert [p["dropped"] is None for p in found["images"]] == [True, True, False]
    assert found["twins"] == []
    assert report.summary() == (
        "2 of 3 images kept; 1 dropped: mean confidence below min_confidence; "
        "class shares 30.0 % off all predictions (total variation); "
        "class shares 20.0 % off the labelled set (total variation)"
    )


def test_a_shift_needs_a_labelled_set_and_pixels(tmp_path, unlabelled):
    report = PseudoLabelReport(CLASSES, Rule(), [])
    write_folder(tmp_path / "pseudo", unlabelled, report)
    assert report.plain()["shift"] == {"before": 0} and "labelled" not in report.plain()["pixels"]
    report.labelled = [0, 0, 0]
    assert report.plain()["shift"] == {"before": 0, "labelled": None}


def refused(target, predictions, rule=None):
    """What is said; nothing may be left behind."""
    before = listed(target.parent)
    with pytest.raises(UserError) as error:
        write_folder(target, predictions, PseudoLabelReport(CLASSES, rule or Rule(), []))
    assert listed(target.parent) == before and not target.exists()
    return str(error.value)


def test_nothing_kept_is_an_error_that_says_how_near_it_was(tmp_path, unlabelled):
    said = refused(tmp_path / "pseudo", unlabelled, Rule(min_confidence=0.95))
    assert "0 of 3 images kept" in said and "highest mean confidence is 0.9;" in said
    assert "0 of 0 images" in refused(tmp_path / "pseudo", [])


def test_images_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path, unlabelled):
    path, probabilities = unlabelled[0]
    target = tmp_path / "pseudo"
    said = refused(target, [unlabelled[1], (path, probabilities[:, :1])])
    assert "a.png is 2x2, its prediction 2x1; resize" in said
    again = path.with_suffix(".bmp")
    Image.open(path).save(again)
    assert "a second image called a" in refused(target, [unlabelled[0], (again, probabilities)])
    path.write_bytes(b"no image")
    assert "a.png: not a readable image" in refused(target, unlabelled)
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(UserError, match="already"):
        write_folder(target, unlabelled[1:], PseudoLabelReport(CLASSES, Rule(), []))
    assert listed(target) == ["mine"]


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
    found = leaked_images(iter(unlabelled), iter(evaluation))
    assert [tuple(leak.values()) for leak in found] == [
        ("renamed.png", "val/y.jpg", "pixels"),
        ("other/x.png", "val/x.jpg", "name"),
        ("y.png", "val/y.jpg", "pixels"),
        ("z.png", "val/x.jpg", "pixels"),
    ]
    report = PseudoLabelReport(CLASSES, Rule(), [], leaks=found)
    said = report.leak_warning()
    assert "4 of the unlabelled images" in said and "3 by their pixels, 1 by name only" in said
    wanted = {"name": "renamed.png", "evaluation": "val/y.jpg", "same": "pixels"}
    assert report.plain()["twins"][0] == wanted
    assert PseudoLabelReport(CLASSES, Rule(), []).leak_warning() is None

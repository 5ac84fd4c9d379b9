"""The contest's CSV: what is written is read back; what is wrong with one is one line."""

import csv

import numpy as np
import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.segmentation import submission

MASKS = {
    "batch_01/0001.jpg": np.arange(16, dtype=np.uint8).reshape(4, 4) % 5,
    "가.jpg": np.zeros((4, 4), np.uint8),
}
BIG = np.full((submission.SIZE, submission.SIZE), 10, np.uint8)  # its row is longer than csv allows


def test_the_file_is_what_the_contest_wants(tmp_path):
    path = tmp_path / "s.csv"
    assert submission.write(path, MASKS.items()) == 2
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_id", "PredictionString"]
    assert rows[1] == ["batch_01/0001.jpg", "0 1 2 3 4 0 1 2 3 4 0 1 2 3 4 0"]
    found = submission.read(path, 5, 4)
    assert list(found) == list(MASKS)
    assert all((found[name] == MASKS[name]).all() for name in MASKS)
    assert list(tmp_path.iterdir()) == [path]
    submission.write(path, [("a", BIG)])
    assert (submission.read(path, 11)["a"] == BIG).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,mask\n", "its first line is 'id,mask'"),
        ("image_id,PredictionString\na\n", "line 2: 1 cells"),
        ("image_id,PredictionString\na,0 1 2\n", "'a' has 3 ids from 0 to 2; 4x4 = 16 from 0"),
        (
            "image_id,PredictionString\na," + "0 " * 15 + "5\n",
            "ids from 0 to 5; 4x4 = 16 from 0 to 4",
        ),
        ("image_id,PredictionString\na," + "0 " * 15 + "x\n", "not whole numbers"),
        ("image_id,PredictionString\n" + ("a," + "0 " * 16 + "\n") * 2, "a second time"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, complaint):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="s.csv") as caught:
        submission.read(tmp_path / "s.csv", 5, 4)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "s.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("s.csv", "missing.csv"):
        with pytest.raises(UserError, match="cannot read"):
            submission.read(tmp_path / name, 5)


def test_the_images_must_be_those_that_are_scored(tmp_path):
    submission.check_names(tmp_path, MASKS, MASKS)
    with pytest.raises(UserError, match=r"of 3 images 1 are missing \['new.jpg'\], and 0 are"):
        submission.check_names(tmp_path, MASKS, [*MASKS, "new.jpg"])
    with pytest.raises(UserError, match=r"1 are unknown here \['batch_01/0001.jpg'\]"):
        submission.check_names(tmp_path, MASKS, ["가.jpg"])

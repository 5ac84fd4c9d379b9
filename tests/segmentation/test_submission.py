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
    found = submission.read(path, 5, MASKS, 4)
    assert list(found) == list(MASKS)
    assert all((found[name] == MASKS[name]).all() for name in MASKS)
    assert list(tmp_path.iterdir()) == [path]
    for wanted, said in (
        ([*MASKS, "new.jpg"], r"of 3 images 1 are missing \['new.jpg'\], and 0 are"),
        (["가.jpg"], r"1 are unknown here \['batch_01/0001.jpg'\]"),
    ):
        with pytest.raises(UserError, match=said):
            submission.read(path, 5, wanted, 4)
    content = path.read_bytes()
    for other in (
        content.replace(b"\r\n", b"\n"),
        b"\xef\xbb\xbf" + content,
        content + b"\r\n\r\n",
    ):
        path.write_bytes(other)  # as other programs save it
        assert (submission.read(path, 5, MASKS, 4)["가.jpg"] == 0).all()
    submission.write(path, [("a", BIG)])
    assert (submission.read(path, 11, ["a"])["a"] == BIG).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,mask\n", "its first line is 'id,mask'"),
        ("image_id,PredictionString\na\n", "line 2: 'a' has 0 ids"),
        ("image_id,PredictionString\na,1,2\n", "line 2: 'a' has 0 ids"),
        ("image_id,PredictionString\na,0 1 2\n", "'a' has 3 ids from 0 to 2; 4x4 = 16 from 0"),
        (f"image_id,PredictionString\na,{'0 ' * 15}5\n", "ids from 0 to 5; 4x4 = 16 from 0 to 4"),
        (f"image_id,PredictionString\na,{'0 ' * 15}x\n", "'a' has 0 ids from 0 to 0"),
        (
            "image_id,PredictionString\n" + f"a,{'0 ' * 16}\n" * 2,
            "line 3: 'a' has 16 ids from 0 to 0",
        ),
        (b"\xff\xfe\x00\x01", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, complaint):
    path = tmp_path / "s.csv"
    if text:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="s.csv") as caught:
        submission.read(path, 5, ["a"], 4)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)

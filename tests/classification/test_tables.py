"""Labels in a table: a CSV file beside a folder of images, and data sets of the hub as parquet."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import train

from vision_tutorial.classification.tables import csv_labels, hub
from vision_tutorial.core.errors import UserError


def image(value: int) -> Image.Image:
    return Image.new("RGB", (18, 16), (value, 20, 30))


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """A folder as contests have it: train/, test/, train.csv with names without endings."""
    root = tmp_path / "dogs"
    for number in range(20):
        for split in ("train", "test"):
            path = root / split / f"{split}{number}.{'png' if number % 2 else 'JPG'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image(number).save(path, "PNG")
    rows = [f"train{number},{number % 3 + 9}" for number in range(19)]  # one image has no row
    (root / "train.csv").write_text("\ufeffId,label\n" + "\n".join(rows) + "\n", "utf-8")
    return root


def test_a_contest_s_folder_trains_with_a_part_held_out(contest: Path, tmp_path: Path) -> None:
    source = csv_labels("train", root=str(contest))
    assert source.classes == ("9", "10", "11")  # numbers in their order
    assert source.targets.tolist() == [number % 3 for number in range(19)]
    assert [source.key(n) for n in (0, 1)] == ["train0.JPG", "train1.png"]
    assert source[7][0].getpixel((0, 0)) == (7, 20, 30)
    assert "1 x not in the table" in " ".join(source.notices)
    with pytest.raises(UserError, match="no labelled test split; set holdout: 0.1"):
        csv_labels("test", root=str(contest))
    words = ["recipes/debug.yaml", f"dataset={{csv_labels: {{root: {contest}}}}}", "holdout=0.3"]
    run = train(tmp_path, *words, "batch_size=8", "epochs=1", "threads=1")
    assert '"9", "10", "11"' in " ".join((run / "classes.json").read_text().split())


def test_other_columns_and_a_test_table(contest: Path) -> None:
    text = (contest / "train.csv").read_text("utf-8-sig")
    (contest / "breeds.csv").write_text(text.replace("Id,label", "Picture,breed"))
    with pytest.raises(UserError, match="columns are 'Picture, breed'; one of image, id, "):
        csv_labels("train", root=str(contest), table="breeds.csv")
    options = {"root": str(contest), "table": "breeds.csv", "name_column": "picture"}
    with pytest.raises(UserError, match="columns are 'Picture, breed'; one of label, class, "):
        csv_labels("train", **options)
    with pytest.raises(UserError, match="'Picture, breed'; 'bread' is expected"):
        csv_labels("train", **options, label_column="bread")
    options |= {"label_column": "breed", "test_table": "test.csv", "test_images": "test"}
    (contest / "test.csv").write_text("picture,breed\ntest3.png,11\ntest4,9\n")
    assert csv_labels("test", **options).targets.tolist() == [2, 0]
    (contest / "test.csv").write_text("picture,breed\ntest3.png,12\n")
    with pytest.raises(UserError, match="test.csv has classes that breeds.csv has not: 12"):
        csv_labels("test", **options)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "cannot read .*train.csv as a table of labels"),
        ("", "its columns are ''"),
        ("id,label\n", "has no rows"),
        ("id,label\ntrain0,1\ntrain0,2\n", "line 3: 'train0' is there twice"),
        ("id,label\ntrain0,1\ntrain1,\n", "line 3: 'train1' .*has no label"),
        ("id,label\ntrain0\n", "line 2: 'train0' .*has no label"),
        ("id,label\n../test/test0.JPG,1\n", "lacks 1 image of the table: ../test/test0.JPG"),
        ("id,label\ntrain2,1\n", "several files called train2; write their endings"),
    ],
)
def test_a_table_that_cannot_be_meant(rows: str | None, said: str, contest: Path) -> None:
    (contest / "train.csv").unlink()
    image(0).save(contest / "train/train2.png")
    if rows is not None:
        (contest / "train.csv").write_text(rows)
    with pytest.raises(UserError, match=said) as caught:
        csv_labels("train", root=str(contest))
    assert "\n" not in str(caught.value)


def test_images_that_are_damaged_or_elsewhere(contest: Path) -> None:
    with pytest.raises(UserError, match="no folder .*/pictures; `images` names it"):
        csv_labels("train", root=str(contest), images="pictures")
    (contest / "train/train3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="train3.png.*skip_unreadable: true"):
        csv_labels("train", root=str(contest))
    assert len(csv_labels("train", root=str(contest), skip_unreadable=True)) == 18


# -- the hub's -------------------------------------------------------------------------------------


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    image(value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found.disable_progress_bars()
    return found


@pytest.fixture
def parquet(library: object, tmp_path: Path) -> Path:
    """A data set as the hub has it: splits in files, a column of images, one of named classes."""
    names = library.ClassLabel(names=["cat", "dog", "eel"])
    features = library.Features({"img": library.Image(), "coarse": names, "fine": names})
    for split, count in (("train", 30), ("test", 9)):
        labels = [number % 3 for number in range(count)]
        images = [{"bytes": png(number), "path": None} for number in range(count)]
        rows = {"img": images, "coarse": labels[::-1], "fine": labels}
        made = library.Dataset.from_dict(rows, features=features)
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        made.to_parquet(tmp_path / f"set/data/{split}-00000-of-00001.parquet")
    return tmp_path / "set"


def test_parquet_files_of_the_hub_train(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(parquet.parent))
    source = hub("test", name="set", label="fine")  # below VISION_TUTORIAL_DATA
    assert source.classes == ("cat", "dog", "eel") and source.targets.dtype == np.int64
    assert source.targets.tolist() == [0, 1, 2] * 3 and len(source) == 9
    assert source[4][0].getpixel((0, 0)) == (4, 20, 30) and source[4][1] == 1
    assert source.digest() == hub("test", name=str(parquet), label="fine").digest()
    assert source.digest() != hub("test", name=str(parquet), label="coarse").digest()
    for options, said in (
        ({}, "which column is the label\\? Set `label` to one of: coarse, fine"),
        ({"label": "find"}, "no column called 'find'.*fine"),
        ({"label": "fine", "image": "coarse"}, "column 'coarse' of .* holds no images"),
        ({"label": "fine", "test": "val"}, "cannot load the split 'val' of .*train and test name"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            hub("test", name=str(parquet), **options)
        assert "\n" not in str(caught.value)
    words = f"dataset={{hub: {{name: {parquet}, label: fine, train: 'train[:24]'}}}}"
    run = train(
        tmp_path, "recipes/debug.yaml", words, "batch_size=8", "epochs=1", "threads=1", "workers=1"
    )
    assert '"cat"' in (run / "classes.json").read_text()


def test_parquet_files_without_named_classes(library: object, tmp_path: Path) -> None:
    pandas, folder = pytest.importorskip("pandas"), tmp_path / "plain"
    folder.mkdir()

    def write(split: str, breeds: list, pictures: list | None = None) -> None:
        pictures = pictures or [{"bytes": png(n), "path": None} for n in range(len(breeds))]
        rows = pandas.DataFrame({"picture": pictures, "breed": breeds})
        rows.to_parquet(folder / f"{split}.parquet")

    write("train", ["pug", "elk", "pug"])
    write("test", ["elk", "pug"])
    options = {"name": str(folder), "image": "picture"}
    assert hub("train", **options).classes == ("elk", "pug")
    assert hub("test", **options).targets.tolist() == [0, 1]
    with pytest.raises(UserError, match="which column is the image\\? .*picture, breed"):
        hub("train", name=str(folder))
    write("test", ["elk", "cow"])
    with pytest.raises(UserError, match="'test' of .* has classes that its training .* not: cow"):
        hub("test", **options)
    write("test", ["elk", None])
    with pytest.raises(UserError, match="1 of 2 rows have no label \\('breed'\\)"):
        hub("test", **options)
    write("test", ["elk", "pug"], [None, {"bytes": b"no image", "path": None}])
    source = hub("test", **options)
    for row, said in ((0, "row 0: no image in the column"), (1, "row 1")):
        with pytest.raises(UserError, match=said):
            source[row]


def test_the_hub_is_asked_once_and_offline_is_one_line(
    library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("vision_tutorial.classification.tables.look_for_hub", lambda: None)
    with pytest.raises(
        UserError, match="cannot load the split 'train' of nobody/nothing"
    ) as caught:
        hub("train", name="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'vision-tutorial\[hub\]'"):
        hub("train", name=str(tmp_path))

"""What a run leaves to look at; and that nothing of it stands in a training's way."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL, train

from vision_tutorial import artifacts
from vision_tutorial.core.atomic import read_json
from vision_tutorial.data.shapes import shapes
from vision_tutorial.report import plots
from vision_tutorial.runs.reader import read
from vision_tutorial.segmentation.visualisation import PALETTE

NAMES = {"curves.png", "confusion.png", "train_batch.png", "val_predictions.png", "metrics.csv"}
DENSE = [
    "recipes/segmentation/quickstart.yaml",
    "model={unet: {channels: [8, 16]}}",
    "aux_loss=null",
]
DENSE += ["dataset={shapes: {masks: true, size: 32, train: 32, test: 8}}", "epochs=1", "warmup={}"]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISION_TUTORIAL_ARTIFACTS", raising=False)


@pytest.mark.parametrize(
    "words",
    [["recipes/debug.yaml", *SMALL], [*DENSE, "batch_size=8", "threads=1"]],
    ids=["labels", "masks"],
)
def test_a_run_leaves_images(words: list[str], tmp_path: Path) -> None:
    run = train(tmp_path, *words)
    assert NAMES <= {path.name for path in run.iterdir()}
    for path in run.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 150 and len(np.unique(pixels)) > 20, path.name
    if "segmentation" in words[0]:
        pixels = np.asarray(Image.open(run / "val_predictions.png").convert("RGB"))
        source = shapes("test", masks=True, size=32, train=32, test=8)
        ids = np.unique([np.asarray(source[index][1]) for index in (0, 7)])
        drawn = {tuple(rgb) for rgb in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
        assert {tuple(PALETTE[n].tolist()) for n in ids} <= drawn, "the legend's colours"
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [row["epoch"] for row in read(run).rows]


def test_the_confusion_matrix_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    table = read_json(train(tmp_path, "recipes/debug.yaml", *SMALL) / "classes.json")
    matrix = np.array(table["confusion"])
    assert matrix.sum(1).tolist() == table["images"]
    hits = [100 * row[i] / row.sum() for i, row in enumerate(matrix)]
    assert hits == pytest.approx(table["top1"])


def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tmp_path / "a", "recipes/debug.yaml", *SMALL, "artifacts=false")
    assert not NAMES & {path.name for path in run.iterdir()}
    monkeypatch.setenv("VISION_TUTORIAL_ARTIFACTS", "0")
    run = train(tmp_path / "b", "recipes/debug.yaml", *SMALL)
    assert not NAMES & {path.name for path in run.iterdir()}


def test_a_failure_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(artifacts.plots, "curves", fail)
    assert read(train(tmp_path, "recipes/debug.yaml", *SMALL)).status == "done"


def test_class_names_are_text_and_not_formulas(tmp_path: Path) -> None:
    names = ["$x^2$", "자동차", "a_b", "\x1b[31m"]
    figure = plots.confusion(np.eye(4, dtype=int).tolist(), names, "images")
    assert plots.save(figure, tmp_path / "c.png").shape[2] == 3
    assert plots.share_words(["cat", "dog"], [0.3, 0.7]) == "dog 0.70 + cat 0.30"
    assert plots.share_words(["cat", "dog"], [1.0, 0.0]) == "cat"


def test_the_log_holds_what_was_said(tmp_path: Path) -> None:
    train(tmp_path, "recipes/debug.yaml", *SMALL, "--steps", "3")
    run = train(tmp_path)  # goes on
    lines = (run / "log.txt").read_text().splitlines()
    said = [line[21:] for line in lines]
    assert all(line[:2] == "20" and line[19:21] == "  " for line in lines), "date, time, text"
    assert any(line.startswith("batch 16 = 1 process") for line in said)
    assert sum(line.startswith("epoch 1/2  lr ") for line in said) == 1
    assert "continuing at step 3 of 8" in said and said[-2].startswith("done after 2 epochs: ")
    assert any(line.startswith("paused after 0 epochs") for line in said)
    (run / "log.txt").unlink()
    (run / "log.txt").mkdir()  # cannot be written: no reason to stop
    train(tmp_path, "epochs=3")
    assert read(run).status == "done"

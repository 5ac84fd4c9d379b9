"""One `loss:` block, two tracks: the same words for class ids of images and of pixels."""

from pathlib import Path

import pytest

from vision_tutorial import train
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder

BLOCK = "loss={focal: {weight: 0.75, gamma: 2}, dice: 0.25}"
TINY = ["epochs=1", "warmup={}", "cooldown={}", "threads=1", "workers=0", "wandb={mode: disabled}"]
TINY += ["precision=fp32"]
CIFAR = ["recipes/r0.yaml", "model={test_resnet: {stem: cifar}}", "batch_size=32", "subset=96"]
CAMVID = [
    "recipes/segmentation/camvid.yaml",
    "model={fcn: {backbone: test_resnet, hidden: 16}}",
    "aux_loss=null",
    "augment=[{random_crop: {size: 96, padding: 0}}]",
    "batch_size=4",
    "subset=12",
]
DRAWN = {
    "recipes/r0.yaml": "dataset={shapes: {train: 200, test: 30}}",
    "recipes/segmentation/camvid.yaml": "dataset={shapes: {masks: true, train: 40, test: 8}}",
}
PARTS = {"focal", "focal/weighted", "dice", "dice/weighted"}


def row(words: list[str], folder: Path) -> dict:
    """The epoch of a run."""
    assert train.main([*words, BLOCK, *TINY, "--runs", str(folder), "--quiet"]) == 0
    (found,) = run_folder.read_rows(next(folder.glob("*/*/metrics.jsonl")))
    return found


def check(found: dict) -> None:
    parts = {key.removeprefix("train/loss/") for key in found if key.startswith("train/loss/")}
    assert parts == PARTS
    weighted = 0.75 * found["train/loss/focal"] + 0.25 * found["train/loss/dice"]
    assert found["train/loss"] == pytest.approx(weighted, rel=1e-5)
    assert 0 < found["train/loss/dice"] <= 1


@pytest.mark.parametrize("words", [CIFAR, CAMVID], ids=["cifar", "camvid"])
def test_on_real_images(words, data_root, tmp_path, monkeypatch):
    check(row([*words, "holdout=0.02"], tmp_path))


@pytest.mark.parametrize("words", [CIFAR, CAMVID], ids=["cifar", "camvid"])
def test_on_drawn_images(words, tmp_path):
    more = [] if words is CIFAR else ["augment=[]", "subset=null"]
    check(row([*words, DRAWN[words[0]], *more], tmp_path))


def test_the_block_is_read_the_same():
    cifar, camvid = (load(words[0], [BLOCK]).recipe.loss for words in (CIFAR, CAMVID))
    assert cifar == camvid

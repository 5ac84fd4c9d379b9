"""One `loss:` block, two tracks: the same words for class ids of images and of pixels."""

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


@pytest.mark.parametrize("words", [CIFAR, CAMVID], ids=["cifar", "camvid"])
def test_on_real_images(words, data_root, tmp_path):
    given = [*words, "holdout=0.02", BLOCK, *TINY, "--runs", str(tmp_path), "--quiet"]
    assert train.main(given) == 0
    (row,) = run_folder.read_rows(next(tmp_path.glob("*/*/metrics.jsonl")))
    parts = {key.removeprefix("train/loss/") for key in row if key.startswith("train/loss/")}
    assert parts == {"focal", "focal/weighted", "dice", "dice/weighted"}
    weighted = 0.75 * row["train/loss/focal"] + 0.25 * row["train/loss/dice"]
    assert row["train/loss"] == pytest.approx(weighted, rel=1e-5)
    assert 0 < row["train/loss/dice"] <= 1


def test_the_block_is_read_the_same():
    cifar, camvid = (load(words[0], [BLOCK]).recipe.loss for words in (CIFAR, CAMVID))
    assert cifar == camvid

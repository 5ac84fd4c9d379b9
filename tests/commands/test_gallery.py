"""The gallery command on tiny runs: images, answers, counts are those of data set and run."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from forked import Ranks
from PIL import Image
from torch import nn

from vision_tutorial import inference
from vision_tutorial import train as training
from vision_tutorial.commands import gallery as command
from vision_tutorial.core.errors import UserError
from vision_tutorial.data.executors import compiled  # noqa: F401  (numba, before the fork)
from vision_tutorial.data.shapes import shapes
from vision_tutorial.report import gallery_files

SMALL = ["threads=1", "epochs=2", "batch_size=16", "mix={cutmix: 0.5, mixup: 0.5}"]
SMALL += ["augment=[{random_crop: {size: 16}}, hflip, auto_augment, random_erasing]"]
LABELS = ["dataset={shapes: {train: 64, test: 40, size: 16}}"]
MASKS = ["task=segmentation", "dataset={shapes: {train: 48, test: 12, size: 16, masks: true}}"]
MASKS += ["model={unet: {channels: [4, 8]}}", "loss=cross_entropy", "mix=cutmix"]
MASKS += ["augment=[{random_crop: {size: 16}}, hflip]"]


def forked(main: Callable[[Sequence[str]], int], *words: object) -> int:
    """The exit code of a command in a process of its own."""
    return Ranks(1, lambda rank: main([str(word) for word in words])).join(timeout=300)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that names classes and one that segments, with their galleries."""
    root, runs = tmp_path_factory.mktemp("runs"), {}
    for id, more in (("labels", LABELS), ("masks", MASKS)):
        words = ["recipes/debug.yaml", *SMALL, *more, "--runs", root, "--id", id, "--quiet"]
        assert forked(training.main, *words) == 0
        runs[id] = root / "debug" / id
    assert forked(command.main, *runs.values()) == 0
    return runs


@pytest.fixture
def labelled(made: dict[str, Path]) -> Path:
    """The run that names classes."""
    return made["labels"]


@pytest.fixture
def masked(made: dict[str, Path]) -> Path:
    """The run that segments."""
    return made["masks"]


def pixels(run: Path, picture: gallery_files.GalleryImage) -> np.ndarray:
    image = Image.open(run / "gallery" / picture.name)
    assert image.size == (picture.width, picture.height)
    return np.asarray(image.convert("RGB"))


def test_the_confusion_matrix_is_the_run_s_accuracy(labelled: Path) -> None:
    made = gallery_files.read(labelled)
    matrix = np.array(made.confusion)
    table = json.loads((labelled / "classes.json").read_text())
    best = json.loads((labelled / "summary.json").read_text())["best"]["value"]
    assert made.images == matrix.sum() == 40
    assert 100 * matrix.trace() / 40 == pytest.approx(best)
    assert matrix.sum(1).tolist() == table["images"]
    assert (100 * matrix.diagonal() / matrix.sum(1)).tolist() == pytest.approx(table["top1"])
    assert made.classes == tuple(table["class"])


def test_answers_are_of_the_images_they_show(labelled: Path) -> None:
    made, source = gallery_files.read(labelled), shapes("test", train=64, test=40, size=16)
    matrix = np.array(made.confusion)
    assert len(made.wrong) == min(command.WRONG, 40 - matrix.trace())
    assert len(made.right) == min(command.RIGHT, matrix.trace())
    for answer in (*made.right, *made.wrong):
        picture, target = source[int(answer.key)]
        assert (pixels(labelled, answer.image) == np.asarray(picture)).all()
        assert answer.truth == source.classes[target]
        shares = [share for _, share in answer.said]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
    assert all(answer.said[0][0] == answer.truth for answer in made.right)
    assert all(answer.said[0][0] != answer.truth for answer in made.wrong)
    sure = [answer.said[0][1] for answer in made.wrong]
    assert sure == sorted(sure, reverse=True)


def test_the_preview_is_the_recipe_s(labelled: Path) -> None:
    made = gallery_files.read(labelled)
    titles = [group.title.partition("(")[0] for group in made.microscope]
    parts = ["auto_augment", "auto_augment, its parts", "random_erasing"]
    assert titles == ["", "augment", "random_crop", "hflip", *parts, "cutmix", "mixup"]
    assert len(made.microscope[5].tiles) == 25
    (start,), (mirrored,) = (made.microscope[n].tiles for n in (0, 3))
    source = shapes("train", train=64, test=40, size=16)
    index = int(start.label.removeprefix("shapes "))
    assert (pixels(labelled, start.image) == source.images[index]).all()
    assert (pixels(labelled, mirrored.image) == source.images[index][:, ::-1]).all()


def test_masks_stand_beside_their_images(masked: Path) -> None:
    made, source = gallery_files.read(masked), shapes("test", test=12, size=16, masks=True)
    assert (len(made.worst), len(made.masks)) == (command.WORST, command.AT_RANDOM)
    assert made.confusion == ()
    ious = [mask.iou for mask in made.worst]
    assert ious == sorted(ious)
    others = [mask for mask in made.masks if mask not in made.worst]
    assert others and all(mask.iou >= ious[-1] for mask in others)
    for mask in (*made.worst, *made.masks):
        picture, truth, said = (pixels(masked, image) for image in mask.images)
        original, ids = source[int(mask.key)]
        assert (picture == np.asarray(original)).all()
        legend = [[int(colour[n : n + 2], 16) for n in (1, 3, 5)] for _, colour in made.palette]
        assert (truth == np.array(legend)[ids]).all(), "to the bit the colours of the legend"
        assert said.shape == picture.shape
    assert [name for name, _ in made.palette] == [*source.classes, "void"]
    assert made.palette[0][1] == "#000000"
    chain = next(group for group in made.microscope if group.title == "augment")
    assert len(chain.tiles) > 1


def test_one_that_fails_does_not_keep_others_from_theirs(labelled, tmp_path, capfd):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.yaml").write_text((labelled / "recipe.yaml").read_text())
    assert forked(command.main, bare, labelled, "--most", 10, "--split", "train") == 2
    made = gallery_files.read(labelled)
    assert (made.images, np.sum(made.confusion), made.split) == (10, 10, "train")
    named = {image.name for image in gallery_files.images(made)}
    assert {path.name for path in (labelled / "gallery").glob("*.png")} == named
    out, err = capfd.readouterr()
    assert f"error: {bare}: " in err and "holds no checkpoint" in err
    assert out.strip() == str(labelled / "gallery" / "gallery.json")
    assert not (bare / "gallery").exists()


def test_grad_cam_beside_the_formula() -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    images, classes = torch.randn(3, 3, 12, 16), torch.tensor([4, 0, 2])
    network = nn.Sequential(body, head).eval()
    found = inference.grad_cam(network, images, classes)
    maps = body(images)
    score = head(maps).gather(1, classes[:, None]).sum()
    weights = torch.autograd.grad(score, maps)[0].mean((2, 3), keepdim=True)
    by_hand = (weights * maps).sum(1, keepdim=True).relu()
    by_hand = nn.functional.interpolate(by_hand, (12, 16), mode="bilinear")[:, 0]
    by_hand /= by_hand.amax((1, 2), keepdim=True)
    assert torch.allclose(found, by_hand.detach(), atol=1e-6) and found.amax() == 1
    with pytest.raises(UserError, match="leave it out for a transformer"):
        transformer = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8)
        inference.grad_cam(transformer, torch.randn(1, 3, 32, 32), torch.tensor([0]))


def test_a_gallery_with_grad_cam(
    labelled: Path, masked: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    pytest.importorskip("captum")
    run = shutil.copytree(labelled, tmp_path / "run")
    assert command.main([str(run), "--grad-cam"]) == 0
    made = gallery_files.read(run)
    for answer in (*made.right, *made.wrong):
        shown, image = pixels(run, answer.grad_cam), pixels(run, answer.image)
        assert shown.shape == image.shape and (shown >= image // 2).all()
    assert command.main([str(run)]) == 0
    assert gallery_files.read(run).right[0].grad_cam is None
    assert command.main([str(masked), "--grad-cam"]) == 2
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert command.main([str(run), "--grad-cam"]) == 2
    masks, missing = capsys.readouterr().err.splitlines()
    assert "is for classification" in masks and "pip install captum" in missing

"""The microscope: its images are those of training, and of Pillow's operations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional

from vision_tutorial import build
from vision_tutorial.core.registry import augments
from vision_tutorial.core.targets import VOID
from vision_tutorial.data.pipeline import DataPipeline, WorkerContext
from vision_tutorial.data.preview import Panel, apart, preview
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.signatures import static_signatures

SMALL = "dataset={shapes: {train: 60, test: 20, size: 16}}"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def recipe(repository: Path, *overrides: str) -> Recipe:
    return load(repository / "recipes" / "debug.yaml", [SMALL, *overrides]).recipe


def looked(repository: Path, *overrides: str) -> list[Panel]:
    made = recipe(repository, *overrides)
    return preview(made, build.data(made).train)


def by_title(panels: list[Panel], beginning: str) -> Panel:
    (found,) = (panel for panel in panels if panel.title.startswith(beginning))
    return found


def entry(name: str, **options: object) -> Choice:
    """A choice with all its options, as a recipe has it."""
    defaults = {o.name: o.default for o in static_signatures()["augments"].entries[name].options}
    return Choice(name, defaults | options)


def test_the_whole_chain_is_what_training_sees(repository: Path) -> None:
    made = recipe(
        repository, "augment=[{random_crop: {size: 16}}, hflip, rand_augment]", "mix=null"
    )
    source = build.data(made).train
    panels = preview(made, source)
    number = int(panels[0].shots[0].label.removeprefix("shapes "))
    chain = by_title(panels, "augment").shots
    data = DataPipeline(made, source, WorkerContext(torch.device("cpu")), training=True)
    steps = len(source) // made.batch_size  # an epoch; one may leave the image out
    seen = {
        (epoch, index): image
        for raw in data.raw_training(0, 8 * steps)
        for image, (epoch, index) in zip(raw.images, raw.items.tolist(), strict=True)
    }
    checked = 0
    for shot in chain:
        epoch = int(shot.label.removeprefix("epoch ")) - 1
        if (epoch, number) in seen:
            trained = seen[epoch, number].permute(1, 2, 0).numpy()
            assert (shot.pixels == trained).all()
            checked += 1
    assert checked >= 2


def test_entries_alone_happen_surely(repository: Path) -> None:
    panels = looked(repository, "augment=[{hflip: {p: 0.01}}, {grayscale: {p: 0.01}}]", "mix=null")
    start = panels[0].shots[0].pixels
    (mirrored,) = by_title(panels, "hflip(p=0.01)").shots
    assert (mirrored.pixels == start[:, ::-1]).all() and (mirrored.pixels != start).any()
    (grey,) = by_title(panels, "grayscale").shots
    assert (grey.pixels == np.asarray(ImageOps.grayscale(Image.fromarray(start)))[..., None]).all()


def test_erasing_is_seen_too(repository: Path) -> None:
    panels = looked(repository, "augment=[{cutout: {size: 6}}]", "mix=null", "normalize=half")
    start = panels[0].shots[0].pixels
    shots = by_title(panels, "cutout(holes=1, size=6").shots
    assert len(shots) > 1
    for shot in shots:
        changed = (shot.pixels != start).any(-1)
        assert 0 < changed.sum() <= 36
        assert set(shot.pixels[changed].ravel().tolist()) <= {127, 128}  # the mean colour


def test_mixed_images_are_called_by_their_shares(repository: Path) -> None:
    panels = looked(repository, "augment=[]", "mix={mixup: {weight: 1, p: 0.01}, cutmix: 1}")
    start = panels[0].shots[0].pixels.astype(float)
    for shot in by_title(panels, "cutmix").shots:
        kept = (shot.pixels == start).all(-1).mean()
        shares = [float(part.split()[0]) for part in shot.label.split(" + ")]
        assert sum(shares) == pytest.approx(1, abs=0.011)
        assert min(abs(share - kept) for share in shares) < 0.05  # equal pixels by chance
    mixed = by_title(panels, "mixup(alpha=1, p=0.01").shots
    assert len(mixed) > 1
    assert all(" + " in shot.label for shot in mixed)


def test_masks_go_along(repository: Path) -> None:
    dense = ["task=segmentation", "dataset={shapes: {train: 40, test: 20, size: 16, masks: true}}"]
    dense += ["model={unet: {channels: [4, 8]}}", "loss=cross_entropy", "mix=cutmix"]
    panels = looked(
        repository, *dense, "augment=[{hflip: {p: 1.0}}, {rotate: {limit: 90, p: 0.1}}]"
    )
    start = panels[0].shots[0]
    (mirrored,) = by_title(panels, "hflip").shots
    assert start.mask.shape == (16, 16) and start.mask.max() > 0
    assert (mirrored.mask == start.mask[:, ::-1]).all()
    turned = by_title(panels, "rotate").shots
    known = {VOID, *np.unique(start.mask).tolist()}
    assert any(VOID in shot.mask for shot in turned)
    assert all(set(np.unique(shot.mask).tolist()) <= known for shot in turned)
    for shot in by_title(panels, "cutmix").shots:
        same = (shot.pixels == start.pixels).all(-1)
        assert (shot.mask == start.mask)[same].mean() > 0.95  # equal pixels by chance


# -- policies, taken apart -------------------------------------------------------------------------


def test_the_sub_policies_of_timm_s_original() -> None:
    shots = apart(entry("auto_augment"), PIXELS, seed=1)
    assert len(shots) == 25
    assert shots[0].label == "PosterizeOriginal 8 + Rotate 9"
    assert shots[-1].label == "Equalize 8 + Equalize 3"
    solar = next(shot for shot in shots if shot.label == "Solarize 5 + AutoContrast 5")
    image = ImageOps.autocontrast(ImageOps.solarize(Image.fromarray(PIXELS), 128))
    assert (solar.pixels == np.asarray(image)).all()
    twice = next(shot for shot in shots if shot.label.count("PosterizeOriginal") == 2)
    assert (twice.pixels == np.asarray(ImageOps.posterize(Image.fromarray(PIXELS), 6))).all()


@pytest.mark.parametrize("name", ["rand_augment", "aug_mix", "trivial_augment"])
def test_the_operations_of_other_policies(name: str) -> None:
    shots = {shot.label.split()[0]: shot for shot in apart(entry(name), PIXELS, seed=1)}
    equalized = np.asarray(ImageOps.equalize(Image.fromarray(PIXELS)))
    assert (shots["Equalize"].pixels == equalized).all()
    assert {"Rotate", "ShearX"} <= shots.keys() and len(shots) >= 12
    assert (shots["Rotate"].pixels != PIXELS).any()


def test_torchvision_s_policy_says_its_magnitudes() -> None:
    shots = apart(entry("auto_augment", policy="cifar10"), PIXELS, seed=1)
    assert len(shots) == 25
    assert shots[0].label == "Invert + Contrast 0.6"
    image = functional.adjust_contrast(ImageOps.invert(Image.fromarray(PIXELS)), 1.6)
    assert (shots[0].pixels == np.asarray(image)).all()


def test_what_is_no_policy_has_no_parts() -> None:
    for name in set(augments.entries) - {"auto_augment", "rand_augment", "aug_mix"}:
        if name != "trivial_augment":
            assert apart(entry(name), PIXELS, seed=1) == []

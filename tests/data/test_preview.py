"""The preview of the augmentation: its images are those of training, and of Pillow's operations."""

import numpy as np
import pytest
import torch
from data.oracle import entry
from PIL import Image, ImageOps
from torchvision.transforms import functional

from vision_tutorial import build
from vision_tutorial.core.registry import augments
from vision_tutorial.core.task import VOID
from vision_tutorial.data.pipeline import DataPipeline, WorkerContext
from vision_tutorial.data.preview import apart, preview
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load

SMALL = "dataset={shapes: {train: 60, test: 20, size: 16}}"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def recipe(*overrides: str) -> Recipe:
    return load("debug", [SMALL, *overrides]).recipe


def panels(*overrides: str) -> dict:
    """Shots by the name of the entry that their panel is about; "" for the image itself."""
    made = recipe(*overrides)
    shown = preview(made, build.data(made).train)
    return {panel.title.partition("(")[0]: panel.shots for panel in shown}


def test_the_whole_chain_is_what_training_sees() -> None:
    chain = ["augment=[{random_crop: {size: 16}}, hflip, rand_augment]", "mix=null"]
    made, shown = recipe(*chain), panels(*chain)
    source = build.data(made).train
    number = int(shown[""][0].label.removeprefix("shapes "))
    data = DataPipeline(made, source, WorkerContext(torch.device("cpu")), training=True)
    steps = len(source) // made.batch_size  # an epoch; one may leave the image out
    trained = {
        epoch: image.permute(1, 2, 0).numpy()
        for raw in data.raw_training(0, 8 * steps)
        for image, (epoch, index) in zip(raw.images, raw.items.tolist(), strict=True)
        if index == number
    }
    epochs = {int(shot.label.removeprefix("epoch ")) - 1: shot for shot in shown["augment"]}
    both = epochs.keys() & trained.keys()
    assert len(both) >= 2 and all((epochs[e].pixels == trained[e]).all() for e in both)


def test_entries_alone_happen_surely() -> None:
    chain = "augment=[{hflip: {p: 0.01}}, {grayscale: {p: 0.01}}, {cutout: {size: 6}}]"
    shown = panels(chain, "mix=null", "normalize=half")
    start = shown[""][0].pixels
    (mirrored,) = shown["hflip"]
    assert (mirrored.pixels == start[:, ::-1]).all() and (mirrored.pixels != start).any()
    (grey,) = shown["grayscale"]
    assert (grey.pixels == np.asarray(ImageOps.grayscale(Image.fromarray(start)))[..., None]).all()
    assert len(shown["cutout"]) > 1
    for shot in shown["cutout"]:
        changed = (shot.pixels != start).any(-1)
        assert 0 < changed.sum() <= 36
        assert set(shot.pixels[changed].ravel().tolist()) <= {127, 128}  # the mean colour


def test_mixed_images_are_called_by_their_shares() -> None:
    shown = panels("augment=[]", "mix={mixup: {weight: 1, p: 0.01}, cutmix: 1}")
    start = shown[""][0].pixels.astype(float)
    for shot in shown["cutmix"]:
        kept = (shot.pixels == start).all(-1).mean()
        shares = [float(part.split()[0]) for part in shot.label.split(" + ")]
        assert sum(shares) == pytest.approx(1, abs=0.011)
        assert min(abs(share - kept) for share in shares) < 0.05  # equal pixels by chance
    assert len(shown["mixup"]) > 1 and all(" + " in shot.label for shot in shown["mixup"])


def test_masks_go_along() -> None:
    dense = ["task=segmentation", "dataset={shapes: {train: 40, test: 20, size: 16, masks: true}}"]
    dense += ["model={unet: {channels: [4, 8]}}", "loss=cross_entropy", "mix=cutmix"]
    chain = "augment=[{hflip: {p: 1.0}}, {rotate: {limit: 90, p: 0.1}}]"
    shown = panels(*dense, chain)
    start, (mirrored,) = shown[""][0], shown["hflip"]
    assert (mirrored.mask == start.mask[:, ::-1]).all()
    known = {VOID, *np.unique(start.mask).tolist()}
    assert len(known) > 2 and any(VOID in shot.mask for shot in shown["rotate"])
    assert all(set(np.unique(shot.mask).tolist()) <= known for shot in shown["rotate"])
    for shot in shown["cutmix"]:
        same = (shot.pixels == start.pixels).all(-1)
        assert (shot.mask == start.mask)[same].mean() > 0.95  # equal pixels by chance


def test_policies_are_taken_apart() -> None:
    def of(name: str, **options: object) -> dict:
        return {shot.label: shot.pixels for shot in apart(entry(name, **options), PIXELS, seed=1)}

    image = Image.fromarray(PIXELS)
    original = of("auto_augment")
    assert next(iter(original)) == "PosterizeOriginal 8 + Rotate 9"
    solar = ImageOps.autocontrast(ImageOps.solarize(image, 128))
    assert (original["Solarize 5 + AutoContrast 5"] == np.asarray(solar)).all()
    cifar = of("auto_augment", policy="cifar10")
    contrast = functional.adjust_contrast(ImageOps.invert(image), 1.6)
    assert (cifar["Invert + Contrast 0.6"] == np.asarray(contrast)).all()
    for name in ("rand_augment", "aug_mix", "trivial_augment"):
        shown = {label.split()[0]: pixels for label, pixels in of(name).items()}
        assert (shown["Equalize"] == np.asarray(ImageOps.equalize(image))).all()
        assert len(shown) >= 12 and (shown["Rotate"] != PIXELS).any()
    others = set(augments) - {"auto_augment", "rand_augment", "aug_mix", "trivial_augment"}
    assert not any(of(name) for name in others)

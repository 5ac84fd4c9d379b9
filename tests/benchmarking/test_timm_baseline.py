"""timm is told what the recipe says: its own transforms, mixers and log are the witnesses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import Mixup, create_transform

from vision_tutorial.benchmarking import timm_baseline
from vision_tutorial.benchmarking.timm_baseline import mixers, rate_of_log, translated
from vision_tutorial.core.sources import ArraySource, hold_out
from vision_tutorial.data import loader
from vision_tutorial.recipe.loading import load

RECIPES = Path(__file__).parents[2] / "recipes"
CROP = "{random_resized_crop: {size: 24}}"


def recipe(*words, name="r4"):
    return load(RECIPES / f"{name}.yaml", words).recipe


@pytest.mark.parametrize("name", ["r0", "r4"])
def test_the_recipes_of_the_report_become_the_same_transforms(name):
    ours = loader.chain(recipe(name=name).augment)[0]
    theirs = create_transform(**translated(recipe(name=name)), is_training=True).transforms
    names = [type(one).__name__ for one in theirs]
    assert names == [*(type(one).__name__ for one in ours), "MaybeToTensor", "Normalize"]
    for mine, other in zip(ours, theirs, strict=False):
        if hasattr(mine, "policy"):
            mine, other = (
                [[(op.name, op.prob, op.magnitude) for op in pair] for pair in one.policy]
                for one in (mine, other)
            )
            assert mine == other
        else:
            assert repr(mine) == repr(other)


def test_every_other_operation_in_timms_words():
    chain = f"[{CROP}, {{vflip: {{p: 0.3}}}}, rand_augment, {{random_erasing: {{p: 0.4}}}}]"
    said = translated(recipe(f"augment={chain}"))
    assert said["auto_augment"] == "rand-m9-n2-p0.5-mstd0.5-inc1"
    assert (said["hflip"], said["vflip"], said["re_prob"]) == (0.0, 0.3, 0.4)
    made = create_transform(**said, is_training=True).transforms
    wanted = ["RandomResizedCropAndInterpolation", "RandomVerticalFlip", "RandAugment"]
    wanted += ["MaybeToTensor", "Normalize", "RandomErasing"]
    assert [type(one).__name__ for one in made] == wanted
    chain = f"[{CROP}, {{color_jitter: {{p: 0.6}}}}, {{grayscale: {{p: 0.2}}}}]"
    said = translated(recipe(f"augment={chain}"))
    assert (said["color_jitter_prob"], said["grayscale_prob"]) == (0.6, 0.2)
    uniform = translated(recipe(f"augment=[{CROP}, {{rand_augment: {{magnitude_std: null}}}}]"))
    assert uniform["auto_augment"] == "rand-m9-n2-p0.5-mstd101-inc1"


def test_what_timm_has_no_words_for():
    for chain, why in (
        ("[random_crop]", "the chain of random_crop"),
        ("[]", "no augmentations"),
        (f"[{CROP}, vflip, hflip]", "vflip, hflip"),
        (f"[{CROP}, auto_augment, color_jitter]", "auto_augment and color_jitter"),
        (f"[{CROP}, {{auto_augment: {{policy: cifar10}}}}]", "policy cifar10"),
        (f"[{CROP}, {{auto_augment: {{interpolation: nearest}}}}]", "interpolation nearest"),
        (f"[{CROP}, {{random_erasing: {{area: [0.1, 0.2]}}}}]", "area"),
    ):
        assert why in timm_baseline.missing(recipe(f"augment={chain}"))


def test_mixers_are_timms():
    assert mixers(recipe("mix=null").mix) == {}
    said = mixers(recipe("mix={cutmix: {weight: 3, alpha: 0.5}, mixup: 1}").mix)
    assert said == {"mixup_alpha": 1.0, "cutmix_alpha": 0.5, "prob": 1.0, "switch_prob": 0.75}
    Mixup(**said)
    only = mixers(recipe("mix={cutmix: {p: 0.5}}").mix)
    assert only == {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5, "switch_prob": 1.0}
    assert "different p" in timm_baseline.missing(recipe("mix={cutmix: {p: 0.5}, mixup: 1}"))


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    return ArraySource("some", images, np.arange(40) % 4, tuple("abcd"))


@pytest.mark.parametrize("prefetcher", [False, True])
def test_timms_loader_gives_whole_batches_without_end(source, prefetcher):
    wanted = recipe("batch_size=16", "mix=cutmix")
    batches = timm_baseline.timm_batches(wanted, source, torch.device("cpu"), 0, prefetcher)
    assert [next(batches) for _ in range(5)] == [16] * 5  # 40 images are two batches


def test_bytes_are_counted_once(source):
    held = timm_baseline.held([source])
    assert held == source.images.nbytes + source.targets.nbytes
    assert held == timm_baseline.held([*hold_out(source, 0.2, 1), object()])


def test_images_are_written_where_train_py_cannot_read_them(source, tmp_path):
    words = timm_baseline.data_words(recipe("dataset=shapes"), source, tmp_path)
    assert words == ["--data-dir", str(tmp_path)]
    assert [len(list(tmp_path.glob(f"{split}/*/*.png"))) for split in ("train", "val")] == [40, 40]
    there = timm_baseline.data_words(recipe("dataset={cifar100: {root: /data}}"), source, tmp_path)
    assert there == ["--data-dir", "/data", "--dataset", "torch/cifar100"]


def test_the_rate_of_a_log_is_that_of_its_steps_without_the_first():
    epochs, text = [[0.25, 0.5, 0.75], [1.0, 0.25]], "Scheduled epochs: 10\n"
    assert rate_of_log(text, 128).images == 0
    for epoch, seconds in enumerate(epochs):
        for update, took in enumerate(seconds):
            mean = sum(seconds[: update + 1]) / (update + 1)  # as its AverageMeter has it
            text += f"INFO:train:Train: {epoch} [{update:>4d}/97 (  1%)]  Loss: 4.68 (4.70)  "
            text += f"Time: {took:.3f}s, {128 / took:>7.2f}/s  ({mean:.3f}s, "
            text += f"{128 / mean:>7.2f}/s)  LR: 1.000e-02  Data: 0.001 (0.010)\n"
    assert rate_of_log(text, 128) == (128 * 3, pytest.approx(1.5, rel=1e-3))

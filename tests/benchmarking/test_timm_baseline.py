"""timm is told what the recipe says: its own transforms, mixers and log are the witnesses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import Mixup, create_transform

from vision_tutorial import build
from vision_tutorial.benchmarking import timm_baseline
from vision_tutorial.benchmarking.timm_baseline import (
    Untranslatable,
    mixers,
    rate_of_log,
    translated,
)
from vision_tutorial.core.sources import ArraySource, hold_out
from vision_tutorial.recipe.loading import load

RECIPES = Path(__file__).parents[2] / "recipes"
CROP = "{random_resized_crop: {size: 24}}"


def recipe(*words, name="r4"):
    return load(RECIPES / f"{name}.yaml", words).recipe


def transforms(*words, name="r4"):
    """timm's transforms for a recipe, before they become tensors, in text without addresses."""
    said = translated(recipe(*words, name=name), 32)
    made = create_transform(**said, is_training=True).transforms
    return [type(one).__name__ for one in made], made


@pytest.mark.parametrize("name", ["r0", "r2", "r4"])
def test_the_recipes_of_the_report_become_the_same_transforms(name):
    ours = build.pipeline.chain(recipe(name=name).augment)[0]
    names, made = transforms(name=name)
    assert names == [*(type(one).__name__ for one in ours), "MaybeToTensor", "Normalize"]
    for mine, theirs in zip(ours, made, strict=False):
        assert repr(mine) == repr(theirs) or "AugmentOp" in repr(mine)


def test_a_policy_has_the_operations_it_has_here():
    (policy,) = (t for t in build.pipeline.chain(recipe().augment)[0] if hasattr(t, "policy"))
    (theirs,) = (t for t in transforms()[1] if hasattr(t, "policy"))
    assert [[(op.name, op.prob, op.magnitude) for op in pair] for pair in policy.policy] == [
        [(op.name, op.prob, op.magnitude) for op in pair] for pair in theirs.policy
    ]


def test_rand_augment_and_erasing_in_timms_words():
    chain = f"augment=[{CROP}, {{vflip: {{p: 0.3}}}}, rand_augment, {{random_erasing: {{p: 0.4}}}}]"
    said = translated(recipe(chain), 24)
    assert said["auto_augment"] == "rand-m9-n2-p0.5-mstd0.5-inc1"
    assert (said["hflip"], said["vflip"], said["re_prob"]) == (0.0, 0.3, 0.4)
    names, made = transforms(chain)
    assert names == [
        "RandomResizedCropAndInterpolation",
        "RandomVerticalFlip",
        "RandAugment",
        "MaybeToTensor",
        "Normalize",
        "RandomErasing",
    ]
    uniform = translated(recipe(f"augment=[{CROP}, {{rand_augment: {{magnitude_std: null}}}}]"), 24)
    assert uniform["auto_augment"] == "rand-m9-n2-p0.5-mstd101-inc1"


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ("[random_crop]", "random_crop at its place"),
        ("[]", "does not begin with random_resized_crop"),
        (f"[{CROP}, auto_augment, rand_augment]", "rand_augment at its place"),
        (f"[{CROP}, auto_augment, color_jitter]", "colour jitter beside a policy"),
        (f"[{CROP}, {{auto_augment: {{policy: cifar10}}}}]", "the policy cifar10"),
        (f"[{CROP}, {{auto_augment: {{interpolation: nearest}}}}]", "another interpolation"),
        (f"[{CROP}, {{random_erasing: {{area: [0.1, 0.2]}}}}]", "area or aspect of its own"),
    ],
)
def test_what_timm_has_no_words_for(chain, why):
    with pytest.raises(Untranslatable, match=why):
        translated(recipe(f"augment={chain}"), 24)
    assert why in timm_baseline.missing(recipe(f"augment={chain}"))


def test_mixers_are_timms():
    assert mixers(recipe("mix=null").mix) == {}
    said = mixers(recipe("mix={cutmix: {weight: 3, alpha: 0.5}, mixup: 1}").mix)
    assert said == {"mixup_alpha": 1.0, "cutmix_alpha": 0.5, "prob": 1.0, "switch_prob": 0.75}
    Mixup(**said)
    only = mixers(recipe("mix={cutmix: {p: 0.5}}").mix)
    assert only == {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5, "switch_prob": 1.0}
    with pytest.raises(Untranslatable, match="different p"):
        mixers(recipe("mix={cutmix: {p: 0.5}, mixup: 1}").mix)


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)
    return ArraySource("some", images, np.arange(40) % 4, tuple("abcd"))


@pytest.mark.parametrize(
    ("prefetcher", "mix"), [(False, "cutmix"), (True, "cutmix"), (True, "null")]
)
def test_timms_loader_gives_whole_batches_without_end(source, prefetcher, mix):
    wanted = recipe("batch_size=16", f"mix={mix}")
    batches = timm_baseline.timm_batches(wanted, source, torch.device("cpu"), 0, prefetcher)
    assert [next(batches) for _ in range(5)] == [16] * 5  # 40 images are two batches


def test_bytes_are_counted_once(source):
    whole = source.images.nbytes + source.targets.nbytes
    rest, held = hold_out(source, 0.2, 1)
    assert timm_baseline.held([source]) == timm_baseline.held([rest, held]) == whole
    assert timm_baseline.held([object()]) == 0


def test_images_are_written_where_train_py_cannot_read_them(source, tmp_path):
    words = timm_baseline.data_words(recipe("dataset=shapes"), source, tmp_path)
    assert words == ["--data-dir", str(tmp_path)]
    assert (
        len(list(tmp_path.glob("train/*/*.png"))) == len(list(tmp_path.glob("val/*/*.png"))) == 40
    )
    there = timm_baseline.data_words(recipe("dataset={cifar100: {root: /data}}"), source, tmp_path)
    assert there == ["--data-dir", "/data", "--dataset", "torch/cifar100"]


def line(epoch, update, seconds, batch):
    """A line of train.py's log: the mean over the epoch so far, as its AverageMeter has it."""
    mean = sum(seconds[: update + 1]) / (update + 1)
    return (
        f"INFO:train:Train: {epoch} [{update:>4d}/97 (  1%)]  Loss: 4.68 (4.70)  "
        f"Time: {seconds[update]:.3f}s, {batch / seconds[update]:>7.2f}/s  "
        f"({mean:.3f}s, {batch / mean:>7.2f}/s)  LR: 1.000e-02  Data: 0.001 (0.010)"
    )


def test_the_rate_of_a_log_is_that_of_its_steps_without_the_first():
    rng = np.random.default_rng(1)
    epochs = [list(rng.uniform(0.2, 0.4, 5)), list(rng.uniform(0.2, 0.4, 3))]
    text = "\n".join(
        line(number, update, seconds, 128)
        for number, seconds in enumerate(epochs)
        for update in range(len(seconds))
    )
    found = rate_of_log("Scheduled epochs: 10\n" + text, 128)
    assert found.images == 128 * (4 + 2)
    assert found.seconds == pytest.approx(sum(epochs[0][1:]) + sum(epochs[1][1:]), rel=1e-3)
    assert rate_of_log("nothing yet", 128) is None
    assert rate_of_log(text.splitlines()[0], 128) is None

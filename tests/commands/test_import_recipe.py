"""`import timm`: what train.py was told comes back as the recipe that meant it."""

from pathlib import Path

import pytest
import yaml

from vision_tutorial.commands.of_recipes import import_recipe as command
from vision_tutorial.recipe.loading import load

ARGS = {
    "model": "resnet50", "pretrained": False, "dataset": "torch/cifar100", "data_dir": None,
    "input_size": [3, 32, 32], "crop_pct": 0.89, "interpolation": "bicubic", "batch_size": 256,
    "opt": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "lr": 0.25, "sched": "cosine",
    "min_lr": 1e-6, "epochs": 200, "warmup_epochs": 5, "warmup_lr": 0.01, "cooldown_epochs": 10,
    "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "hflip": 0.7, "vflip": 0.0, "color_jitter": 0.2,
    "aa": "original", "reprob": 0.0, "mixup": 0.5, "cutmix": 0.5, "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5, "mixup_mode": "batch", "smoothing": 0.1, "amp": True,
    "amp_dtype": "float16", "train_interpolation": "random", "drop": 0.0, "drop_path": None,
    "clip_grad": None, "clip_mode": "norm", "model_ema": False, "seed": 42, "num_classes": 100,
    "grad_accum_steps": 1, "workers": 4, "val_interval": 1, "channels_last": False,
    "torchcompile": None, "sync_bn": False, "fast_norm": False, "bce_loss": False,
}  # fmt: skip


def imported(folder: Path, *words: str, **changes: object) -> Path:
    (folder / "args.yaml").write_text(yaml.safe_dump(ARGS | changes))
    made = folder / "mine.yaml"
    assert command.main(["timm", str(folder / "args.yaml"), "-o", str(made), *words]) == 0
    return made


def test_the_students_command_is_r5(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = load(imported(tmp_path, "--processes", "2", epochs=250)).recipe
    r5 = load("r5").recipe
    for key in ("augment", "loss", "optimizer", "schedule", "warmup", "cooldown", "batch_size"):
        assert getattr(found, key) == getattr(r5, key), key
    assert {t.name: t.options for t in found.mix} == {t.name: t.options for t in r5.mix}
    assert found.precision == "fp16" and found.epochs == 250
    assert "not the same" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"aa": "rand-m7-n3-mstd0.5-inc1"}, "augment", ["rand_augment", 7.0, 3, True]),
        ({"opt": "adamw", "lr": None, "batch_size": 1024}, "optimizer", ["adamw", 0.2]),
        ({"lr": None, "batch_size": 1024}, "optimizer", ["sgd", 0.4]),
        ({"clip_grad": 1.0, "clip_mode": "agc"}, "clip", [None, None, 1.0]),
        ({"bce_loss": True}, "loss", ["bce", 0.1]),
    ],
)
def test_other_arguments(changes: dict, key: str, expected: list, tmp_path: Path) -> None:
    recipe = load(imported(tmp_path, **changes)).recipe
    found = getattr(recipe, key)
    if key == "augment":
        (policy,) = (choice for choice in found if choice.name == "rand_augment")
        options = policy.options
        shown = [policy.name, *(options[x] for x in ("magnitude", "num_ops", "increasing"))]
    elif key == "optimizer":
        shown = [found.name, pytest.approx(found.options["lr"])]
    elif key == "clip":
        shown = list(found.model_dump().values())
    else:
        shown = [found[0].name, found[0].options["smoothing"]]
    assert shown == expected


def test_what_has_no_words_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    imported(tmp_path, fast_norm=True, aug_repeats=3, lr_noise=[0.4], split_bn=True)
    said = capsys.readouterr().err
    assert all(word in said for word in ("fast_norm", "aug_repeats=3", "lr_noise", "split_bn"))
    (tmp_path / "other.yaml").write_text("a: 1\n")
    assert command.main(["timm", str(tmp_path / "other.yaml")]) == 2

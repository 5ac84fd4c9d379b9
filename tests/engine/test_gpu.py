"""On a GPU: a training gives equal bits each time, wherever it was paused, and learns any way.

VISION_TUTORIAL_TEST_GPU=1 pytest -o addopts= tests/engine/test_gpu.py tests/data/test_device.py
"""

import json
from pathlib import Path

import pytest
import torch
from small_runs import left, train

from vision_tutorial.engine import Distributed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CLASSES = ["recipes/debug.yaml", "dataset={shapes: {train: 256, test: 100, size: 16}}"]
MASKS = [
    "recipes/segmentation/quickstart.yaml",
    "dataset={shapes: {masks: true, size: 48, train: 128, test: 40}}",
    "loss={cross_entropy: 0.4, dice: 0.3, focal: 0.2, lovasz: 0.1}",
    "epochs=2",
    "aux_loss=cross_entropy",
    "model={deeplabv3plus: {backbone: resnet10t, auxiliary: true, pretrained: false}}",
]


@pytest.mark.parametrize(
    "words",
    [
        [*CLASSES, "precision=fp16"],
        [*CLASSES, "precision=bf16", "balance=ema", "loss={cross_entropy: 0.7, focal: 0.3}"],
        [*CLASSES, "precision=fp16", "model={resnet50: {stem: cifar}}", "batch_size=64"],
        [*CLASSES, "precision=fp32", "data.memory=host", "micro_batch=8"],
        [*CLASSES, "precision=fp16", "data.path=timm", "compile=true"],
        [*MASKS, "precision=fp32"],
        [*MASKS, "precision=bf16"],
    ],
    ids=lambda words: " ".join(word for word in words[1:] if "{" not in word),
)
def test_twice_the_same_and_paused_the_same(words: list[str], tmp_path: Path) -> None:
    words = [*words, "workers=0", "wandb.mode=disabled"]
    once = left(train(tmp_path / "once", *words))
    assert left(train(tmp_path / "twice", *words)) == once
    for steps in (3, 6, 100):
        run = train(tmp_path / "parts", *words, "--steps", str(steps))
    assert left(run) == once


def test_it_may_take_what_is_fastest(tmp_path: Path) -> None:
    run = train(tmp_path, *CLASSES, "precision=fp16", "deterministic=false")
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    Distributed(deterministic=True).close()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark

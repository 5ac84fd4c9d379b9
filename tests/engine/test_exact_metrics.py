"""Metrics do not change with the number of processes, the batch size, or what does not divide."""

import numpy as np
import pytest
import torch
from forked import run_ranks
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from vision_tutorial import build
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.engine import Distributed
from vision_tutorial.recipe.loading import load

SIZES = (1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 25, 40)  # images
CLASSES = tuple("abcdefg")
RECIPE = load("recipes/debug.yaml", ["threads=1", "ema=null", "eval_batch_size=8"]).recipe


def source(n: int) -> ArraySource:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return ArraySource("noise", images, rng.integers(0, len(CLASSES), n), CLASSES)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, len(CLASSES)))


def measured(n: int, batch: int, distributed: Distributed) -> tuple:
    recipe = RECIPE.model_copy(update={"eval_batch_size": batch})
    task = build.task(recipe, CLASSES)
    found = build.evaluation(recipe, source(n), network(), task, distributed)
    return found.metrics, found.table, found.images


def all_sizes(rank: int) -> list:
    """Several n and three batch sizes, in one group of processes."""
    distributed = Distributed(threads=1)
    found = [measured(n, batch, distributed) for n in SIZES for batch in (1, 3, 8)]
    distributed.close()
    return found


@pytest.fixture(scope="module")
def alone() -> list:
    return run_ranks(1, all_sizes)[0]


def test_counts_equal_one_process(alone: list) -> None:
    assert [*run_ranks(2, all_sizes), *run_ranks(3, all_sizes)] == [alone] * 5


def test_nothing_is_counted_twice_and_batches_agree(alone: list) -> None:
    for i, n in enumerate(SIZES):
        (one, *_), *others = of_batches = alone[3 * i : 3 * i + 3]
        assert [images for _, _, images in of_batches] == [n, n, n]
        for other, _, _ in others:
            assert other == pytest.approx(one, abs=1e-6)


def test_metrics_equal_torchmetrics(alone: list) -> None:
    pictures = source(40)
    worker, ids = build.WorkerContext(torch.device("cpu")), torch.from_numpy(pictures.targets)
    recipe = RECIPE.model_copy(update={"eval_batch_size": 40})
    ((batch,),) = build.DataPipeline(recipe, pictures, worker, training=False).evaluation()
    logits = network()(batch.images)
    metrics, table, _ = alone[-1]
    for k in (1, 5):
        oracle = multiclass_accuracy(logits, ids, len(CLASSES), average="micro", top_k=k)
        assert metrics[f"top{k}"] == pytest.approx(100 * oracle.item())
    oracle = multiclass_accuracy(logits, ids, len(CLASSES), average="none")
    assert table["top1"] == pytest.approx((100 * oracle).tolist(), abs=1e-4)
    assert metrics["cross_entropy"] == pytest.approx(
        nn.functional.cross_entropy(logits.double(), ids).item(), abs=1e-6
    )

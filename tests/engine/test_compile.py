"""`compile` changes how a network is computed, not what it learns."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from torch import nn

from vision_tutorial import build
from vision_tutorial.checks import try_out
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import take_step
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

SMALL = ["threads=1", "ema=null", "mix=null", "augment=[]", "eval_batch_size=40"]
COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))


def two_layers(num_classes: int, /) -> nn.Module:
    """A network that compiles fast."""
    pool = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pool, nn.Linear(16, num_classes)
    )


def learned(compiled: str, cache: Path) -> tuple[dict, dict, int, int]:
    """The network after two steps, by name, its metrics over 100 images (40, 40, 20), how many
    graphs were compiled, and how many found in the cache."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    if compiled == "true":
        torch._dynamo.utils.counters.clear()  # of the process it was forked from
    build.registry.models.register(two_layers)  # in the forked process alone
    distributed = Distributed(threads=1)
    recipe = load("recipes/debug.yaml", [*SMALL, f"compile={compiled}"]).recipe
    recipe = recipe.model_copy(update={"model": Choice("two_layers", {})})
    made = build.registry.datasets.build("shapes", size=16, train=64, test=100)
    training = build.training_state(recipe, made("train"), distributed)
    data = build.train_pipeline(recipe, made("train"), distributed)
    for step, batches in enumerate(data.train(0, 2, training.accumulation_steps)):
        assert not take_step(training, batches, step, stop=False).read().skipped
    try_out(recipe, made("train"), training.model)
    metrics = build.evaluation(recipe, made("test"), training.model, training.task, distributed)
    weights = {name: t.numpy() for name, t in training.model.state_dict().items()}
    distributed.close()
    counters = torch._dynamo.utils.counters if compiled == "true" else {}
    graphs = counters.get("stats", {}).get("unique_graphs", 0)
    return (
        weights,
        metrics.metrics,
        graphs,
        counters.get("inductor", {}).get("fxgraph_cache_hit", 0),
    )


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_a_compiled_network_learns_and_is_evaluated_alike(tmp_path: Path) -> None:
    kinds = ("true", "true", "false")
    found = [run_ranks(1, lambda rank, c=c: learned(c, tmp_path), timeout=500) for c in kinds]
    ((*first, graphs, _),), ((*second, _, hits),), ((others, same, _, _),) = found
    assert graphs == 1, "of training; evaluation and the try before it are not compiled"
    assert hits, "a second start is warm"
    weights, metrics = first
    assert metrics == second[1]
    assert weights.keys() == others.keys()  # no "_orig_mod." in a checkpoint
    for name, value in others.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    assert metrics["loss"] == pytest.approx(same["loss"], rel=1e-3)

"""`compile` changes how a network is computed, not what it learns."""

import shutil

import pytest
import torch
from forked import run_ranks
from torch import nn

from vision_tutorial import build
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import resolve, take_step
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

SMALL = ["threads=1", "ema=null", "mix=null", "augment=[]", "eval_batch_size=40"]
NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler"
)


def two_layers(num_classes: int, /) -> nn.Module:
    """A network that compiles fast."""
    pool = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pool, nn.Linear(16, num_classes)
    )


def learned(compiled: str) -> tuple[dict, dict]:
    """The network after two steps, by name, and its metrics over 100 images (40, 40, 20)."""
    build.registry.models.register(two_layers)  # in the forked process alone
    distributed = Distributed(threads=1)
    recipe = load("recipes/debug.yaml", [*SMALL, f"compile={compiled}"]).recipe
    recipe = recipe.model_copy(update={"model": Choice("two_layers", {})})
    made = build.registry.datasets.build("shapes", size=16, train=64, test=100)
    training = build.training_state(recipe, made("train"), distributed)
    data = build.train_pipeline(recipe, made("train"), distributed)
    for step, batches in enumerate(data.train(0, 2, training.accumulation_steps)):
        resolve(training, take_step(training, batches, step, stop=False))
    metrics = build.evaluation(recipe, made("test"), training.model, training.task, distributed)
    weights = {name: t.numpy() for name, t in training.model.state_dict().items()}
    distributed.close()
    return weights, metrics.metrics


@NEEDS_COMPILER
def test_a_compiled_network_learns_and_is_evaluated_alike() -> None:
    ((weights, metrics),) = run_ranks(1, lambda rank: learned("true"), timeout=500)
    ((others, same),) = run_ranks(1, lambda rank: learned("false"))
    assert weights.keys() == others.keys()  # no "_orig_mod." in a checkpoint
    for name, value in others.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    assert metrics["loss"] == pytest.approx(same["loss"], rel=1e-3)


def test_the_mode_is_handed_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    for compiled in ("true", "reduce-overhead"):
        recipe = load("recipes/debug.yaml", [f"compile={compiled}"]).recipe
        build.place_model(recipe, nn.Linear(2, 2), Distributed(threads=1))
    assert asked == [{"mode": None}, {"mode": "reduce-overhead"}]
    with pytest.raises(UserError, match="compile: .*'reduce-overhead' or 'max-autotune'"):
        load("recipes/debug.yaml", ["compile=fast"])

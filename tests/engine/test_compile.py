"""`compile` changes how a network is computed, not what it learns."""

import shutil

import pytest
import torch
from forked import run_ranks

from vision_tutorial import build
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import settle, take_step
from vision_tutorial.recipe.loading import load

SMALL = ["threads=1", "ema=null", "mix=null", "augment=[]", "eval_batch_size=40"]
NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler"
)


def learned(compiled: str) -> tuple[dict, dict]:
    """The network after two steps, by name, and its metrics over 100 images (40, 40, 20)."""
    distributed = Distributed(threads=1)
    recipe = load("recipes/debug.yaml", [*SMALL, f"compile={compiled}"]).recipe
    made = build.registry.datasets.build("shapes", size=16, train=64, test=100)
    learner = build.learner(recipe, made("train"), distributed)
    for step, raw in enumerate(build.train_batches(recipe, made("train"), distributed, 0, 2)):
        settle(learner, take_step(learner, distributed, raw, step, stop=False))
    metrics = build.evaluation(recipe, made("test"), learner.model, learner.task, distributed)
    weights = {name: t.numpy() for name, t in learner.model.state_dict().items()}
    distributed.close()
    return weights, metrics.metrics


@NEEDS_COMPILER
@pytest.mark.parametrize("world", [1, 2])
def test_a_compiled_network_learns_and_is_evaluated_alike(world: int) -> None:
    eager = run_ranks(world, lambda rank: learned("false"))
    compiled = run_ranks(world, lambda rank: learned("true"), timeout=500)
    for (weights, metrics), (others, same) in zip(compiled, eager, strict=True):
        assert weights.keys() == others.keys()  # no "_orig_mod." in a checkpoint
        for name, value in others.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
        assert metrics["loss"] == pytest.approx(same["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "compiled, mode",
    [("true", None), ("reduce-overhead", "reduce-overhead"), ("max-autotune", "max-autotune")],
)
def test_the_mode_is_handed_to_torch(
    compiled: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    recipe = load("recipes/debug.yaml", [f"compile={compiled}"]).recipe
    build.placed(recipe, torch.nn.Linear(2, 2), Distributed(threads=1))
    assert asked == [{"mode": mode}]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="compile: .*'reduce-overhead' or 'max-autotune'"):
        load("recipes/debug.yaml", ["compile=fast"])

"""`ddp`: what its options change of two processes' gradients, and what must not change."""

import pytest
import torch
from forked import run_ranks

from vision_tutorial import build
from vision_tutorial.checks import check
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import take_step
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.recipe_info import batch_parts

SMALL = ["threads=1", "ema=null", "augment=[]", "model=test_resnet"]


def weights(*more: str) -> torch.Tensor:
    """The network's weights after three steps of two processes."""

    def of_rank(rank: int) -> list[float]:
        recipe = load("recipes/debug.yaml", [*SMALL, "batch_size=16", *more]).recipe
        distributed = Distributed(threads=1, ddp=recipe.ddp)
        source = build.registry.datasets.build("shapes", size=16, train=64, test=10)("train")
        training = build.training_state(recipe, source, distributed)
        data = build.train_pipeline(recipe, source, distributed)
        for step, batches in enumerate(data.train(0, 3, training.accumulation_steps)):
            assert not take_step(training, batches, step, stop=False).read().skipped
        distributed.close()
        return torch.cat([p.detach().flatten() for p in training.parameters]).tolist()

    one, other = run_ranks(2, of_rank)
    assert one == other
    return torch.tensor(one, dtype=torch.float64)


def test_what_is_sent_and_when() -> None:
    plain = weights("micro_batch=8")
    assert torch.equal(weights("ddp.static_graph=true"), plain)
    for kind, digits in (("fp16", 2**-11), ("bf16", 2**-8)):
        off = (weights(f"ddp.gradients={kind}") - plain).norm() / plain.norm()
        assert 0 < off < digits


def test_shards_have_no_use_for_it() -> None:
    recipe = load("recipes/debug.yaml", ["shards=2", "ddp.static_graph=true"]).recipe
    with pytest.raises(UserError, match="shards add their gradients without DDP"):
        check(recipe)


def test_what_needs_one_pass_is_refused_in_parts() -> None:
    static = load("recipes/debug.yaml", ["batch_size=16", "ddp.static_graph=true"]).recipe
    parts = static.model_copy(update={"micro_batch": 4})
    assert batch_parts(static, 2, on_gpu=True) == 1
    assert batch_parts(parts, 1, on_gpu=True) == 4, "one process has no DDP"
    with pytest.raises(UserError, match=r"ddp.static_graph: true needs .* one pass"):
        batch_parts(parts, 2, on_gpu=True)
    more = ["batch_size=16", "compile=reduce-overhead"]
    for way in ("micro_batch=4", "shards=4"):
        graphs = load("recipes/debug.yaml", [*more, way]).recipe
        batch_parts(graphs, 1, on_gpu=False)  # a CPU has none
        with pytest.raises(UserError, match=r"compile: reduce-overhead needs .* one pass"):
            batch_parts(graphs, 1, on_gpu=True)
    assert batch_parts(load("recipes/debug.yaml", more).recipe, 2, on_gpu=True) == 1

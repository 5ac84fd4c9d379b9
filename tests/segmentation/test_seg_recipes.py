"""Every row of the students' tables loads, builds and takes two real optimizer steps.

The networks, losses, optimizers, schedules and augmentations are the recipes' own. The images are
few and small, weights are random where pretrained ones are asked for, and the data is drawn.
"""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch

from vision_tutorial import build
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import take_step
from vision_tutorial.recipe.fields import Recipe, changes
from vision_tutorial.recipe.grammar import Choice, Options
from vision_tutorial.recipe.loading import load

FOLDER = Path("recipes/segmentation")
OURS = {"camvid", "quickstart", "trashcan"}  # not the students'
ROWS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - OURS)


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe on four drawn images, as small as its network allows."""
    side = 224 if recipe.model.name == "deconvnet" else 64

    def sized(chain: tuple[Choice, ...]) -> tuple[Choice, ...]:
        return tuple(
            Choice(c.name, Options({**c.options, "size": (side, side)}))
            if c.name == "resize"
            else c
            if c.name == "resize"
            else c
            for c in chain
        )

    options = {**recipe.model.options, "pretrained": False}
    if recipe.model.name == "deconvnet" and recipe.name != "d-v2":
        options["hidden"] = 256  # 4,096 take half a minute, and d-v2 has them
    model = Choice(recipe.model.name, Options(options))
    images = Options({"masks": True, "size": 64, "train": 4, "test": 2, "seed": 0})
    return recipe.model_copy(
        update={
            "model": model,
            "dataset": Choice("shapes", images),
            "augment": sized(recipe.augment),
            "eval_augment": sized(recipe.eval_augment),
            "batch_size": 2,
            "workers": 0,
            "threads": 1,
            "precision": "fp32",
        }
    )


@cache
def network(model: str) -> torch.nn.Module:
    """The recipe's network, drawn once for all rows that share it."""
    recipe = shrunk(load(model).recipe)
    return build.model(recipe, 11)


FIRST: dict[str, str] = {}  # the row that first had a network


@pytest.mark.parametrize("row", ROWS)
def test_two_optimizer_steps(row, monkeypatch):
    path = str(FOLDER / f"{row}.yaml")
    recipe = shrunk(load(path).recipe)
    first = FIRST.setdefault(str(recipe.model), path)
    drawn = network(first)
    monkeypatch.setattr(build, "model", lambda *_, **__: copy.deepcopy(drawn))
    distributed = Distributed("fp32", 1)
    both = build.data(recipe)
    training = build.training_state(recipe, both.train, distributed)
    build.try_out(recipe, both.train, training)
    plan = build.plan(recipe, both, training, distributed)
    before = [p.detach().clone() for p in training.parameters]
    training.model.train()
    for step, batches in enumerate(plan.batches(0, 2, training.accumulation_steps)):
        plan.lr(max(step, 1), [])  # a warm-up may begin at 0
        result = take_step(training, distributed, batches, step, False).read()
        assert not result.skipped and result.losses["loss"] >= 0
    moved = sum(not torch.equal(a, b) for a, b in zip(before, training.parameters, strict=True))
    assert moved > 0.9 * len(before)


def test_every_row_of_the_tables_is_there():
    """Rows of A: 9 optimizers (one is `a`, which is also CE ‖ CE), 5 other losses, 5 mixes."""
    a = [row for row in ROWS if row == "a" or row.startswith("a-")]
    assert len(a) == 1 + 8 + 5 + 5
    assert {f"c{i}" for i in range(1, 10)} <= set(ROWS)
    assert len([row for row in ROWS if row.startswith("d-")]) == 8
    assert len([row for row in ROWS if row.startswith("b-")]) == 30


def test_a_row_changes_what_its_experiment_changed():
    loaded = load(FOLDER / "a-focal-0.7-dice.yaml")
    assert set(changes(loaded.recipe, loaded.base)) == {"loss", "aux_loss"}
    assert dict(loaded.recipe.expects) == {"miou": 58.45, "lb": None}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_what_it_stands_for(row):
    text = (FOLDER / f"{row}.yaml").read_text("utf-8")
    assert text.startswith(f"# Table {row[0].upper()}, ")

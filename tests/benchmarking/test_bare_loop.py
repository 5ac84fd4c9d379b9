"""The bare loop against plain PyTorch; the timed training against its own metrics."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vision_tutorial import build
from vision_tutorial.benchmarking.bare_loop import ENDLESS, TimedTraining, bare_forward, bare_steps
from vision_tutorial.core.task import Batch
from vision_tutorial.engine import Distributed
from vision_tutorial.recipe.loading import load

DEBUG = Path(__file__).parents[2] / "recipes" / "debug.yaml"


@pytest.fixture
def place():
    made = Distributed(threads=1)
    yield made
    made.close()


def test_the_bare_loop_takes_the_steps_that_plain_torch_takes(place, monkeypatch):
    sgd = "optimizer={sgd: {lr: 0.1, momentum: 0.9, weight_decay: 0, nesterov: false}}"
    recipe = load(DEBUG, [sgd, "loss=cross_entropy"]).recipe
    images, target = torch.randn(8, 6), torch.arange(8) % 3
    model, twin = nn.Linear(6, 3), nn.Linear(6, 3)
    twin.load_state_dict(model.state_dict())
    monkeypatch.setattr(build, "model", lambda recipe, classes: model)
    monkeypatch.setattr(build, "place_model", lambda recipe, network, place: network)
    batches = [Batch(images[:4], target[:4]), Batch(images[4:], target[4:])]
    steps = bare_steps(recipe, 3, batches, place)
    assert [next(steps) for _ in range(3)] == [8] * 3
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        theirs.zero_grad()
        nn.functional.cross_entropy(twin(images), target).backward()
        theirs.step()
    assert torch.allclose(model.weight, twin.weight, atol=1e-6)


def test_the_bare_forward_pass_counts_images_and_leaves_the_mode(place):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(6, 3)).train()
    assert bare_forward(model, [torch.zeros(4, 6), torch.zeros(2, 6)], place) == 6
    assert model.training


def test_a_timed_training_goes_on_over_the_ends_of_epochs(tmp_path):
    recipe = load(DEBUG, [*ENDLESS, "subset=64", "threads=1", "data.path=timm", "workers=0"]).recipe
    timed = TimedTraining(recipe, tmp_path, print)
    first = timed.run(1e-9)
    assert first.images == 32 and timed.progress.step == 2, "the first step is not counted"
    more = timed.run(5 * first.seconds)
    assert timed.progress.step == 4 + more.images // 32 - 1 and not timed.progress.rows
    assert all(0 < share < 1 for share in timed.data_shares) and len(timed.data_shares) == 2
    ends = timed.epoch_ends(2)
    assert len(ends) == 2 and all(0 <= seconds < 5 for seconds in ends)
    assert timed.evaluation(10)().images == 10
    timed.place.close()

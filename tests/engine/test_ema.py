"""The moving average against timm's, bit for bit."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from vision_tutorial.engine import ModelEma


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))


def wander(model, step):
    """Change the weights as a training step would, statistics and counter included."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.train()(torch.randn(4, 3, 4, 4))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("warmup", [False, True])
def test_equals_timm_v3(warmup):
    model = network().to(memory_format=torch.channels_last)
    ours, theirs = ModelEma(model, 0.9, warmup), ModelEmaV3(model, decay=0.9, use_warmup=warmup)
    for step in range(1, 30):
        wander(model, step)
        ours.update(step)
        theirs.update(model, step=step)
        assert same(ours.tensors, dict(theirs.module.state_dict())), step
    for step in [*range(200), 10**4, 10**6, 10**9]:
        assert ours.decay_at(step) == theirs.get_decay(step)


def test_applied_and_taken_back_bit_for_bit():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    ema, nothing = ModelEma(model, 0.5), ModelEma()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for each in (ema, nothing):
        each.update(2)
    own, places = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    average = copy.deepcopy(ema.tensors)
    with pytest.raises(KeyError), ema.applied_to(model):
        assert same(dict(model.state_dict()), average) and not same(own, average)
        raise KeyError
    assert same(dict(model.state_dict()), own) and same(ema.tensors, average)
    assert places == [p.data_ptr() for p in model.parameters()]  # DDP and compile hold on to them
    with nothing.applied_to(model):
        assert same(dict(model.state_dict()), own) and nothing.tensors == {}

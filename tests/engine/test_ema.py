"""The moving average against timm's, bit for bit."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from vision_tutorial.core.errors import UserError
from vision_tutorial.engine.ema import Ema, decay_at


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
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_timm_v3(warmup, layout):
    model = network().to(memory_format=layout)
    ours, theirs = Ema(model), ModelEmaV3(model, decay=0.9, use_warmup=warmup)
    for step in range(1, 30):
        wander(model, step)
        ours.update(model, decay_at(step, 0.9, warmup))
        theirs.update(model, step=step)
        assert same(ours.tensors, dict(theirs.module.state_dict())), step


@pytest.mark.parametrize("warmup", [False, True])
def test_decay_is_timms(warmup):
    theirs = ModelEmaV3(nn.Linear(1, 1), 0.9998, use_warmup=warmup)
    for step in [*range(200), 10**4, 10**6, 10**9]:
        assert decay_at(step, 0.9998, warmup) == theirs.get_decay(step)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [network, tied])
def test_applied_and_taken_back_bit_for_bit(make):
    model = make()
    ema = Ema(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.update(model, 0.5)
    own, places = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    average = copy.deepcopy(ema.tensors)
    with pytest.raises(KeyError), ema.applied_to(model):
        assert same(dict(model.state_dict()), average) and not same(own, average)
        raise KeyError
    assert same(dict(model.state_dict()), own) and same(ema.tensors, average)
    assert places == [p.data_ptr() for p in model.parameters()]  # DDP and compile hold on to them


def test_load_takes_values_into_the_same_tensors():
    ema, other = Ema(network()), Ema(network())
    wander(model := network(), 3)
    other.update(model, 0.0)
    places = [t.data_ptr() for t in ema.tensors.values()]
    ema.load(other.tensors)
    assert same(ema.tensors, other.tensors)
    assert places == [t.data_ptr() for t in ema.tensors.values()]


def test_load_refuses_another_model():
    ema = Ema(nn.Linear(2, 2))
    with pytest.raises(UserError, match="another model: 'bias'"):
        ema.load({"weight": torch.zeros(2, 2)})


def test_without_a_model_it_does_nothing():
    model, ema = network(), Ema()
    before = copy.deepcopy(model.state_dict())
    ema.update(model, 0.5)
    ema.load({})
    with ema.applied_to(model):
        assert same(dict(model.state_dict()), before)
    assert ema.tensors == {}

"""Parameter groups against timm's, and setting the learning rate."""

import pytest
import timm
import timm.scheduler
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from vision_tutorial.core.errors import UserError
from vision_tutorial.engine.step import set_lr
from vision_tutorial.optim import parameter_groups


@pytest.fixture(scope="module", params=["resnet18", "test_vit"])
def model(request):
    return timm.create_model(request.param, num_classes=5)


def described(groups) -> list:
    """The groups with the parameters replaced by their identity, in order."""
    return [{k: [id(p) for p in v] if k == "params" else v for k, v in g.items()} for g in groups]


def spared_by(model) -> set[str]:
    return getattr(model, "no_weight_decay", set)()


def test_groups_are_timms(model):
    given = parameter_groups(model, weight_decay=1e-3)
    expected = param_groups_weight_decay(model, 1e-3, no_weight_decay_list=spared_by(model))
    assert described(given) == described(expected) and len(given) == 2
    (group,) = parameter_groups(model, weight_decay=0.0)
    assert group["weight_decay"] == 0 and len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("no_decay_1d", [True, False])
def test_layer_decay_is_timms(model, no_decay_1d):
    given = parameter_groups(model, weight_decay=0.05, layer_decay=0.7, no_decay_1d=no_decay_1d)
    expected = param_groups_layer_decay(
        model,
        0.05,
        no_weight_decay_list=spared_by(model),
        layer_decay=0.7,
        weight_decay_exclude_1d=no_decay_1d,
    )
    assert described(given) == described(expected) and len(given) > 5


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.scale = nn.Parameter(torch.zeros(4))
        self.linear = nn.Linear(4, 2)
        self.linear.bias = nn.Parameter(torch.zeros(1, 2))  # a bias by name, not by shape

    def no_weight_decay(self):
        return {"tok*"}


def test_who_is_decayed():
    model = Toy()
    free, decayed = parameter_groups(model, weight_decay=0.1)
    free_by_kind = [model.token, model.scale, model.linear.bias]
    assert list(map(id, free["params"])) == list(map(id, free_by_kind))
    assert decayed["params"] == [model.linear.weight]
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    free, decayed = parameter_groups(model, weight_decay=0.1, no_decay_1d=False)
    assert free["params"] == [model.token] and len(decayed["params"]) == 3


def test_frozen_parameters_are_left_out():
    model = Toy()
    model.linear.requires_grad_(False)
    (free,) = parameter_groups(model, weight_decay=0.1)
    assert len(free["params"]) == 2
    model.requires_grad_(False)
    with pytest.raises(UserError, match="Toy has no trainable parameter"):
        parameter_groups(model, weight_decay=0.1)


def test_layer_decay_without_layers_is_told():
    with pytest.raises(UserError, match="layer_decay 0.5 has no effect: Toy"):
        parameter_groups(Toy(), weight_decay=0.1, layer_decay=0.5)
    assert parameter_groups(Toy(), weight_decay=0.1, layer_decay=1.0)


def test_set_lr_heeds_the_scale_of_a_layer(model):
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_lr(optimizer, 0.3)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        theirs := create_optimizer_v2(model, "momentum", lr=0.3, layer_decay=0.5),
        sched="step",
        decay_rate=1.0,
    )
    scheduler.step(1)
    given = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    expected = {id(p): g["lr"] for g in theirs.param_groups for p in g["params"]}
    assert given == expected and len(set(given.values())) > 2

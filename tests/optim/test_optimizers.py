"""Every optimizer of timm's factory and ASGD, and parameter groups: against timm's and torch's."""

import copy
from importlib.util import find_spec

import pytest
import timm
import torch
from timm.optim import (
    Lookahead,
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import optimizers as registry
from vision_tutorial.engine.step import set_lr
from vision_tutorial.optim import parameter_groups
from vision_tutorial.optim.optimizers import timm_optimizer

HERE = [n for n in list_optimizers() if not isinstance(get_optimizer_info(n).opt_class, str)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
    """The parameters after some steps on fixed data."""
    images = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    second_order = getattr(optimizer, "is_second_order", False)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1]))
        loss.backward(create_graph=second_order)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def built(name: str, model: nn.Module, **options) -> torch.optim.Optimizer:
    options = {"lr": 0.01, "weight_decay": 1e-3} | options
    groups = parameter_groups(model, weight_decay=options["weight_decay"])
    return registry.build(name, **options)(groups)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.filterwarnings("ignore:.*opt_einsum:UserWarning")
@pytest.mark.parametrize("name", [*registry, *HERE, "lookahead_sgd"])
def test_every_optimizer_takes_a_step(name):
    model = network()
    before = copy.deepcopy(list(model.parameters()))
    with torch.compiler.set_stance("force_eager"):  # Kron would compile for a minute
        after = trained(model, built(name, model), 2)
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(after, before, strict=True))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb"])
def test_the_weights_are_those_of_timms_factory(name):
    ours, theirs = network(), network()
    optimizer = built(name, ours)
    fused = {"fused": True} if optimizer.defaults.get("fused") else {}
    assert bool(fused) == (name != "lamb")
    expected = create_optimizer_v2(theirs, name, lr=0.01, weight_decay=1e-3, **fused)
    for p, q in zip(trained(ours, optimizer, 3), trained(theirs, expected, 3), strict=True):
        assert torch.equal(p, q)


def test_muon_is_exact_on_a_cpu():
    """Its first step against the iteration in float64; timm does it in bfloat16."""
    gradient = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = nn.Conv2d(2, 6, 3, bias=False)
    layer.weight.grad, before = gradient.clone(), layer.weight.detach().double()
    built("muon", layer, lr=0.5, weight_decay=0.0, ns_coefficients="original").step()
    x = gradient.double().flatten(1)
    x /= x.norm()
    for _ in range(5):  # Jordan's quintic, by its published coefficients
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    step = (before - layer.weight).flatten(1) / (0.5 * 0.2 * 18**0.5)
    torch.testing.assert_close(step, x, rtol=0, atol=2e-5)


def test_options_arrive():
    with torch.device("meta"):
        assert not built("sgd", network()).defaults.get("fused")  # torch can fuse none of these
    model = network()
    assert not built("sgd", model, foreach=True).defaults.get("fused")
    assert built("sgd", model, momentum=0.4, nesterov=False).defaults["momentum"] == 0.4
    adam = built("nadamw", model, betas=[0.8, 0.95], eps=1e-6)
    assert adam.defaults["betas"] == (0.8, 0.95) and adam.defaults["eps"] == 1e-6
    decays = [g["weight_decay"] for g in adam.param_groups]
    assert decays == [0.0, 1e-3] and {g["lr"] for g in adam.param_groups} == {0.01}
    plain = timm_optimizer("sgd", model.parameters(), lr=0.1, weight_decay=0.3)
    assert [g["weight_decay"] for g in plain.param_groups] == [0.3]
    wrapped = built("lookahead_adamw", model)
    assert isinstance(wrapped, Lookahead)
    assert isinstance(wrapped._base_optimizer, torch.optim.AdamW)


def test_asgd_is_torchs():
    ours, theirs = network(), network()
    options = {"lambd": 1e-3, "alpha": 0.6, "t0": 2.0}
    expected = torch.optim.ASGD(
        parameter_groups(theirs, weight_decay=1e-3), lr=0.05, weight_decay=1e-3, **options
    )
    given = built("asgd", ours, lr=0.05, **options)
    assert isinstance(given, torch.optim.ASGD) and given.defaults == expected.defaults
    for p, q in zip(trained(ours, given, 4), trained(theirs, expected, 4), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lookahead_asgd", {}, "no optimizer called 'lookahead_asgd'.*Known: "),  # ours, not timm's
        ("sgd", {"momentun": 0.5}, "option of 'sgd'.*did you mean 'momentum'.*lr.*weight_d"),
        ("lookahead_adamw", {"params": 1}, "no option of 'lookahead_adamw' called 'params'"),
        ("adamw", {"betas": [1.5, 0.9]}, "optimizer 'adamw': .*beta"),
        ("sgd", {"momentum": 0.0}, "optimizer 'sgd': .*nesterov: false"),
        ("asgd", {"lr": -0.1}, "optimizer 'asgd': .*learning rate"),
    ],
)
def test_bad_names_options_and_values_are_refused_in_one_line(name, options, words):
    with pytest.raises(UserError, match=words) as caught:
        built(name, network(), **options)
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_a_missing_package_says_so():
    if not find_spec("apex"):
        with pytest.raises(UserError, match="needs the package apex and a CUDA device"):
            built("fusedsgd", network())


# -- parameter groups ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["resnet18", "test_vit"])
def model(request):
    return timm.create_model(request.param, num_classes=5)


def described(groups) -> list:
    """The groups with the parameters replaced by their identity, in order."""
    return [{k: [id(p) for p in v] if k == "params" else v for k, v in g.items()} for g in groups]


@pytest.mark.parametrize("no_decay_1d", [True, False])
def test_groups_are_timms(model, no_decay_1d):
    spared = getattr(model, "no_weight_decay", set)()
    if no_decay_1d:
        given = parameter_groups(model, weight_decay=1e-3)
        expected = param_groups_weight_decay(model, 1e-3, no_weight_decay_list=spared)
        assert described(given) == described(expected) and len(given) == 2
    given = parameter_groups(model, weight_decay=0.05, layer_decay=0.7, no_decay_1d=no_decay_1d)
    options = {"no_weight_decay_list": spared, "weight_decay_exclude_1d": no_decay_1d}
    expected = param_groups_layer_decay(model, 0.05, layer_decay=0.7, **options)
    assert described(given) == described(expected) and len(given) > 5
    optimizer = torch.optim.SGD(given, lr=1.0)
    set_lr(optimizer, 0.3)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.3 * group["lr_scale"] for group in expected] and len(set(rates)) > 2


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
    (free,) = parameter_groups(model, weight_decay=0.0)
    assert free["weight_decay"] == 0 and len(free["params"]) == 4


def test_frozen_parameters_are_left_out_and_layers_must_be_known():
    model = Toy()
    with pytest.raises(UserError, match="layer_decay has no effect: Toy"):
        parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    assert parameter_groups(model, weight_decay=0.1, layer_decay=1.0)
    model.linear.requires_grad_(False)
    (free,) = parameter_groups(model, weight_decay=0.1)
    assert len(free["params"]) == 2
    model.requires_grad_(False)
    with pytest.raises(UserError, match="Toy has no trainable parameter"):
        parameter_groups(model, weight_decay=0.1)

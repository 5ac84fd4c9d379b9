"""Every optimizer of timm's factory and ASGD: built, stepped, refused in words."""

import copy

import pytest
import torch
from timm.optim import Lookahead, create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import optimizers as registry
from vision_tutorial.engine.step import set_lr
from vision_tutorial.optim import parameter_groups
from vision_tutorial.optim.optimizers import timm_optimizer

NAMES = list_optimizers()
ELSEWHERE = [n for n in NAMES if isinstance(get_optimizer_info(n).opt_class, str)]
HERE = sorted(set(NAMES) - set(ELSEWHERE))


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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_are_those_of_the_plain_loop(name):
    models = network(), network()
    fused, plain = built(name, models[0]), built(name, models[1], fused=False)
    assert fused.defaults["fused"] and not plain.defaults["fused"]
    for step in range(3):
        for model, optimizer in zip(models, (fused, plain), strict=True):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_only_parameters_that_torch_can_fuse_are_fused():
    with torch.device("meta"):
        model = network()
    assert not built("sgd", model).defaults.get("fused")
    assert not built("sgd", network(), foreach=True).defaults.get("fused")


def test_options_arrive():
    model = network()
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


@pytest.mark.parametrize("name", ["adamw", "madgrad", "lookahead_sgd", "asgd"])
def test_a_saved_state_continues_bit_equal(name):
    straight, resumed = network(), network()
    expected = trained(straight, built(name, straight), 8)
    first = built(name, resumed)
    trained(resumed, first, 3)
    second = built(name, resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for p, q in zip(trained(resumed, second, 5), expected, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["sgd", "lookahead_adamw", "asgd"])
def test_set_lr_reaches_the_optimizer(name):
    model = network()
    optimizer = built(name, model, weight_decay=0.0)
    trained(model, optimizer, 1)
    set_lr(optimizer, 0.0)
    before = [p.clone() for p in trained(model, optimizer, 1)]  # ASGD's lr acts one step later
    for p, q in zip(trained(model, optimizer, 1), before, strict=True):
        assert torch.equal(p, q)


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
    ("name", "words"),
    [
        ("asgdd", "did you mean 'asgd'"),
        ("adamx", "did you mean 'adamax'"),
        ("lookahead_asgd", "Known: "),  # ours, not timm's
    ],
)
def test_unknown_names_give_the_nearest(name, words):
    with pytest.raises(UserError, match=f"no optimizer called '{name}'.*{words}"):
        built(name, network())


@pytest.mark.parametrize(
    ("name", "option", "near"),
    [("sgd", "momentun", "momentum"), ("lookahead_adamw", "ep", "eps")],
)
def test_unknown_options_give_the_nearest_and_the_list(name, option, near):
    with pytest.raises(UserError, match=f"option of '{name}'.*did you mean '{near}'.*lr.*weight_d"):
        built(name, network(), **{option: 0.5})


@pytest.mark.parametrize("option", ["params", "opt", "layer_decay", "betas"])
def test_what_sgd_does_not_have_is_refused(option):
    """timm would drop `betas` for SGD without a word."""
    with pytest.raises(UserError, match=f"no option of 'sgd' called '{option}'"):
        timm_optimizer("sgd", network().parameters(), lr=0.1, **{option: [0.9, 0.99]})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adamw", {"betas": [1.5, 0.9]}, "beta"),
        ("adamw", {"eps": "small"}, ""),
        ("sgd", {"momentum": 0.0}, "nesterov: false"),
        ("asgd", {"lr": -0.1}, "learning rate"),
    ],
)
def test_bad_values_are_refused_in_one_line(name, options, words):
    with pytest.raises(UserError, match=f"optimizer '{name}': .*{words}") as caught:
        built(name, network(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_optimizers_of_missing_packages_say_so(name):
    package = get_optimizer_info(name).opt_class.partition(".")[0]
    try:
        made = built(name, network())
    except UserError as error:
        assert f"needs the package {package} and a CUDA device" in str(error)
    else:
        assert isinstance(made, torch.optim.Optimizer)  # it is installed here

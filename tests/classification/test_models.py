"""Every option of timm_model against timm itself, torchvision, or known numbers."""

import argparse
import logging
import math
from contextlib import nullcontext
from datetime import datetime
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision_tutorial import build
from vision_tutorial.classification.models import FAMILIES, timm_model
from vision_tutorial.core import weights
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine.profiling import cost, layers
from vision_tutorial.recipe.loading import load

# A member of every family that the CIFAR stem knows, and two ResNets whose last stage strides by
# a pool; how much smaller than the image the last feature map is, with the CIFAR stem.
FAMILY = {
    "resnest14d": ("ResNet", 8),
    "resnetblur50": ("ResNet", 8),
    "legacy_seresnet18": ("SENet", 8),
    "resnetv2_18d": ("ResNetV2", 8),
    "regnety_002": ("RegNet", 16),  # four stages halve, where a ResNet's first does not
    "resnet51q": ("ByobNet", 8),
    "nf_resnet26": ("NormFreeNet", 8),
    "densenet121": ("DenseNet", 8),
    "ese_vovnet19b_dw": ("VovNet", 8),
    "efficientnet_b0": ("EfficientNet", 16),
    "mobilenetv3_small_100": ("MobileNetV3", 16),
}
TINY = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seeded(build, *arguments, **options) -> nn.Module:
    torch.manual_seed(3)
    return build(*arguments, **options).eval()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


tiny = partial(timm_model, "resnet18", stem="cifar", **TINY)


# -- against timm and torchvision ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours", "timms"),
    [
        (
            "resnet18",
            {**TINY, "drop_path": 0.1, "dropout": 0.2, "zero_init": False},
            {**TINY, "drop_path_rate": 0.1, "drop_rate": 0.2, "zero_init_last": False},
        ),
        ("regnety_002", {"drop_path": 0.1}, {"drop_path_rate": 0.1}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, {"img_size": 32, "depth": 1}),
    ],
)
def test_without_our_options_it_is_timms_own(name, ours, timms):
    own = seeded(timm_model, name, 10, **ours)
    reference = seeded(timm.create_model, name, num_classes=10, **timms)
    assert repr(own) == repr(reference) and same_state(own, reference)
    assert torch.equal(own(IMAGES), reference(IMAGES))


def test_resnet50_with_cifar_stem_is_the_students_network():
    with torch.device("meta"):
        before = torch.random.get_rng_state()
        model = timm_model("resnet50", 100, stem="cifar", init="pytorch", zero_init=False)
        assert torch.equal(torch.random.get_rng_state(), before)  # looking up options draws nothing
        assert cost(model, 32) == (23_705_252, 1_298_014_208)


def test_outputs_equal_torchvisions_network_changed_by_hand():
    model = timm_model("resnet50", 7, stem="cifar", stage4_stride=1, init="pytorch").eval()
    reference = torchvision.models.resnet50(num_classes=7).eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    reference.layer4[0].conv2.stride = (1, 1)
    reference.layer4[0].downsample[0].stride = (1, 1)
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(IMAGES), reference(IMAGES))


@pytest.mark.parametrize("name", FAMILY)
def test_the_stem_keeps_the_images_resolution(name):
    family, smaller = FAMILY[name]
    # shapes alone, save for timm's RegNets, whose widths are computed with tensors
    with nullcontext() if family == "RegNet" else torch.device("meta"):
        images = torch.zeros(1, 3, 64, 64)
        model = timm_model(name, 10, stem="cifar").eval()
        assert type(model).__name__ == family
        assert model.forward_features(images).shape[2:] == (64 // smaller, 64 // smaller)
        if FAMILIES[family][1] is not None:
            model = timm_model(name, 10, stem="cifar", stage4_stride=1).eval()
            assert model.forward_features(images).shape[2:] == (128 // smaller, 128 // smaller)
        assert model(images).shape == (1, 10)
    assert {family for family, _ in FAMILY.values()} == set(FAMILIES)


# -- initial weights -------------------------------------------------------------------------------


def test_the_new_stem_is_drawn_as_a_3x3_layer_is():
    model = seeded(timm_model, "resnet18", 10, stem="cifar")
    reference = nn.Conv2d(3, 64, 3, bias=False)
    nn.init.kaiming_normal_(reference.weight, mode="fan_out", nonlinearity="relu")
    ratio = model.conv1.weight.std() / reference.weight.std()
    assert 0.9 < ratio < 1.1 and not model.conv1.weight.grad_fn


def test_pytorchs_initialisation_is_every_layers_own():
    model = seeded(tiny, 10, init="pytorch")
    torch.manual_seed(3)
    tiny(10)  # what timm drew first
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            sizes = module.in_channels, module.out_channels, module.kernel_size
            assert torch.equal(module.weight, nn.Conv2d(*sizes, bias=False).weight)
        elif isinstance(module, nn.Linear):
            fresh = nn.Linear(module.in_features, module.out_features)
            assert torch.equal(module.weight, fresh.weight)


@pytest.mark.parametrize(
    ("init", "zero_init", "expected"),
    [("timm", None, 0), ("timm", False, 1), ("pytorch", None, 1), ("pytorch", True, 0)],
)
def test_zero_init_of_the_last_norms(init, zero_init, expected):
    model = tiny(10, init=init, zero_init=zero_init)
    last = [block.bn2.weight for stage in (model.layer1, model.layer4) for block in stage]
    assert all(w.eq(expected).all() for w in last)
    assert model.bn1.weight.eq(1).all() and model.layer1[0].bn1.weight.eq(1).all()


# -- weights from files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.pth.tar"])
def test_weights_return_from_a_file_or_a_training_scripts_checkpoint(tmp_path, caplog, name):
    model, path = seeded(tiny, 10), tmp_path / name
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    assert same_state(tiny(10, pretrained=str(path)), model)
    plain = seeded(tiny, 7)
    with caplog.at_level(logging.WARNING):
        loaded = seeded(tiny, 7, pretrained=str(path))
    assert f"{path} has 10 classes, not 7: its classifier is left out." in caplog.text
    for key, value in loaded.state_dict().items():
        source = plain if key.startswith("fc.") else model
        assert torch.equal(value, source.state_dict()[key])


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        tiny(10, pretrained=str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_model_and_damaged_files_are_refused(tmp_path):
    state, path = tiny(10).state_dict(), tmp_path / "w.safetensors"
    save_file({k: v for k, v in state.items() if k != "bn1.bias"}, path)
    assert "lacks bn1.bias (1 in all)" in refused(path)
    save_file({**state, "extra": torch.zeros(1)}, path)
    assert "has, unknown to the model, extra (1 in all)" in refused(path)
    save_file({**state, "bn1.bias": torch.zeros(3), "fc.weight": torch.zeros(2, 8)}, path)
    assert "has in another shape bn1.bias, fc.weight (2 in all)" in refused(path)
    assert "pretrained: no file" in refused(tmp_path / "none.pt")
    state = seeded(tiny, 10).state_dict()
    for no_numbers in ("meta", torch.complex64, torch.int8, math.nan):
        one = state["conv1.weight"]
        one = one * no_numbers if no_numbers is math.nan else one.to(no_numbers)
        torch.save(state | {"conv1.weight": one}, tmp_path / "odd.pt")
        assert "has no finite numbers in conv1.weight (1 in all)" in refused(tmp_path / "odd.pt")
    path.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    assert "not a weights file" in refused(path)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "holds no state_dict" in refused(tmp_path / "empty.pt")
    torch.save(tiny(10), tmp_path / "model.pt")  # the whole model, which only its code can read
    assert "holds no state_dict" in refused(tmp_path / "model.pt")


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # reopens torch.load's default
    marker, path = tmp_path / "exploded", tmp_path / "evil.pt"
    torch.save({"state_dict": Bomb(marker)}, path)
    assert "not a weights file that can be read without running its code" in refused(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the bomb is a real one


# -- the hub ---------------------------------------------------------------------------------------


def test_offline_without_a_cache_gives_one_line_at_once(tmp_path, monkeypatch):
    def unreachable():
        raise OSError("no route")

    monkeypatch.setattr(weights, "get_session", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    with pytest.raises(UserError, match="no pretrained weights for 'resnet18' .offline") as caught:
        timm_model("resnet18", 10, pretrained=True)
    assert "local .safetensors or .pt file" in str(caught.value)
    with pytest.raises(UserError, match="timm has no pretrained weights for 'tv_resnet34'"):
        weights.prepare_hub("tv_resnet34")


def test_timms_weights_arrive_with_a_new_classifier_and_are_not_drawn_anew(monkeypatch, caplog):
    monkeypatch.setattr(weights, "prepare_hub", lambda name: None)
    source, create = seeded(timm.create_model, "resnet18"), timm.create_model

    def from_cache(name, pretrained, **options):
        overlay = {"state_dict": source.state_dict()}
        return create(name, pretrained, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", from_cache)
    model = timm_model("resnet18", 10, pretrained=True, stem="cifar", init="pytorch")
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert model.fc.out_features == 10
    assert "keeps the middle of resnet18's pretrained stem" in caplog.text


# -- complaints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet5o", {}, "no model called 'resnet5o'; did you mean 'resnet50'?"),
        ("resnet18", {"drop_path": 1.0}, "drop_path is 1.0; a number in [0, 1)"),
        ("resnet18", {"chanels": [1]}, "called 'chanels'; did you mean 'channels'?"),
        ("regnety_002", {"stem_widht": 8}, "did you mean 'stem_width'?"),
        ("resnet18", {"act_layer": "rely"}, "timm cannot build 'resnet18' with {'act_layer': "),
        ("vgg11", {"zero_init": True}, "'vgg11' (VGG) has no zero_init; leave it out."),
        ("vit_tiny_patch16_224", {"stem": "cifar"}, "'stem: cifar' does not go with"),
        ("efficientnet_b0", {"stage4_stride": 1}, "it does with ResNet, ResNetV2, SENet, RegNet"),
        ("gernet_s", {"stage4_stride": 1}, "changes nothing in model 'gernet_s'"),
    ],
)
def test_complaints_name_the_remedy(name, options, said):
    with pytest.raises(UserError) as caught:
        timm_model(name, 10, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_cost_counts_by_hand_and_leaves_the_model_alone():
    both = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    model = nn.Sequential(*both, nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    products = 3 * 8 * 9 * (8 * 6) + 2 * 8 * 9 * (8 * 6)
    assert cost(model, (16, 12)) == (3 * 8 * 9 + 8 + 2 * 8 * 9 + 8 + 16, products)
    rows = layers(model, (16, 12))
    assert [(row.name, row.shape, row.parameters, row.macs) for row in rows] == [
        ("0", (8, 8, 6), 3 * 8 * 9 + 8, 3 * 8 * 9 * (8 * 6)),
        ("1", (8, 8, 6), 2 * 8 * 9 + 8, 2 * 8 * 9 * (8 * 6)),
        *(("2", (8, 8, 6), 16, 0), ("3", (8, 1, 1), 0, 0), ("4", (8,), 0, 0)),
    ]
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Odd(nn.Module):
    """A layer that is called twice, one that is not called, and a product of its own."""

    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 1), nn.Linear(5, 7)
        self.own = nn.Parameter(torch.ones(3, 4))
        self.tied = nn.Conv2d(3, 3, 1)
        self.tied.weight = self.twice.weight

    def forward(self, x):
        return (self.tied(self.twice(self.twice(x))).mean((2, 3)) @ self.own,)


@pytest.mark.parametrize("name", ["odd", "vit_tiny_patch16_224", "deeplabv3plus"])
def test_the_layers_add_up_to_the_network(name):
    """Beside a count of torch's own over the whole network."""
    size = 224 if name.startswith("vit") else 64
    model = {"odd": Odd, "deeplabv3plus": small_deeplab}.get(name, lambda: timm_model(name, 10))()
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, size, size))
    rows = layers(model, size)
    assert 2 * sum(row.macs for row in rows) == counter.get_total_flops()
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())
    assert cost(model, size) == (sum(r.parameters for r in rows), sum(r.macs for r in rows))
    assert len({row.name for row in rows}) == len(rows)
    if name == "odd":
        found = {row.name: row[2:] for row in rows}
        assert found["twice"] == ((3, 64, 64), 12, 2 * 9 * 64 * 64)
        assert found["tied"] == ((3, 64, 64), 3, 9 * 64 * 64)
        assert found[""] == ((4,), 12, 12) and found["never"] == (None, 42, 0)


def small_deeplab() -> nn.Module:
    return build.model(load("segmentation/quickstart").recipe, 10, weights=False)


# -- what others' training scripts leave -----------------------------------------------------------


def test_weights_of_timm_lightning_and_ourselves(tmp_path, caplog):
    model = seeded(tiny, 10)
    state, path = model.state_dict(), tmp_path / "w.pth.tar"
    args = argparse.Namespace(model="tiny", lr=0.1, kind=Foreign())
    torch.save({"arch": "tiny", "state_dict": state, "args": args, "optimizer": {}}, path)
    assert same_state(tiny(10, pretrained=str(path)), model)
    named = {f"model.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(10)}
    more = {"hyper_parameters": Foreign(a=1), "pytorch-lightning_version": "2.5"}
    torch.save({"state_dict": named, **more}, path)
    assert same_state(tiny(10, pretrained=str(path)), model)
    facts = {"loss": np.float64(1), "rng": np.random.get_state(), "at": datetime.now(), "p": path}
    for inner in ({"net": state}, {"model": {"state_dict": {"model_state_dict": state}}}):
        torch.save(inner | {"seen": facts}, path)
        assert same_state(tiny(10, pretrained=str(path)), model)
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(headless, path)
    loaded = seeded(tiny, 10, pretrained=str(path))
    assert "has no classifier: it is learned from the beginning" in caplog.text
    assert torch.equal(loaded.fc.weight, seeded(tiny, 10).fc.weight)
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)
    run = tmp_path / "runs" / "a"
    for name, group in (("step-00000001", "ema"), ("step-00000002", "model")):
        (run / "ckpt" / name).mkdir(parents=True)
        other = state if group == "model" else {k: v + 1 for k, v in state.items()}
        save_file(other, run / "ckpt" / name / f"{group}.safetensors")
    assert same_state(tiny(10, pretrained=str(run)), model)  # the newest
    (run / "ckpt" / "best.json").write_text('{"folder": "step-00000001"}')
    assert not same_state(tiny(10, pretrained=str(run)), model)
    assert same_state(tiny(10, pretrained=str(run / "ckpt" / "step-00000002")), model)
    assert "pretrained: no weights in the folder" in refused(tmp_path)


class Foreign(dict):
    """A class that a checkpoint names and that reading it must not need."""


def test_a_position_embedding_of_another_size_is_resampled_as_timm_does(tmp_path):
    small, large = (partial(timm_model, "test_vit", 10, img_size=size) for size in (160, 96))
    given = small().state_dict()
    torch.save(given, tmp_path / "w.pt")
    loaded = large(pretrained=str(tmp_path / "w.pt"))
    expected = timm.models.vision_transformer.checkpoint_filter_fn(given, large())
    assert loaded.pos_embed.shape != given["pos_embed"].shape
    assert torch.equal(loaded.pos_embed, expected["pos_embed"])

"""Every option of timm_model against timm itself, torchvision, or known numbers."""

import logging
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from vision_tutorial.classification.models import FAMILIES, timm_model
from vision_tutorial.core import weights
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine.profiling import cost

# A member of every family that the CIFAR stem knows, and three ResNets whose last stage strides by
# a pool; how much smaller than the image the last feature map is, with the CIFAR stem.
FAMILY = {
    "resnet26t": ("ResNet", 8),
    "res2net50_14w_8s": ("ResNet", 8),
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


def seeded(build, *arguments, **options) -> nn.Module:
    torch.manual_seed(3)
    return build(*arguments, **options).eval()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


tiny = partial(timm_model, "resnet18", stem="cifar", **TINY)


# -- against timm ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours", "timms"),
    [
        ("resnet18", {"drop_path": 0.1, "dropout": 0.2}, {"drop_path_rate": 0.1, "drop_rate": 0.2}),
        ("resnet18", {**TINY, "zero_init": False}, {**TINY, "zero_init_last": False}),
        ("regnety_002", {"drop_path": 0.1}, {"drop_path_rate": 0.1}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, {"img_size": 32, "depth": 1}),
    ],
)
def test_without_our_options_it_is_timms_own(name, ours, timms):
    own = seeded(timm_model, name, 10, **ours)
    reference = seeded(timm.create_model, name, num_classes=10, **timms)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert repr(own) == repr(reference)
    assert same_state(own, reference)
    assert torch.equal(own(images), reference(images))


def test_equal_seeds_give_equal_weights_and_nothing_else_draws():
    assert same_state(seeded(tiny, 10), seeded(tiny, 10))
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        tiny(10)
    assert torch.equal(torch.random.get_rng_state(), before)


# -- the CIFAR stem and the last stage -------------------------------------------------------------


def test_resnet50_with_cifar_stem_is_the_students_network():
    with torch.device("meta"):
        model = timm_model("resnet50", 100, stem="cifar", init="pytorch")
        assert cost(model, 32) == (23_705_252, 1_298_014_208)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 1), ("resnet50", 1), ("resnet18", None)])
def test_outputs_equal_torchvisions_network_changed_by_hand(name, stride):
    model = timm_model(name, 7, stem="cifar", stage4_stride=stride, init="pytorch").eval()
    reference = torchvision.models.get_model(name, num_classes=7).eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    if stride == 1:
        block = reference.layer4[0]
        (block.conv2 if name == "resnet50" else block.conv1).stride = (1, 1)
        block.downsample[0].stride = (1, 1)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), reference(images))


@pytest.mark.parametrize("name", FAMILY)
def test_the_stem_keeps_the_images_resolution(name):
    family, smaller = FAMILY[name]
    has_stage = FAMILIES[family][1] is not None
    # shapes alone, save for timm's RegNets, whose widths are computed with tensors
    with nullcontext() if family == "RegNet" else torch.device("meta"):
        images = torch.zeros(1, 3, 64, 64)
        model = timm_model(name, 10, stem="cifar").eval()
        assert type(model).__name__ == family
        assert model.forward_features(images).shape[2:] == (64 // smaller, 64 // smaller)
        if has_stage:
            model = timm_model(name, 10, stem="cifar", stage4_stride=1).eval()
            assert model.forward_features(images).shape[2:] == (128 // smaller, 128 // smaller)
        assert model(images).shape == (1, 10)
    assert {family for family, _ in FAMILY.values()} == set(FAMILIES)


def test_the_new_stem_is_drawn_as_a_3x3_layer_is():
    model = seeded(timm_model, "resnet18", 10, stem="cifar")
    reference = nn.Conv2d(3, 64, 3, bias=False)
    nn.init.kaiming_normal_(reference.weight, mode="fan_out", nonlinearity="relu")
    ratio = model.conv1.weight.std() / reference.weight.std()
    assert 0.9 < ratio < 1.1 and not model.conv1.weight.grad_fn


# -- initial weights -------------------------------------------------------------------------------


def test_pytorchs_initialisation_is_every_layers_own():
    model = seeded(tiny, 10, init="pytorch")
    torch.manual_seed(3)
    tiny(10)  # what timm drew first
    with torch.random.fork_rng():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                fresh = nn.Conv2d(
                    module.in_channels, module.out_channels, module.kernel_size, bias=False
                )
            elif isinstance(module, nn.Linear):
                fresh = nn.Linear(module.in_features, module.out_features)
            else:
                continue
            assert torch.equal(module.weight, fresh.weight), name
    assert all(bn.weight.eq(1).all() for bn in model.modules() if isinstance(bn, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("init", "zero_init", "expected"),
    [
        ("timm", None, True),
        ("timm", False, False),
        ("pytorch", None, False),
        ("pytorch", True, True),
    ],
)
def test_zero_init_of_the_last_norms(init, zero_init, expected):
    model = tiny(10, init=init, zero_init=zero_init)
    last = [block.bn2.weight for stage in (model.layer1, model.layer4) for block in stage]
    assert all(w.eq(0 if expected else 1).all() for w in last)
    assert model.bn1.weight.eq(1).all() and model.layer1[0].bn1.weight.eq(1).all()


# -- weights from files ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_return_from_a_file(tmp_path, suffix):
    model, path = seeded(tiny, 10), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    assert same_state(tiny(10, pretrained=str(path)), model)


def test_weights_return_from_a_training_scripts_checkpoint(tmp_path):
    model, path = seeded(tiny, 10), tmp_path / "checkpoint.pth.tar"
    wrapped = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, path)
    assert same_state(tiny(10, pretrained=str(path)), model)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_another_class_count_leaves_the_classifier_out(tmp_path, caplog, name):
    options = TINY if name == "resnet18" else {"depth": 1}
    path = tmp_path / "weights.safetensors"
    model = seeded(timm_model, name, 10, **options)
    save_file(model.state_dict(), path)
    with caplog.at_level(logging.WARNING):
        loaded = seeded(timm_model, name, 7, pretrained=str(path), **options)
    assert f"{path} has 10 classes, not 7: its classifier is left out." in caplog.text
    plain = seeded(timm_model, name, 7, **options)
    head = model.pretrained_cfg["classifier"]
    for key, value in loaded.state_dict().items():
        source = plain if key.startswith(f"{head}.") else model
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
    path.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    assert "not a weights file" in refused(path)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "holds no state_dict" in refused(tmp_path / "empty.pt")


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
    path.write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    refused(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # the bomb is a real one


# -- the hub ---------------------------------------------------------------------------------------


def unreachable():
    raise OSError("no route")


def test_offline_without_a_cache_gives_one_line_at_once(tmp_path, monkeypatch):
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
        ("hf-hub:someone/model", {}, "no model called 'hf-hub:someone/model'"),
        ("resnet18", {"chanels": [1]}, "called 'chanels'; did you mean 'channels'?"),
        ("regnety_002", {"stem_widht": 8}, "did you mean 'stem_width'?"),
        ("resnet18", {"checkpoint_path": "evil.pth"}, "resnet18 called 'checkpoint_path'"),
        ("resnet18", {"in_chans": 1}, "called 'in_chans'"),
        ("resnet18", {"act_layer": "rely"}, "timm cannot build 'resnet18' with act_layer: rely"),
        ("vgg11", {"zero_init": True}, "'vgg11' (VGG) has no zero_init; leave it out."),
        ("vit_tiny_patch16_224", {"stem": "cifar"}, "'stem: cifar' cannot be had with"),
        ("efficientnet_b0", {"stage4_stride": 1}, "it can with ResNet, ResNetV2, SENet, RegNet"),
        ("gernet_s", {"stage4_stride": 1}, "changes nothing in model 'gernet_s'"),
    ],
)  # fmt: skip
def test_complaints_name_the_remedy(name, options, said):
    with pytest.raises(UserError) as caught:
        timm_model(name, 10, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# -- cost ------------------------------------------------------------------------------------------


def test_cost_counts_by_hand_and_leaves_the_model_alone():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    convolutions = 3 * 8 * 9 * (8 * 6) + 2 * 8 * 9 * (8 * 6)
    assert cost(model, (16, 12)) == (3 * 8 * 9 + 8 + 16 + 2 * 8 * 9 + 8 + 45, convolutions + 40)
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())

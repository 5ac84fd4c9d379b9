"""The networks against others' implementations, published sizes, sums by hand; and `smp/`."""

from functools import partial
from importlib.util import find_spec

import jsonschema
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import models
from vision_tutorial.optim import parameter_groups
from vision_tutorial.recipe.grammar import parse
from vision_tutorial.recipe.schema import schema
from vision_tutorial.recipe.signatures import read, static_signatures
from vision_tutorial.segmentation.models import deeplab, fcn
from vision_tutorial.segmentation.models import smp as entry


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def without_memory(name: str, num_classes: int = 21, **options) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **options)(num_classes)


MMSEGMENTATION = {"backbone": "resnet50c", "output_stride": 8, "aspp_channels": 512}
MMSEGMENTATION |= {"aspp_separable": True, "aspp_join_kernel": 3, "decoder_channels": 512}
MMSEGMENTATION |= {"auxiliary": True}
FCN32 = 14_714_688 + 102_764_544 + 16_781_312 + 4096 * 21 + 21  # 134.3 M


@pytest.mark.parametrize(
    ("name", "classes", "options", "expected"),
    [
        # VGG16's 14,714,688; fc6 of 3x3 and fc7 with 1024 channels; 21 scores: 20.5 M
        ("deeplabv1", 21, {}, 14_714_688 + 4_719_616 + 1_049_600 + 21_525),
        ("deeplabv2", 21, {"backbone": "vgg16"}, 14_714_688 + 4 * (4_719_616 + 1_049_600 + 21_525)),
        # ResNet-101's 42,500,160; four 3x3 of 2048 channels to 21 scores
        ("deeplabv2", 21, {}, 42_500_160 + 4 * (2048 * 9 * 21 + 21)),
        ("deeplabv3plus", 21, MMSEGMENTATION, 43_591_418),  # "43.6 M" in its model zoo
        ("deconvnet", 21, {}, 251_805_653),  # "251.8 M"
        ("unet", 2, {"norm": False}, 31_030_658 + 2 * 9 * 64),  # the original has one colour
        ("fcn", 21, {"stride": 32}, FCN32),
        # two scores and two doublings more
        ("fcn", 21, {}, FCN32 + (512 + 1) * 21 + (256 + 1) * 21 + 2 * 21 * 21 * 4 * 4),
    ],
)
def test_sizes_are_the_published_ones(name, classes, options, expected):
    assert parameters(without_memory(name, classes, **options)) == expected


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "build", "options", "size"),
    [
        ("deeplabv3_resnet50", deeplab.deeplabv3, {"decoder_convolutions": 1}, 42_004_074),
        ("fcn_resnet50", fcn.fcn, {}, 35_322_218),
    ],
)
def test_outputs_are_torchvisions(name, build, options, size):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.device("meta"):
        ours = build(21, backbone="resnet50", output_stride=8, auxiliary=True, **options)
    state = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({key: value for (key, _), value in state}, assign=True)
    assert parameters(ours) == parameters(theirs) == size
    images = torch.randn(2, 3, 32, 48)
    expected = theirs.eval()(images)
    torch.testing.assert_close(ours.eval()(images), expected["out"])
    ours.training = True  # alone: its parts stay as they are in evaluation
    torch.testing.assert_close(ours(images), (expected["out"], expected["aux"]))


def test_aspp_of_v2_is_the_sum_of_its_branches():
    options = {"backbone": "test_resnet", "field_of_view": "small"}
    network = deeplab.deeplabv2(3, **options).eval()
    images = torch.randn(1, 3, 32, 32)
    last = network.encoder(images)[-1]
    branches = [branch[0] for branch in network.classifier]
    assert [branch.dilation for branch in branches] == [(2, 2), (4, 4), (8, 8), (12, 12)]
    expected = torch.stack([branch(last) for branch in branches]).sum(0)
    torch.testing.assert_close(network.maps(images)[0], expected)
    large = without_memory("deeplabv2", backbone="test_resnet")
    assert [branch[0].dilation[0] for branch in large.classifier] == [6, 12, 18, 24]


@torch.no_grad()
def test_multi_scale_takes_the_largest_logit():
    torch.manual_seed(0)
    network = deeplab.deeplabv2(3, backbone="test_resnet", multi_scale=True).eval()
    images, bilinear = torch.randn(1, 3, 64, 48), partial(F.interpolate, mode="bilinear")
    expected = torch.full((1, 3, 64, 48), -torch.inf)
    for height, width in ((32, 24), (48, 36), (64, 48)):
        view = bilinear(images, (height, width)) if height < 64 else images
        whole = F.pad(view, (0, -width % 8))
        logits = bilinear(network.maps(whole)[0], whole.shape[2:])[..., :width]
        logits = bilinear(logits, (64, 48)) if height < 64 else logits
        expected = torch.maximum(expected, logits)
    torch.testing.assert_close(network(images), expected)


@torch.no_grad()
def test_fcn_scores_behind_vggs_pools_and_doubles_bilinearly_at_first():
    torch.manual_seed(0)
    network = fcn.fcn(2, backbone="vgg11", hidden=8).eval()
    images = torch.randn(1, 3, 64, 64)
    pools, features = [], images
    for layer in network.encoder.net.values():
        features = layer(features)
        if isinstance(layer, nn.MaxPool2d):
            pools.append(features)
    decoder = network.decoder
    expected = decoder.doubles[0](decoder.head(pools[4])) + decoder.scores[0](pools[3])
    expected = decoder.doubles[1](expected) + decoder.scores[1](pools[2])
    torch.testing.assert_close(network.maps(images)[0], expected)
    maps = torch.randn(1, 2, 5, 7)
    expected = F.interpolate(maps, scale_factor=2, mode="bilinear")
    inner = (..., slice(1, -1), slice(1, -1))  # outside the map there are zeros
    torch.testing.assert_close(decoder.doubles[0](maps)[inner], expected[inner])


installed = pytest.mark.skipif(
    not find_spec("segmentation_models_pytorch"), reason="segmentation_models_pytorch is optional"
)


def built(name: str, num_classes: int = 3, **options):
    torch.manual_seed(0)
    return models.build(name, **options)(num_classes)


def test_signatures_and_editors_know_the_prefix_without_importing(tmp_path):
    registry = static_signatures()["models"]
    assert registry.find("smp/Unet") is registry.fallbacks["smp/"]
    assert registry.find("smp/Unet").forwards
    assert registry.find("smp") is None and registry.find("snp/Unet") is None
    choice = parse({"smp/FPN": {"encoder": "resnet18", "decoder_dropout": 0.1}}, registry, "choice")
    assert choice.name == "smp/FPN"
    assert choice.options == {"encoder": "resnet18", "pretrained": False, "decoder_dropout": 0.1}
    alone = {"$ref": "#/$defs/models.choice", "$defs": schema(static_signatures())["$defs"]}
    valid = jsonschema.Draft202012Validator(alone).is_valid
    assert valid("smp/Unet") and valid({"smp/Unet": {"anything": 1}})
    assert not valid({"smp/Unet": {"encoder": 3}}) and not valid("snp/Unet")
    path = tmp_path / "mine.py"
    path.write_text("@models.register_fallback(name)\ndef mine(name, n, /): ...")
    with pytest.raises(UserError, match="mine.py:2: register_fallback takes one text, the prefix"):
        read(path)


def test_without_the_library_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(entry, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install segmentation-models-pytorch"):
        built("smp/Unet")


@installed
def test_it_is_the_librarys_own_network_and_trains():
    import segmentation_models_pytorch as library

    ours = built("smp/Unet", 3, encoder="resnet18", decoder_channels=[32, 16, 8, 8, 8]).eval()
    torch.manual_seed(0)
    options = {"encoder_weights": None, "classes": 3, "decoder_channels": [32, 16, 8, 8, 8]}
    theirs = library.Unet("resnet18", **options).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert ours(images[..., :50, :70]).shape == (1, 3, 50, 70)
    ours.train()(images).mean().backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert [p.shape[0] for p in ours.get_classifier().parameters()] == [3, 3]
    with pytest.raises(UserError, match="does not tell its layers apart"):
        parameter_groups(ours, weight_decay=0.1, layer_decay=0.5)


@installed
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("smp/Unett", {}, "no model called 'smp/Unett'; did you mean 'smp/Unet'?"),
        ("smp/Unet", {"encoder": "resnet19"}, "did you mean 'resnet18'?"),
        ("smp/Unet", {"classes": 3}, "no option of smp/Unet called 'classes'"),
        ("smp/Unet", {"pretrained": "noisy"}, "Wrong pretrained weights `noisy`"),
    ],
)
def test_complaints_of_smp_are_one_line(name, options, said, monkeypatch):
    monkeypatch.setattr(entry.weights, "look_for_hub", lambda: None)
    with pytest.raises(UserError) as caught:
        built(name, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)

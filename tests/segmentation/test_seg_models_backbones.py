"""Encoders: what timm is asked for, VGG's holes, multi-grid, and weights from files and the hub."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vision_tutorial import build
from vision_tutorial.commands import explain
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.loading import load
from vision_tutorial.segmentation.models.backbones import encoder
from vision_tutorial.segmentation.models.unet import unet

RECIPE = """
dataset: shapes
augment: [{random_crop: {size: 32, padding: 4}}]
epochs: 1
batch_size: 32
optimizer: {sgd: {lr: 0.1}}
"""


# -- output strides --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "resnet50", "vgg16_bn"])
def test_features_have_the_strides_and_channels_they_say(name, stride):
    with torch.device("meta"):
        network = encoder(name, output_stride=stride).eval()
        features = network(torch.zeros(1, 3, 128, 192))
    assert network.strides[-1] == stride and network.strides == sorted(network.strides)
    for feature, channels, each in zip(features, network.channels, network.strides, strict=True):
        assert feature.shape == (1, channels, 128 // each, 192 // each)
    assert network.strides[network.at(4)] == 4
    assert network.at(stride) == len(network.strides) - 1


@torch.no_grad()
def test_vgg_with_holes_is_vgg_at_every_other_pixel():
    """Up to the last pool, wider convolutions give, among others, what the stride gave."""
    torch.manual_seed(0)
    dense, strided = (encoder("vgg11", output_stride=s).eval() for s in (8, 32))
    strided.load_state_dict(dense.state_dict())
    for module in strided.modules():
        if isinstance(module, nn.MaxPool2d):
            module.kernel_size, module.padding = 3, 1
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(dense(images)[-2][..., ::2, ::2], strided(images)[-2])


@torch.no_grad()
@pytest.mark.parametrize(("stride", "rate"), [(8, 4), (16, 2), (32, 1)])
def test_multi_grid_multiplies_the_rate_of_the_last_stage(stride, rate):
    with torch.device("meta"):
        network = encoder("resnet50", output_stride=stride, multi_grid=[1, 2, 4])
        assert network(torch.zeros(1, 3, 64, 64))[-1].shape[-1] == 64 // stride
    dilations = [block.conv2.dilation[0] for block in network.net.layer4]
    assert dilations == [rate, 2 * rate, 4 * rate]


def test_features_that_timm_gives_channels_last_are_turned():
    with torch.device("meta"):
        network = encoder("swin_tiny_patch4_window7_224")
        features = network(torch.zeros(1, 3, 224, 224))
    sizes = [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]
    assert [f.shape[1:] for f in features] == sizes


def test_a_backbone_without_the_wanted_features_says_so():
    with torch.device("meta"):
        network = encoder("test_convnext")
        with pytest.raises(UserError, match=r"no features of stride 2, only of \[4, 8, 16, 32\]"):
            network.at(2)
        hrnet = encoder("hrnet_w18_small")
        with pytest.raises(UserError, match="leave out dropout_encoder and layer_decay"):
            hrnet.stages()


# -- weights ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_a_classifiers_file_starts_the_backbone_alone(tmp_path, name):
    path = tmp_path / "weights.safetensors"
    theirs = timm.create_model(name, num_classes=12)
    save_file(theirs.state_dict(), path)
    torch.manual_seed(0)
    network = unet(3, backbone=name, pretrained=str(path)).eval()
    images = torch.randn(1, 3, 64, 64)
    last = theirs.eval().forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(network.encoder(images)[-1], last)
    torch.manual_seed(0)
    drawn = unet(3, backbone=name).state_dict()
    changed = {k for k, value in network.state_dict().items() if not torch.equal(value, drawn[k])}
    assert changed and all(key.startswith("encoder.net.") for key in changed)


def test_a_recipe_with_weights_and_a_network_that_does_not_take_its_images(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "model: {unet: {backbone: test_resnet, pretrained: /nowhere.pt}}\n")
    given = load(path).recipe
    network = build.model(given, 3, weights=False)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="no file /nowhere.pt"):
        build.model(given, 3)
    path.write_text(RECIPE + "model: {deconvnet: {hidden: 8}}\n")
    assert explain.main([str(path)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "deconvnet does not take images of 32 px" in words
    assert "deconvnet needs images of 224 px or more, not 32x32; resize or crop to that" in words

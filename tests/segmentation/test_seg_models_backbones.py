"""Encoders: what timm is asked for, VGG's holes, multi-grid, and weights from files and the hub."""

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from vision_tutorial import build
from vision_tutorial.core import weights
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.loading import load
from vision_tutorial.segmentation.models.backbones import encoder
from vision_tutorial.segmentation.models.deeplab import deeplabv3plus
from vision_tutorial.segmentation.models.unet import unet

RECIPE = """
dataset: shapes
augment: [{random_crop: {size: 32, padding: 4}}]
epochs: 1
batch_size: 32
optimizer: {sgd: {lr: 0.1}}
model:
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe with the given model, loaded."""

    def recipe(model: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.rstrip() + f" {model}\n")
        return load(path).recipe

    return recipe


# -- output strides --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        "test_convnext",
        "resnet50",
        "tf_efficientnet_b3.ns_jft_in1k",
        "vgg16",
        "vgg16_bn",
    ],
)
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
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_vgg_with_holes_is_vgg_at_every_other_pixel(name):
    """Up to the last pool, wider convolutions give, among others, what the stride gave."""
    torch.manual_seed(0)
    dense, strided = (encoder(name, output_stride=s).eval() for s in (8, 32))
    strided.load_state_dict(dense.state_dict())
    for module in strided.modules():
        if isinstance(module, nn.MaxPool2d):
            module.kernel_size, module.padding = 3, 1
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(dense(images)[-2][..., ::2, ::2], strided(images)[-2])


def test_vggs_holes_are_where_the_paper_has_them():
    with torch.device("meta"):
        network = encoder("vgg16", output_stride=8)
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride) for p in pools] == [(3, 2)] * 3 + [(3, 1)] * 2
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.dilation[0] for c in convolutions] == [1] * 10 + [2] * 3


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
    assert [f.shape[1:] for f in features] == [
        (96, 56, 56),
        (192, 28, 28),
        (384, 14, 14),
        (768, 7, 7),
    ]


def test_a_backbone_without_the_wanted_features_says_so():
    with torch.device("meta"):
        network = encoder("test_convnext")
        with pytest.raises(UserError, match=r"no features of stride 2, only of \[4, 8, 16, 32\]"):
            network.at(2)
        hrnet = encoder("hrnet_w18_small")
        with pytest.raises(UserError, match="leave out dropout_encoder and layer_decay"):
            hrnet.stages()


# -- weights ---------------------------------------------------------------------------------------


def classifier_file(name: str, path, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = timm.create_model(name, **options).state_dict()
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return state


@pytest.mark.parametrize(
    ("name", "first", "renamed"),
    [
        ("test_resnet", "conv1.0.weight", "conv1.0.weight"),
        ("test_efficientnet", "conv_stem.weight", "conv_stem.weight"),
        ("test_convnext", "stages.3.blocks.0.conv_dw.weight", "stages_3.blocks.0.conv_dw.weight"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_classifiers_file_starts_the_backbone(tmp_path, name, first, renamed, suffix):
    path = tmp_path / f"weights{suffix}"
    state = classifier_file(name, path, num_classes=12)
    network = unet(3, backbone=name, pretrained=str(path))
    assert torch.equal(network.encoder.net.state_dict()[renamed], state[first])
    images = torch.randn(1, 3, 64, 64)
    whole = timm.create_model(name, num_classes=12, features_only=True)
    theirs = timm.create_model(name, num_classes=12)
    theirs.load_state_dict(state)
    last = theirs.eval().forward_intermediates(images, intermediates_only=True)[-1]
    assert whole.feature_info.channels()[-1] == last.shape[1]
    torch.testing.assert_close(network.encoder.eval()(images)[-1], last)


def test_a_file_changes_the_backbone_alone(tmp_path):
    path = tmp_path / "weights.safetensors"
    classifier_file("test_resnet", path)
    options = {"backbone": "test_resnet", "aspp_channels": 8}
    states = []
    for pretrained in (str(path), False):
        torch.manual_seed(0)
        states.append(deeplabv3plus(3, pretrained=pretrained, **options).state_dict())
    first, second = states
    changed = {key for key in first if not torch.equal(first[key], second[key])}
    assert changed and all(key.startswith("encoder.net.") for key in changed)


def refused(path, name="test_resnet") -> str:
    with pytest.raises(UserError) as caught:
        unet(3, backbone=name, pretrained=str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_other_networks_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = classifier_file("test_resnet", path)
    assert "lacks" in refused(path, "test_efficientnet")
    save_file({**state, "extra": torch.zeros(1)}, path)
    assert "unknown to the model, extra (1 in all)" in refused(path)
    save_file({**state, "conv1.0.weight": torch.zeros(3)}, path)
    assert "in another shape conv1.0.weight (1 in all)" in refused(path)
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    unet(3, backbone="test_resnet", pretrained=str(path))  # a backbone needs no classifier
    assert "pretrained: no file" in refused(tmp_path / "none.pt")


def test_offline_without_a_cache_gives_one_line(tmp_path, monkeypatch):
    def unreachable():
        raise OSError("no route")

    monkeypatch.setattr(weights, "get_session", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    with pytest.raises(UserError, match="no pretrained weights for 'test_resnet.r160_in1k' .off"):
        encoder("test_resnet.r160_in1k", pretrained=True)


def test_build_replaces_weights_by_random_ones_on_request(recipe):
    given = recipe("{unet: {backbone: test_resnet, pretrained: /nowhere.pt}}")
    network = build.model(given, 3, weights=False)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="no file /nowhere.pt"):
        build.model(given, 3)


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "unet",
        "{deeplabv1: {pretrained: true}}",
        "{deeplabv2: {backbone: vgg16, field_of_view: small}}",
        "{deeplabv3: {backbone: tf_efficientnet_b7.ns_jft_in1k, output_stride: 32, projection: 512,"
        " rates: [1, 3, 6, 9], dropout_decoder: 0.05, dropout_projection: 0.3}}",
        "{deeplabv3plus: {backbone: tf_efficientnet_b3.ap_in1k, pretrained: true}}",
        "{deeplabv3: {multi_grid: [1, 2, 4], auxiliary: true}}",
        "{fcn: {stride: 16}}",
    ],
)
def test_recipes_dry_build(recipe, model):
    made = recipe(model)
    if made.model.options.get("auxiliary"):
        made = made.model_copy(update={"aux_loss": made.loss})
    network = build.check(made, 12)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.get_classifier()[-1].out_channels == 12


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{deeplabv3pluss: {}}", "did you mean 'deeplabv3plus'"),
        ("{deeplabv3: {output_stride: 4}}", "expected: 8, 16 or 32"),
        ("{deeplabv3: {rates: [1.5]}}", "given [1.5]"),
        ("{unet: {chanels: [1]}}", "did you mean 'channels'"),
    ],
)
def test_typos_are_answered_before_torch(recipe, model, said):
    with pytest.raises(UserError) as caught:
        recipe(model)
    assert said in str(caught.value)


def test_explain_says_that_deconvnet_needs_224_pixels(tmp_path, capsys):
    from vision_tutorial.commands import explain

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.rstrip() + " {deconvnet: {hidden: 8}}\n")
    assert explain.main([str(path)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "deconvnet does not take images of 32 px" in words
    assert "deconvnet needs images of 224 px or more, not 32x32; resize or crop to that" in words

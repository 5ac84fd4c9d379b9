"""What every network keeps: sizes, modes, seeds, gradients, options; its encoder and weights."""

import copy
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from vision_tutorial import build
from vision_tutorial.commands.of_recipes import explain
from vision_tutorial.core.errors import UserError
from vision_tutorial.optim import parameter_groups
from vision_tutorial.recipe.loading import load
from vision_tutorial.segmentation.models import fcn as fcn_file
from vision_tutorial.segmentation.models.backbones import Encoder
from vision_tutorial.segmentation.models.deeplab import (
    deeplabv1,
    deeplabv2,
    deeplabv3,
    deeplabv3plus,
)
from vision_tutorial.segmentation.models.fcn import deconvnet, fcn
from vision_tutorial.segmentation.models.unet import unet

TINY = "test_resnet"
AUXILIARY = {"auxiliary": True, "auxiliary_channels": 8}
SMALL = {  # each network at its cheapest
    "deeplabv1": partial(deeplabv1, backbone="vgg11", hidden=8),
    "deeplabv2": partial(deeplabv2, backbone=TINY, multi_scale=True),
    "deeplabv2 vgg": partial(deeplabv2, backbone="vgg11_bn", hidden=8),
    "deeplabv3": partial(deeplabv3, backbone=TINY, aspp_channels=8, **AUXILIARY),
    "deeplabv3 projected": partial(
        deeplabv3, backbone="test_efficientnet", output_stride=32, projection=12, aspp_channels=8
    ),
    "deeplabv3plus": partial(
        deeplabv3plus, backbone=TINY, aspp_channels=8, decoder_channels=8, **AUXILIARY
    ),
    "unet": partial(unet, channels=[4, 8, 8]),
    "unet without norm": partial(unet, channels=[4, 8, 8], norm=False),
    "unet on a backbone": partial(unet, backbone="test_convnext"),
    "fcn": partial(fcn, backbone=TINY, **AUXILIARY),
    "fcn vgg": partial(fcn, backbone="vgg11", hidden=8),
}
LAST_LAYERS = {"deeplabv2": 4, "deeplabv2 vgg": 4, "deeplabv3": 2, "deeplabv3plus": 2}
LAST_LAYERS |= {"fcn": 4, "fcn vgg": 3}  # one elsewhere


def seeded(build, *arguments, **options) -> nn.Module:
    torch.manual_seed(3)
    return build(*arguments, **options)


def noise(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=SMALL)
def built(request) -> tuple[str, nn.Module]:
    """The name of a network, and the network in evaluation, built once for all tests."""
    return request.param, seeded(SMALL[request.param], 5).eval()


# -- every network ---------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_have_the_size_of_the_image_in_any_memory_format(built):
    name, network = built
    assert network(noise(1, 3, 64, 64)).shape == (1, 5, 64, 64)
    images = noise(1, 3, 45, 70)  # padded inside with zeros
    logits = network(images)
    stride = network.stride
    larger = F.pad(images, (0, -70 % stride, 0, -45 % stride))
    if name != "deeplabv2":  # which also sees the image smaller
        assert torch.equal(network(larger)[..., :45, :70], logits)
    assert logits.shape == (1, 5, 45, 70) and logits.isfinite().all() and logits.std() > 0
    turned = copy.deepcopy(network).to(memory_format=torch.channels_last)
    given = turned(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(given, logits, rtol=1e-4, atol=1e-4)


def test_a_batch_of_one_trains_and_reaches_every_parameter(built):
    name, network = built
    network = copy.deepcopy(network).train()
    output = network(noise(1, 3, 40, 50))
    assert isinstance(output, tuple) == (network.auxiliary is not None)
    output = torch.stack(output) if isinstance(output, tuple) else output
    assert output.shape[-3:] == (5, 40, 50)
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_layer_decay_falls_towards_the_image(built):
    _, network = built
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in network.named_parameters()}
    order = [scales[name] for name in scales if name.startswith("encoder.")]
    assert order == sorted(order) and len(set(order)) > 2 and max(order) == 0.5
    assert {scales[n] for n in scales if not n.startswith("encoder.")} == {1.0}
    assert len(scales) == sum(len(group["params"]) for group in groups)


def test_adaptive_clipping_knows_the_last_layers(built):
    name, network = built
    last = list(network.get_classifier())
    assert len(last) == LAST_LAYERS.get(name, 1)
    assert all(layer.out_channels == 5 for layer in last)
    own = {id(p) for p in network.parameters()}
    assert all(id(p) in own for layer in last for p in layer.parameters())


# -- some networks ---------------------------------------------------------------------------------


@torch.no_grad()
def test_deconvnet_takes_one_image_of_224_pixels_and_none_below(monkeypatch):
    """fc6 leaves one value a channel there. On VGG11, whose pools have VGG16's channels."""
    monkeypatch.setattr(fcn_file, "Encoder", lambda name, **o: Encoder("vgg11_bn", **o))
    network = seeded(deconvnet, 3, hidden=8).train()
    assert network(noise(1, 3, 224, 224)).shape == (1, 3, 224, 224)
    with pytest.raises(UserError, match="deconvnet needs images of 224 px, not 300x190"):
        network(noise(1, 3, 190, 300))
    mirror = network.decoder  # puts maxima back where they were
    mirror.fully_connected = nn.Identity()
    mirror.levels = nn.ModuleList(nn.Identity() for _ in range(5))
    top = pooled = torch.rand(1, 2, 64, 96)
    places = []
    for _ in range(5):
        pooled, where = F.max_pool2d(pooled, 2, return_indices=True)
        places.append(where)
    back = mirror(pooled, places)
    assert back.shape == top.shape
    assert torch.equal(back[back != 0], top[back != 0]) and (back != 0).sum() == pooled.numel()


def test_the_compiler_sees_one_graph_and_autocast_ends_before_the_logits():
    network, images = seeded(SMALL["unet"], 3).eval(), noise(2, 3, 40, 48)
    given = torch.compile(network, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(given, network(images))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.train()(images)
    logits.mean().backward()
    assert logits.dtype == torch.float32
    assert all(p.grad is not None for p in network.parameters())


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decoder_separable": False}, [1, 6, 12, 18]),
        ({"output_stride": 8}, [1, 12, 24, 36]),
        ({"rates": [2, 1], "aspp_separable": True, "decoder_separable": False}, [2, 1]),
    ],
)
def test_rates_and_where_convolutions_are_separable(options, expected):
    with torch.device("meta"):
        network = deeplabv3plus(3, backbone=TINY, aspp_channels=8, **options)
    pyramid = network.decoder.pyramid
    branches = pyramid[-1].branches[:-1]
    first = [next(m for m in branch if isinstance(m, nn.Conv2d)) for branch in branches]
    assert [layer.dilation[0] for layer in first] == expected
    assert [layer.kernel_size[0] for layer in first] == [1 if r == 1 else 3 for r in expected]

    def depthwise(module):
        return sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in module.modules())

    in_aspp = depthwise(pyramid)
    assert in_aspp == (1 if options.get("aspp_separable") else 0)  # of the rates above 1
    assert depthwise(network.decoder) - in_aspp == 2 * options.get("decoder_separable", True)


def test_dropout_is_where_its_option_says():
    def dropout_rates(module: nn.Module) -> list[float]:
        return [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.p]

    with torch.device("meta"):
        plus = partial(deeplabv3plus, backbone=TINY, aspp_channels=8)
        assert dropout_rates(plus(3)) == [0.1] and dropout_rates(plus(3, dropout=0)) == []
        network = plus(3, dropout=0, dropout_decoder=0.05, projection=16, dropout_projection=0.3)
        front, aspp = network.decoder.pyramid
        assert front[0].out_channels == 16 and dropout_rates(front) == [0.3]
        assert dropout_rates(aspp) == [0.05] * 6  # four rates, the mean, what joins them
        assert dropout_rates(network.decoder) == [0.3] + [0.05] * 9
        network = deeplabv3(3, backbone=TINY, decoder_convolutions=2, dropout_decoder=0.2)
        assert dropout_rates(network.decoder) == [0.2] * 8
        assert dropout_rates(unet(3, channels=[4, 8], dropout_decoder=0.2)) == [0.2] * 2
        assert dropout_rates(fcn(3)) == [0.5] * 2
        assert dropout_rates(deconvnet(3, dropout_decoder=0.2)) == [0.2] * 16


@pytest.mark.parametrize("backbone", [TINY, "test_convnext"])
def test_dropout_in_the_encoder_is_behind_every_stage(backbone):
    network = seeded(Encoder, backbone, dropout=0.5)
    twin, images = copy.deepcopy(network), noise(2, 3, 64, 64)
    for features in network.train()(images):
        assert 0.4 < (features == 0).float().mean() < 0.8
    plain = Encoder(backbone)
    plain.load_state_dict(twin.state_dict())
    assert all(map(torch.equal, twin.eval()(images), plain.eval()(images)))  # its mode is its own


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (deeplabv1, {"backbone": "resnet50"}, "deeplabv1 is made of a VGG, not of 'resnet50'"),
        (deeplabv1, {"dropout": 1.5}, "dropout is 1.5; a number in [0, 1)"),
        (deeplabv2, {"backbone": "densenet121"}, "'densenet121' with {'output_stride': 8}"),
        (deeplabv2, {"backbone": TINY, "rates": [0, 1]}, "rates is 0"),
        (deeplabv3, {"backbone": "resnet5o"}, "no backbone called 'resnet5o'; did you mean"),
        (deeplabv3, {"backbone": "test_vit", "output_stride": 32}, "ends at stride 16, not at 32"),
        (deeplabv3, {"multi_grid": [1, 2]}, "2 rates for 3 blocks"),
        (
            deeplabv3,
            {"backbone": TINY, "dropout_projection": 0.3},
            "dropout_projection needs a projection",
        ),
        (deeplabv3, {"backbone": TINY, "dropout_encoder": 1.0}, "dropout_encoder is 1.0;"),
        (deeplabv3plus, {"backbone": TINY, "auxiliary_channels": 0}, "auxiliary_channels is 0"),
        (fcn, {"output_stride": 8, "stride": 16}, "stride 16 is above output_stride 8"),
        (unet, {"pretrained": True}, "without a backbone"),
        (unet, {"channels": [8]}, "at least 2 are needed"),
    ],
)
def test_errors_say_what_to_do(build, options, words):
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build(3, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


RECIPE = """
dataset: shapes
augment: [{random_crop: {size: 32, padding: 4}}]
epochs: 1
batch_size: 32
optimizer: {sgd: {lr: 0.1}}
"""


# -- output strides --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "stride"),
    [
        *(("test_efficientnet", 8), ("test_convnext", 16), ("resnet50", 8), ("resnet50", 32)),
        *(("vgg16_bn", 8), ("vgg16_bn", 16), ("vgg16_bn", 32)),
        ("swin_tiny_patch4_window7_224", 32),  # whose features timm gives channels last
    ],
)
def test_features_have_the_strides_and_channels_they_say(name, stride):
    with torch.device("meta"):
        network = Encoder(name, output_stride=stride).eval()
        features = network(torch.zeros(1, 3, 224, 224))
    assert network.strides[-1] == stride and network.strides == sorted(network.strides)
    for feature, channels, each in zip(features, network.channels, network.strides, strict=True):
        assert feature.shape == (1, channels, 224 // each, 224 // each)
    assert network.strides[network.at(4)] == 4
    assert network.at(stride) == len(network.strides) - 1


@torch.no_grad()
def test_vgg_with_holes_is_vgg_at_every_other_pixel():
    """Up to the last pool, wider convolutions give, among others, what the stride gave."""
    torch.manual_seed(0)
    dense, strided = (Encoder("vgg11", output_stride=s).eval() for s in (8, 32))
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
        network = Encoder("resnet50", output_stride=stride, multi_grid=[1, 2, 4])
        assert network(torch.zeros(1, 3, 64, 64))[-1].shape[-1] == 64 // stride
    dilations = [block.conv2.dilation[0] for block in network.net.layer4]
    assert dilations == [rate, 2 * rate, 4 * rate]


def test_a_backbone_without_the_wanted_features_says_so():
    with torch.device("meta"):
        network = Encoder("test_convnext")
        with pytest.raises(UserError, match=r"has strides \[4, 8, 16, 32\], not 2"):
            network.at(2)
        hrnet = Encoder("hrnet_w18_small")
        with pytest.raises(UserError, match="leave dropout_encoder and layer_decay out"):
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
    assert "deconvnet needs images of 224 px, not 32x32; resize" in words

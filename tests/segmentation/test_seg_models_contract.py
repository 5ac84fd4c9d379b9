"""What every network keeps: sizes, modes, seeds, gradients, options, what the engine asks for."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vision_tutorial.core.errors import UserError
from vision_tutorial.optim import parameter_groups
from vision_tutorial.segmentation.models import deconvnet as deconvnet_file
from vision_tutorial.segmentation.models.backbones import encoder
from vision_tutorial.segmentation.models.deconvnet import deconvnet
from vision_tutorial.segmentation.models.deeplab import (
    deeplabv1,
    deeplabv2,
    deeplabv3,
    deeplabv3plus,
)
from vision_tutorial.segmentation.models.fcn import fcn
from vision_tutorial.segmentation.models.layers import BatchNorm
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
    "deeplabv3plus vgg": partial(deeplabv3plus, backbone="vgg11_bn", aspp_channels=8),
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


def without_gradient(network: nn.Module) -> list[str]:
    return [name for name, p in network.named_parameters() if p.grad is None]


@pytest.fixture(scope="module", params=SMALL)
def built(request) -> tuple[str, nn.Module]:
    """The name of a network, and the network in evaluation, built once for all tests."""
    return request.param, seeded(SMALL[request.param], 5).eval()


# -- every network ---------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_have_the_size_of_the_image_in_any_memory_format(built):
    _, network = built
    assert network(noise(1, 3, 64, 64)).shape == (1, 5, 64, 64)
    images = noise(1, 3, 45, 70)  # padded inside with zeros
    logits = network(images)
    stride = network.stride
    larger = F.pad(images, (0, -70 % stride, 0, -45 % stride))
    if not hasattr(network, "scales"):
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
    assert not without_gradient(network)
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_weights_are_a_function_of_the_seed_and_need_no_memory(built):
    name, network = built
    again = seeded(SMALL[name], 5).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        network = SMALL[name](3)
    assert all(t.is_meta for t in network.state_dict().values())
    assert torch.equal(torch.random.get_rng_state(), before)


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
    monkeypatch.setattr(deconvnet_file, "encoder", lambda name, **o: encoder("vgg11_bn", **o))
    network = seeded(deconvnet, 3, hidden=8).train()
    assert network(noise(1, 3, 224, 224)).shape == (1, 3, 224, 224)
    with pytest.raises(UserError, match="deconvnet needs images of 224 px or more, not 300x190"):
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


def test_batch_norm_of_one_value_uses_what_it_has_learnt():
    norm, plain = BatchNorm(4).train(), nn.BatchNorm2d(4).train()
    many, one = noise(2, 4, 3, 3), noise(1, 4, 1, 1)
    assert torch.equal(norm(many), plain(many))
    before = copy.deepcopy(norm.state_dict())
    assert torch.equal(norm(one), plain.eval()(one))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_the_compiler_sees_one_graph_and_autocast_ends_before_the_logits():
    network, images = seeded(SMALL["unet"], 3).eval(), noise(2, 3, 40, 48)
    given = torch.compile(network, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(given, network(images))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.train()(images)
    logits.mean().backward()
    assert logits.dtype == torch.float32 and not without_gradient(network)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 6, 12, 18]),
        ({"output_stride": 8}, [1, 12, 24, 36]),
        ({"rates": [2, 1], "output_stride": 8, "aspp_separable": True}, [2, 1]),
    ],
)
def test_rates(options, expected):
    with torch.device("meta"):
        branches = deeplabv3(3, backbone=TINY, **options).decoder[-1].branches[:-1]
    first = [next(m for m in branch if isinstance(m, nn.Conv2d)) for branch in branches]
    assert [layer.dilation[0] for layer in first] == expected
    assert [layer.kernel_size[0] for layer in first] == [1 if r == 1 else 3 for r in expected]


@pytest.mark.parametrize(("aspp", "decoder"), [(False, True), (True, False)])
def test_separable_convolutions_are_where_their_options_say(aspp, decoder):
    with torch.device("meta"):
        options = {"aspp_separable": aspp, "decoder_separable": decoder}
        network = deeplabv3plus(3, backbone=TINY, aspp_channels=8, **options)

    def depthwise(module):
        return sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in module.modules())

    in_aspp = depthwise(network.decoder.pyramid)
    assert in_aspp == 3 * aspp  # three rates above 1
    assert depthwise(network.decoder) - in_aspp == 2 * decoder


def dropout_rates(module: nn.Module) -> list[float]:
    return [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.p]


def test_dropout_is_where_its_option_says():
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
    network = seeded(encoder, backbone, dropout=0.5)
    twin, images = copy.deepcopy(network), noise(2, 3, 64, 64)
    for features in network.train()(images):
        assert 0.4 < (features == 0).float().mean() < 0.8
    plain = encoder(backbone)
    plain.load_state_dict(twin.state_dict())
    assert all(map(torch.equal, twin.eval()(images), plain.eval()(images)))  # its mode is its own


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (deeplabv1, {"backbone": "resnet50"}, "deeplabv1 is made of a VGG, not of 'resnet50'"),
        (deeplabv1, {"dropout": 1.5}, "dropout is 1.5; a number in [0, 1)"),
        (deeplabv1, {"rate": 0}, "rate is 0"),
        (deeplabv2, {"backbone": "densenet121"}, "'densenet121' with {'output_stride': 8}"),
        (deeplabv2, {"backbone": TINY, "rates": [0, 1]}, "rates is 0"),
        (deeplabv3, {"backbone": "resnet5o"}, "no backbone called 'resnet5o'; did you mean"),
        (deeplabv3, {"backbone": "test_vit", "output_stride": 32}, "ends at stride 16, not at 32"),
        (deeplabv3, {"multi_grid": [1, 2]}, "2 rates for the 3 blocks"),
        (deeplabv3, {"backbone": "test_efficientnet", "multi_grid": [1]}, "and take a ResNet"),
        (deeplabv3, {"backbone": TINY, "dropout_projection": 0.3}, "there is no projection"),
        (deeplabv3, {"backbone": TINY, "dropout_encoder": 1.0}, "dropout_encoder is 1.0;"),
        (deeplabv3, {"decoder_convolutions": -1}, "decoder_convolutions is -1"),
        (deeplabv3plus, {"backbone": TINY, "auxiliary_channels": 0}, "auxiliary_channels is 0"),
        (fcn, {"output_stride": 8, "stride": 16}, "coarser than output_stride 8"),
        (unet, {"pretrained": True}, "without a backbone"),
        (unet, {"channels": [8]}, "at least 2 are needed"),
        (unet, {"backbone": TINY, "channels": [8, 8]}, "5, for strides 1 to 16"),
    ],
)
def test_errors_say_what_to_do(build, options, words):
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build(3, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)

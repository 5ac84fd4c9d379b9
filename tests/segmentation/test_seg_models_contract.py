"""What every network keeps: sizes, modes, seeds, gradients, options, what the engine asks for."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vision_tutorial.core.errors import UserError
from vision_tutorial.optim.groups import parameter_groups
from vision_tutorial.segmentation.models import deconvnet as mirrored
from vision_tutorial.segmentation.models.backbones import encoder
from vision_tutorial.segmentation.models.deconvnet import deconvnet
from vision_tutorial.segmentation.models.deeplab import deeplabv3, deeplabv3plus
from vision_tutorial.segmentation.models.deeplab_early import deeplabv1, deeplabv2
from vision_tutorial.segmentation.models.fcn import fcn
from vision_tutorial.segmentation.models.layers import BatchNorm, convolution
from vision_tutorial.segmentation.models.unet import unet

TINY = "test_resnet"
SMALL = {  # each network at its cheapest
    "deeplabv1": partial(deeplabv1, backbone="vgg11", hidden=8),
    "deeplabv2": partial(deeplabv2, backbone=TINY),
    "deeplabv2 multi-scale": partial(deeplabv2, backbone=TINY, multi_scale=True),
    "deeplabv2 vgg": partial(deeplabv2, backbone="vgg11_bn", hidden=8),
    "deeplabv3": partial(deeplabv3, backbone=TINY, aspp_channels=8),
    "deeplabv3 projected": partial(
        deeplabv3, backbone="test_efficientnet", output_stride=32, projection=12, aspp_channels=8
    ),
    "deeplabv3plus": partial(deeplabv3plus, backbone=TINY, aspp_channels=8, decoder_channels=8),
    "deeplabv3plus vgg": partial(deeplabv3plus, backbone="vgg11_bn", aspp_channels=8),
    "unet": partial(unet, channels=[4, 8, 8]),
    "unet without norm": partial(unet, channels=[4, 8, 8], norm=False),
    "unet on a backbone": partial(unet, backbone="test_convnext"),
    "fcn": partial(fcn, backbone=TINY),
    "fcn vgg": partial(fcn, backbone="vgg11", hidden=8),
}
WITH_AUXILIARY = {
    "deeplabv3": partial(SMALL["deeplabv3"], auxiliary=True, auxiliary_channels=8),
    "deeplabv3plus": partial(SMALL["deeplabv3plus"], auxiliary=True, auxiliary_channels=8),
    "fcn": partial(SMALL["fcn"], auxiliary=True, auxiliary_channels=8),
}
every = pytest.mark.parametrize("name", SMALL)
trains_two = pytest.mark.parametrize("name", WITH_AUXILIARY)


def seeded(build, *arguments, seed=3, **options) -> nn.Module:
    torch.manual_seed(seed)
    return build(*arguments, **options)


def pictures(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def reached(network: nn.Module) -> list[str]:
    """The parameters without a gradient."""
    return [name for name, p in network.named_parameters() if p.grad is None]


# -- sizes and modes -------------------------------------------------------------------------------


@every
def test_logits_have_the_images_size_whatever_it_is(name):
    network = seeded(SMALL[name], 5).eval()
    with torch.no_grad():
        for size in ((64, 64), (45, 70)):
            logits = network(pictures(1, 3, *size))
            assert logits.shape == (1, 5, *size) and logits.isfinite().all() and logits.std() > 0


@every
def test_a_batch_of_one_trains_and_reaches_every_parameter(name):
    network = seeded(SMALL[name], 3).train()
    logits = network(pictures(1, 3, 64, 64))
    F.cross_entropy(logits, torch.zeros(1, 64, 64, dtype=torch.int64)).backward()
    assert not reached(network)
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_deconvnet_trains_on_one_image_of_its_least_size(monkeypatch):
    """fc6 leaves one value a channel there. On VGG11, whose pools have VGG16's channels."""
    monkeypatch.setattr(mirrored, "encoder", lambda name, **o: encoder("vgg11_bn", **o))
    network = seeded(deconvnet, 3, hidden=8).train()
    logits = network(pictures(1, 3, 224, 224))
    assert logits.shape == (1, 3, 224, 224)
    logits.square().mean().backward()
    assert not reached(network)
    with pytest.raises(UserError, match="deconvnet needs images of 224 px or more, not 300x190"):
        network(pictures(1, 3, 190, 300))


def test_deconvnet_puts_maxima_back_where_they_were(monkeypatch):
    monkeypatch.setattr(mirrored, "encoder", lambda name, **o: encoder("vgg11_bn", **o))
    with torch.device("meta"):
        mirror = deconvnet(3, hidden=8).decoder
    mirror.fully_connected = nn.Identity()
    mirror.levels = nn.ModuleList(nn.Identity() for _ in range(5))
    top, places = torch.rand(1, 2, 64, 96), []
    pooled = top
    for _ in range(5):
        pooled, where = F.max_pool2d(pooled, 2, return_indices=True)
        places.append(where)
    back = mirror(pooled, places)
    assert back.shape == top.shape
    assert torch.equal(back[back != 0], top[back != 0]) and (back != 0).sum() == pooled.numel()


@torch.no_grad()
def test_padding_is_zeros_and_is_cut_off_again():
    network = seeded(SMALL["deeplabv3plus"], 3).eval()
    images = pictures(1, 3, 40, 50)
    larger = F.pad(images, (0, 14, 0, 8))
    assert torch.equal(network(images), network(larger)[..., :40, :50])


@trains_two
def test_the_auxiliary_head_speaks_in_training_alone(name):
    network = seeded(WITH_AUXILIARY[name], 3)
    images = pictures(2, 3, 40, 50)
    main, auxiliary = network.train()(images)
    assert main.shape == auxiliary.shape == (2, 3, 40, 50)
    (main.mean() + auxiliary.mean()).backward()
    assert not reached(network)
    assert network.eval()(images).shape == (2, 3, 40, 50)


@trains_two
def test_the_auxiliary_head_is_fcns_on_stage_three(name):
    network = WITH_AUXILIARY[name](7)
    conv, norm, relu, drop, score = network.auxiliary
    channels = network.encoder.channels[3]
    assert (conv.in_channels, conv.kernel_size, conv.out_channels) == (channels, (3, 3), 8)
    assert (drop.p, score.kernel_size, score.out_channels) == (0.1, (1, 1), 7)
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(relu, nn.ReLU)
    images = pictures(1, 3, 64, 64)
    seen = []
    network.auxiliary.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0]))
    network.train()(images)
    assert seen[0].shape[1] == channels


def test_batch_norm_of_one_value_uses_what_it_has_learnt():
    norm, plain = BatchNorm(4).train(), nn.BatchNorm2d(4).train()
    many, one = pictures(2, 4, 3, 3), pictures(1, 4, 1, 1)
    assert torch.equal(norm(many), plain(many))
    with pytest.raises(ValueError, match="more than 1 value"):
        plain(one)
    before = copy.deepcopy(norm.state_dict())
    assert torch.equal(norm(one), plain.eval()(one))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


# -- seeds, meta, memory formats, compile ----------------------------------------------------------


@every
def test_weights_are_a_function_of_the_seed(name):
    one, same, other = (seeded(SMALL[name], 3, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@every
def test_construction_without_memory_draws_nothing(name):
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        network = SMALL[name](3)
    assert all(t.is_meta for t in network.state_dict().values())
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.no_grad()
@every
def test_memory_format_changes_nothing(name):
    network, images = seeded(SMALL[name], 3).eval(), pictures(1, 3, 64, 64)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    given = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_the_compiler_sees_one_graph():
    network, images = seeded(SMALL["deeplabv3plus"], 3, dropout=0), pictures(2, 3, 40, 48)
    expected = copy.deepcopy(network)(images)
    given = torch.compile(network, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(given, expected)


def test_autocast():
    network = seeded(SMALL["deeplabv3plus"], 3).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(pictures(1, 3, 64, 64))
    logits.mean().backward()
    assert logits.dtype == torch.float32 and logits.isfinite().all() and not reached(network)


# -- options ---------------------------------------------------------------------------------------


def dilations(network: nn.Module) -> list[int]:
    """Of ASPP's branches that have a 3x3 convolution; 1 for those that have not."""
    branches = network.decoder[-1].branches[:-1]
    return [max(c.dilation[0] for c in b if isinstance(c, nn.Conv2d)) for b in branches]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 6, 12, 18]),
        ({"output_stride": 8}, [1, 12, 24, 36]),
        ({"output_stride": 32}, [1, 6, 12, 18]),
        ({"rates": [1, 3, 6, 9]}, [1, 3, 6, 9]),
        ({"rates": [1, 6, 18, 30], "output_stride": 8}, [1, 6, 18, 30]),
        ({"rates": [1, 4, 12, 20], "aspp_separable": True}, [1, 4, 12, 20]),
        ({"rates": [2, 1]}, [2, 1]),
    ],
)
def test_rates(options, expected):
    network = deeplabv3(3, backbone=TINY, **options)
    assert dilations(network) == expected
    kernels = [b[0].kernel_size[0] for b in network.decoder[-1].branches[:-1]]
    assert kernels == [1 if rate == 1 else 3 for rate in expected]


def test_separable_convolutions_are_depthwise_then_pointwise():
    layers = convolution(8, 5, dilation=3, separable=True)
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [(c.groups, c.kernel_size, c.dilation) for c in convs] == [
        (8, (3, 3), (3, 3)),
        (1, (1, 1), (1, 1)),
    ]
    assert layers(pictures(2, 8, 7, 9)).shape == (2, 5, 7, 9)
    network = deeplabv3plus(3, backbone=TINY)
    assert [conv[0].groups > 1 for conv in network.decoder.refine] == [True, True]


def rates_of_dropout(module: nn.Module) -> list[float]:
    return [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.p]


def test_dropout_is_where_its_option_says():
    plus = partial(deeplabv3plus, backbone=TINY, aspp_channels=8)
    assert rates_of_dropout(plus(3)) == [0.1]
    assert rates_of_dropout(plus(3, dropout=0)) == []
    network = plus(3, dropout=0, dropout_decoder=0.05, projection=16, dropout_projection=0.3)
    front, aspp = network.decoder.pyramid
    assert front[0].out_channels == 16 and rates_of_dropout(front) == [0.3]
    assert rates_of_dropout(aspp) == [0.05] * 6  # four rates, the mean, what joins them
    assert rates_of_dropout(network.decoder.reduce) == [0.05]
    assert rates_of_dropout(network.decoder.refine) == [0.05] * 2
    assert rates_of_dropout(network.encoder) == []
    network = deeplabv3(3, backbone=TINY, decoder_convolutions=2, dropout_decoder=0.2)
    assert rates_of_dropout(network.decoder) == [0.2] * 8
    assert rates_of_dropout(unet(3, channels=[4, 8], dropout_decoder=0.2, dropout=0)) == [0.2] * 2
    with torch.device("meta"):
        assert rates_of_dropout(deeplabv1(3)) == [0.5] * 2
        assert rates_of_dropout(fcn(3)) == [0.5] * 2
        assert rates_of_dropout(deconvnet(3, dropout_decoder=0.2)) == [0.2] * 16


@pytest.mark.parametrize("backbone", [TINY, "test_efficientnet", "test_convnext"])
def test_dropout_in_the_encoder_is_behind_every_stage(backbone):
    torch.manual_seed(0)
    network = encoder(backbone, dropout=0.5)
    twin, images = copy.deepcopy(network), pictures(2, 3, 64, 64)
    for features in network.train()(images):
        assert 0.4 < (features == 0).float().mean() < 0.8
    plain = encoder(backbone)
    plain.load_state_dict(twin.state_dict())
    assert all(map(torch.equal, twin.eval()(images), plain.eval()(images)))  # its mode is its own


def test_v1_and_unet_drop_in_their_encoders_too():
    network = unet(3, channels=[4, 8], dropout_encoder=0.5)
    assert network.encoder.dropout.p == 0.5
    features = network.encoder.train()(pictures(1, 3, 32, 32))
    assert all((f == 0).float().mean() > 0.6 for f in features)  # ReLU's half, and half the rest


# -- what build and the engine ask for -------------------------------------------------------------


@trains_two
def test_adaptive_clipping_is_told_the_last_layers(name):
    network = WITH_AUXILIARY[name](7)
    last = list(network.get_classifier())
    assert all(layer.out_channels == 7 for layer in last)
    own = {id(p) for p in network.parameters()}
    assert all(id(p) in own for layer in last for p in layer.parameters())
    assert network.auxiliary[-1] in last


@pytest.mark.parametrize(
    ("name", "count"), [("deeplabv2", 4), ("deeplabv2 vgg", 4), ("fcn", 3), ("unet", 1)]
)
def test_summed_scores_have_several_last_layers(name, count):
    with torch.device("meta"):
        last = list(SMALL[name](7).get_classifier())
    assert len(last) == count and all(layer.out_channels == 7 for layer in last)


@every
def test_layer_decay_falls_towards_the_image(name):
    with torch.device("meta"):
        network = SMALL[name](3)
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in network.named_parameters()}
    order = [scales[name] for name in scales if name.startswith("encoder.")]
    assert order == sorted(order) and len(set(order)) > 2 and max(order) == 0.5
    assert {scales[n] for n in scales if not n.startswith("encoder.")} == {1.0}
    assert len(scales) == sum(len(group["params"]) for group in groups)


def test_a_stage_of_the_encoder_is_a_layer():
    network = deeplabv3(3, backbone=TINY)
    layer = network.group_matcher()
    assert layer("encoder.net.conv1.0.weight") == 0
    assert layer("encoder.net.layer1.0.conv1.weight") == 1
    assert layer("encoder.net.layer4.0.bn2.bias") == 4
    assert layer("classifier.weight") == 5


# -- complaints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options", "said"),
    [
        (deeplabv1, {"backbone": "resnet50"}, "deeplabv1 is made of a VGG, not of 'resnet50'"),
        (deeplabv1, {"hidden": 0}, "hidden is 0; a number from 1 up"),
        (deeplabv1, {"rate": 0}, "rate is 0"),
        (deeplabv1, {"dropout": 1.5}, "a dropout is 1.5; a rate from 0 to below 1"),
        (deeplabv2, {"backbone": TINY, "rates": [0, 1]}, "rates is 0"),
        (deeplabv2, {"backbone": "densenet121"}, "'densenet121' with output_stride 8"),
        (deeplabv3, {"backbone": "resnet5o"}, "no backbone called 'resnet5o'; did you mean"),
        (deeplabv3, {"backbone": "resnet18.nobodys"}, "no backbone called 'resnet18.nobodys'"),
        (deeplabv3, {"backbone": "test_vit", "output_stride": 32}, "ends at stride 16, not at 32"),
        (deeplabv3, {"backbone": TINY, "rates": [1, 0]}, "rates is 0"),
        (deeplabv3, {"backbone": TINY, "multi_grid": [1, 2, 4]}, "3 rates for the 1 blocks"),
        (deeplabv3, {"backbone": TINY, "multi_grid": [0]}, "multi_grid is 0"),
        (deeplabv3, {"backbone": "test_efficientnet", "multi_grid": [1]}, "and take a ResNet"),
        (deeplabv3, {"backbone": TINY, "dropout_projection": 0.3}, "there is no projection"),
        (deeplabv3, {"backbone": TINY, "dropout_encoder": 1.0}, "a dropout is 1;"),
        (deeplabv3, {"backbone": TINY, "dropout_decoder": -0.1}, "a dropout is -0.1;"),
        (deeplabv3, {"backbone": TINY, "decoder_convolutions": -1}, "decoder_convolutions is -1"),
        (deeplabv3, {"backbone": TINY, "aspp_channels": 0}, "aspp_channels is 0"),
        (deeplabv3, {"backbone": TINY, "projection": 0}, "projection is 0"),
        (deeplabv3plus, {"backbone": TINY, "decoder_channels": 0}, "decoder_channels is 0"),
        (deeplabv3, {"backbone": TINY, "auxiliary_channels": 0}, "auxiliary_channels is 0"),
        (fcn, {"backbone": TINY, "hidden": 0}, "hidden is 0"),
        (fcn, {"backbone": TINY, "output_stride": 8, "stride": 16}, "coarser than output_stride 8"),
        (unet, {"pretrained": True}, "without a backbone"),
        (unet, {"channels": [8]}, "at least 2 are needed"),
        (unet, {"backbone": TINY, "channels": [8, 8]}, "5, for strides 1 to 16"),
        (deconvnet, {"hidden": -1}, "hidden is -1"),
    ],
)
def test_complaints_name_the_remedy(build, options, said):
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build(3, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)

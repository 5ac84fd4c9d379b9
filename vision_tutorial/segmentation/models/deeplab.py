"""DeepLab V1 to V3+: convolutions with holes, and fields of view of several sizes.

Further options of V3 and V3+:
multi_grid: by how much more each block of a ResNet's last stage widens its kernels.
projection: channels of a 1x1 convolution between the encoder and ASPP (atrous spatial pyramid
    pooling); null for none. dropout_projection: after it.
rates: of ASPP's branches, where 1 is a 1x1 convolution; null is 1, 6, 12, 18, and 1, 12, 24, 36 at
    output stride 8. aspp_separable: these are depthwise separable. aspp_join_kernel: of the
    convolution that joins them, 1 in the paper.
dropout_decoder: after every convolution of ASPP and decoder.
"""

from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn

from ...core.errors import UserError, check_range
from ...core.registry import models
from .backbones import Encoder, Last, Segmenter, convolution, fc6_fc7, resize


@models.register
def deeplabv1(
    num_classes: int,
    /,
    *,
    backbone: str = "vgg16",
    rate: int = 12,
    hidden: int = 1024,
    dropout: float = 0.5,
    dropout_encoder: float = 0.0,
    pretrained: bool | str = False,
) -> nn.Module:
    """DeepLab-LargeFOV: VGG16 with holes, one 3x3 convolution of rate 12 (Chen et al. 2015).

    20.5 M parameters with 21 classes (1412.7062). Pools are 3x3 with strides 2, 2, 2, 1, 1; conv5
    has rate 2; an average pool; fc6 and fc7 with `hidden` channels and dropout; x8 bilinear. fc6
    and fc7 are drawn, where the authors took every so many of ImageNet's weights.
    backbone: vgg16, or another VGG of timm, such as vgg16_bn. (B, 3, H, W) -> (B, C, H, W).
    """
    if not backbone.startswith("vgg"):
        raise UserError(f"deeplabv1 is made of a VGG, not of '{backbone}'; choose vgg16.")
    features = Encoder(backbone, output_stride=8, dropout=dropout_encoder, pretrained=pretrained)
    layers = fc6_fc7(features.channels[-1], hidden, 3, rate, dropout)
    decoder = Last(nn.AvgPool2d(3, stride=1, padding=1), *layers)
    return Segmenter(features, decoder, nn.Conv2d(hidden, num_classes, 1), stride=8)


@models.register
def deeplabv2(
    num_classes: int,
    /,
    *,
    backbone: str = "resnet101",
    field_of_view: Literal["large", "small"] = "large",
    rates: list[int] | None = None,
    multi_scale: bool = False,
    hidden: int = 1024,
    dropout: float = 0.5,
    dropout_encoder: float = 0.0,
    pretrained: bool | str = False,
) -> nn.Module:
    """DeepLabV2: four fields of view side by side, summed (ASPP-L, ASPP-S; Chen et al. 2016).

    Output stride 8 (1606.00915). A VGG has fc6, fc7 (of `hidden` channels, with `dropout`) and fc8
    in each branch; any other backbone has one 3x3 convolution to classes a branch.
    field_of_view: `large` is ASPP-L, rates 6, 12, 18, 24; `small` is ASPP-S, rates 2, 4, 8, 12.
    rates: instead of these.
    multi_scale: see the image at 0.5, 0.75 and 1 times its size and take the largest logit. The
        authors also teach each scale by itself; here the loss sees the largest alone.
    (B, 3, H, W) -> (B, C, H, W).
    """
    features = Encoder(backbone, output_stride=8, dropout=dropout_encoder, pretrained=pretrained)
    rates = rates or {"large": [6, 12, 18, 24], "small": [2, 4, 8, 12]}[field_of_view]
    check_range("deeplabv2", "[1, inf)", rates=min(rates), hidden=hidden)
    branches, inputs = _Summed(), features.channels[-1]
    for rate in rates:
        if backbone.startswith("vgg"):
            layers = fc6_fc7(inputs, hidden, 3, rate, dropout)
            layers.append(nn.Conv2d(hidden, num_classes, 1))
        else:
            layers = [nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate)]
        branches.append(nn.Sequential(*layers))
    network = _MultiScale if multi_scale else Segmenter
    heads = [branch[-1] for branch in branches]
    return network(features, Last(), branches, stride=8, heads=heads)


class _Summed(nn.ModuleList):
    def forward(self, features: Tensor) -> Tensor:
        return sum(branch(features) for branch in self)


class _MultiScale(Segmenter):
    """Sees the image at several scales, and takes the largest logits."""

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        seen = [resize(images, [max(1, round(s * n)) for n in size]) for s in (0.5, 0.75, 1.0)]
        logits = [resize(super(_MultiScale, self).forward(view), size) for view in seen]
        return torch.stack(logits).amax(0)


@models.register
def deeplabv3(
    num_classes: int,
    /,
    *,
    backbone: str = "resnet50",
    output_stride: Literal[8, 16, 32] = 16,
    multi_grid: list[int] | None = None,
    projection: int | None = None,
    rates: list[int] | None = None,
    aspp_channels: int = 256,
    aspp_separable: bool = False,
    aspp_join_kernel: Literal[1, 3] = 1,
    decoder_convolutions: int = 0,
    dropout: float = 0.1,
    dropout_encoder: float = 0.0,
    dropout_decoder: float = 0.0,
    dropout_projection: float = 0.0,
    auxiliary: bool = False,
    auxiliary_channels: int = 256,
    pretrained: bool | str = False,
) -> nn.Module:
    """DeepLabV3: features of several rates and of the whole image (Chen et al. 2017).

    The paper (1706.05587) has `multi_grid: [1, 2, 4]`. torchvision's has output stride 8, no
    multi-grid, and `decoder_convolutions: 1` (3x3 convolutions between ASPP and the classifier).
    (B, 3, H, W) -> (B, C, H, W).
    """
    check_range("deeplabv3", "[0, inf)", decoder_convolutions=decoder_convolutions)
    return _network(SimpleNamespace(**locals()))


@models.register
def deeplabv3plus(
    num_classes: int,
    /,
    *,
    backbone: str = "resnet50",
    output_stride: Literal[8, 16, 32] = 16,
    multi_grid: list[int] | None = None,
    projection: int | None = None,
    rates: list[int] | None = None,
    aspp_channels: int = 256,
    aspp_separable: bool = False,
    aspp_join_kernel: Literal[1, 3] = 1,
    low_level_channels: int = 48,
    decoder_channels: int = 256,
    decoder_separable: bool = True,
    dropout: float = 0.1,
    dropout_encoder: float = 0.0,
    dropout_decoder: float = 0.0,
    dropout_projection: float = 0.0,
    auxiliary: bool = False,
    auxiliary_channels: int = 256,
    pretrained: bool | str = False,
) -> nn.Module:
    """DeepLabV3+: DeepLabV3's features, refined at stride 4 (Chen et al. 2018).

    ASPP's output is joined with the features of stride 4, brought to `low_level_channels`, and
    passes two 3x3 convolutions (1802.02611). mmsegmentation's is output_stride 8, aspp_separable,
    aspp_join_kernel 3, aspp_channels and decoder_channels 512, on resnet50c.
    (B, 3, H, W) -> (B, C, H, W).
    """
    return _network(SimpleNamespace(**locals()))


def _network(options: SimpleNamespace) -> Segmenter:
    """ASPP on the encoder's last features, behind a projection if there is one, and a decoder."""
    features = Encoder(
        options.backbone,
        output_stride=options.output_stride,
        dropout=options.dropout_encoder,
        multi_grid=options.multi_grid,
        pretrained=options.pretrained,
    )
    inputs, channels, decoder = features.channels[-1], options.aspp_channels, Last()
    if options.projection is not None:
        check_range("model", "[1, inf)", projection=options.projection)
        dropout = options.dropout_projection
        decoder.append(convolution(inputs, options.projection, 1, dropout=dropout))
        inputs = options.projection
    elif options.dropout_projection:
        raise UserError("model: dropout_projection needs a projection; set it, too, such as 512.")
    decoder.append(_ASPP(inputs, options))
    if hasattr(options, "low_level_channels"):  # V3+
        decoder, channels = _Refined(decoder, features, options), options.decoder_channels
    else:
        for _ in range(options.decoder_convolutions):
            decoder.append(convolution(channels, channels, dropout=options.dropout_decoder))
    return Segmenter(
        features,
        decoder,
        nn.Conv2d(channels, options.num_classes, 1),
        stride=options.output_stride,
        dropout=options.dropout,
        auxiliary=options.auxiliary,
        auxiliary_channels=options.auxiliary_channels,
    )


class _Refined(nn.Module):
    """V3+'s decoder: the pyramid enlarged to stride 4, beside that stage's features, refined."""

    def __init__(self, pyramid: Last, features: Encoder, options: SimpleNamespace):
        super().__init__()
        low, inner = options.low_level_channels, options.decoder_channels
        check_range("model", "[1, inf)", low_level_channels=low, decoder_channels=inner)
        how = {"separable": options.decoder_separable, "dropout": options.dropout_decoder}
        self.fine = features.at(4)
        self.pyramid = pyramid
        self.reduce = convolution(
            features.channels[self.fine], low, 1, dropout=options.dropout_decoder
        )
        self.refine = nn.Sequential(
            convolution(options.aspp_channels + low, inner, **how), convolution(inner, inner, **how)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """features from fine to coarse -> (B, decoder_channels, H/4, W/4)."""
        fine = self.reduce(features[self.fine])
        coarse = resize(self.pyramid(features), fine.shape[-2:])
        return self.refine(torch.cat([coarse, fine], 1))


class _ASPP(nn.Module):
    """Branches of several rates and the mean of the image, joined by a convolution."""

    def __init__(self, inputs: int, options: SimpleNamespace):
        super().__init__()
        rates = options.rates or ([1, 6, 12, 18] if options.output_stride > 8 else [1, 12, 24, 36])
        channels, dropout = options.aspp_channels, options.dropout_decoder
        check_range("model", "[1, inf)", rates=min(rates), aspp_channels=channels)
        how = {"separable": options.aspp_separable, "dropout": dropout}
        self.branches = nn.ModuleList(
            convolution(inputs, channels, 1 if rate == 1 else 3, dilation=rate, **how)
            for rate in rates
        )
        mean = nn.Module()
        mean.convolution = convolution(inputs, channels, 1, dropout=dropout)
        self.branches.append(mean)
        joined, kernel = len(self.branches) * channels, options.aspp_join_kernel
        self.join = convolution(joined, channels, kernel, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, inputs, H, W) -> (B, channels, H, W)."""
        maps = [branch(features) for branch in self.branches[:-1]]
        mean = self.branches[-1].convolution(features.mean((2, 3), keepdim=True))
        return self.join(torch.cat([*maps, mean.expand(-1, -1, *features.shape[-2:])], 1))

"""DeepLabV3 and V3+: atrous spatial pyramid pooling (ASPP), and a light decoder behind it.

What the options of both mean:
backbone: any timm model that gives features. output_stride: how much smaller than the image the
    last ones are; 8 and 16 for VGGs and where timm has it (ResNets, EfficientNets, ConvNeXts, …).
multi_grid: by how much more each block of a ResNet's last stage widens its kernels.
projection: channels of a 1x1 convolution between the encoder and ASPP; null for none.
rates: of ASPP's branches, where 1 is a 1x1 convolution; null is 1, 6, 12, 18, and 1, 12, 24, 36 at
    output stride 8. aspp_separable: these are depthwise separable. aspp_join_kernel: of the
    convolution that joins them, 1 in the paper.
dropout: before the classifier. dropout_encoder: after each of the encoder's stages.
    dropout_decoder: after every convolution of ASPP and decoder. dropout_projection: after
    `projection`.
auxiliary: in training, also give the logits of a head on the encoder's last stage but one: 3x3
    convolution to `auxiliary_channels`, dropout .1, 1x1 to classes.
pretrained: true takes timm's weights of the backbone, a path takes a .safetensors or .pt file.
UserError is raised where these do not go together.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.registry import models
from .backbones import Encoder, encoder
from .layers import Last, at_least, convolution, resize
from .segmenter import Segmenter, auxiliary_head

_RATES = (1, 6, 12, 18)  # at output strides 16 and 32; twice as wide at 8


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
    The other options stand above. (B, 3, H, W) -> (B, C, H, W).
    """
    at_least(0, decoder_convolutions=decoder_convolutions)
    features = encoder(
        backbone,
        output_stride=output_stride,
        dropout=dropout_encoder,
        multi_grid=multi_grid,
        pretrained=pretrained,
    )
    pyramid = _pyramid(
        features,
        projection,
        dropout_projection,
        channels=aspp_channels,
        rates=_rates(output_stride, rates),
        separable=aspp_separable,
        join_kernel=aspp_join_kernel,
        dropout=dropout_decoder,
    )
    for _ in range(decoder_convolutions):
        pyramid.append(convolution(aspp_channels, aspp_channels, dropout=dropout_decoder))
    return Segmenter(
        features,
        pyramid,
        nn.Conv2d(aspp_channels, num_classes, 1),
        stride=output_stride,
        dropout=dropout,
        auxiliary=auxiliary_head(auxiliary, features, auxiliary_channels, num_classes),
    )


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
    aspp_join_kernel 3, aspp_channels and decoder_channels 512, on resnet50c. The other options
    stand above. (B, 3, H, W) -> (B, C, H, W).
    """
    features = encoder(
        backbone,
        output_stride=output_stride,
        dropout=dropout_encoder,
        multi_grid=multi_grid,
        pretrained=pretrained,
    )
    pyramid = _pyramid(
        features,
        projection,
        dropout_projection,
        channels=aspp_channels,
        rates=_rates(output_stride, rates),
        separable=aspp_separable,
        join_kernel=aspp_join_kernel,
        dropout=dropout_decoder,
    )
    sizes = (aspp_channels, low_level_channels, decoder_channels)
    return Segmenter(
        features,
        _Refined(pyramid, features, sizes, separable=decoder_separable, dropout=dropout_decoder),
        nn.Conv2d(decoder_channels, num_classes, 1),
        stride=output_stride,
        dropout=dropout,
        auxiliary=auxiliary_head(auxiliary, features, auxiliary_channels, num_classes),
    )


class _Refined(nn.Module):
    """V3+'s decoder: the pyramid enlarged to stride 4, beside that stage's features, refined."""

    def __init__(
        self, pyramid: nn.Module, features: Encoder, sizes: tuple[int, int, int], **options: Any
    ):
        super().__init__()
        wide, low, inner = sizes
        at_least(1, low_level_channels=low, decoder_channels=inner)
        self.fine = features.at(4)
        self.pyramid = pyramid
        self.reduce = convolution(features.channels[self.fine], low, 1, dropout=options["dropout"])
        self.refine = nn.Sequential(
            convolution(wide + low, inner, **options), convolution(inner, inner, **options)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """features from fine to coarse -> (B, decoder_channels, H/4, W/4)."""
        fine = self.reduce(features[self.fine])
        coarse = resize(self.pyramid(features), fine.shape[-2:])
        return self.refine(torch.cat([coarse, fine], 1))


def _pyramid(
    features: Encoder, projection: int | None, dropout_projection: float, **options: Any
) -> Last:
    """ASPP on the encoder's last features, behind a projection if there is one."""
    inputs = features.channels[-1]
    if projection is None:
        if dropout_projection:
            raise UserError(
                f"model: dropout_projection is {dropout_projection:g}, but there is no projection; "
                "set projection to its channels, such as 512."
            )
        return Last(_ASPP(inputs, **options))
    at_least(1, projection=projection)
    front = convolution(inputs, projection, 1, dropout=dropout_projection)
    return Last(front, _ASPP(projection, **options))


def _rates(output_stride: int, given: Sequence[int] | None) -> list[int]:
    """The rates of a recipe, or the paper's for the output stride. UserError below 1."""
    rates = list(given or [r if r == 1 or output_stride > 8 else 2 * r for r in _RATES])
    at_least(1, rates=min(rates))
    return rates


class _ASPP(nn.Module):
    """Branches of several rates and the mean of the image, joined by a convolution.

    Rate 1 is a 1x1 convolution, any other a 3x3 one (Chen et al. 2017, 1706.05587).
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        rates: Sequence[int],
        *,
        separable: bool,
        join_kernel: int,
        dropout: float,
    ):
        super().__init__()
        at_least(1, aspp_channels=channels)
        options = {"separable": separable, "dropout": dropout}
        self.branches = nn.ModuleList(
            convolution(inputs, channels, 1 if rate == 1 else 3, dilation=rate, **options)
            for rate in rates
        )
        self.branches.append(_ImagePooling(inputs, channels, dropout))
        joined = len(self.branches) * channels
        self.join = convolution(joined, channels, join_kernel, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, inputs, H, W) -> (B, channels, H, W)."""
        return self.join(torch.cat([branch(features) for branch in self.branches], 1))


class _ImagePooling(nn.Module):
    """The mean over the image, a 1x1 convolution, and back to every position."""

    def __init__(self, inputs: int, channels: int, dropout: float):
        super().__init__()
        self.convolution = convolution(inputs, channels, 1, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, inputs, H, W) -> (B, channels, H, W), the same everywhere."""
        mean = self.convolution(features.mean((2, 3), keepdim=True))
        return mean.expand(-1, -1, *features.shape[-2:])

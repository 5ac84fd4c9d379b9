"""U-Net: down, and up again beside what was seen on the way."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import UserError, check_range
from ...core.registry import models
from .backbones import Encoder, Segmenter, convolution, dropout_layer, resize

_WIDTHS, _WIDTHS_ON_BACKBONE = (64, 128, 256, 512, 1024), (16, 32, 64, 128, 256)


@models.register
def unet(
    num_classes: int,
    /,
    *,
    backbone: str | None = None,
    channels: list[int] | None = None,
    norm: bool = True,
    dropout: float = 0.0,
    dropout_encoder: float = 0.0,
    dropout_decoder: float = 0.0,
    pretrained: bool | str = False,
) -> nn.Module:
    """U-Net: each level up sees the same level on the way down (Ronneberger et al. 2015).

    31.0 M parameters (1505.04597). Convolutions are padded, so that maps are as large as images.
    backbone: null is the paper's encoder, two 3x3 convolutions a level; else any timm model that
        gives features of strides up to 32.
    channels: of the levels from fine to coarse; null is 64, 128, 256, 512, 1024 without a backbone,
        and 16, 32, 64, 128, 256, of the decoder alone, with one.
    norm: BatchNorm behind every 3x3 convolution, which the paper does not have.
    dropout_decoder: after each 3x3 convolution on the way up. (B, 3, H, W) -> (B, C, H, W).
    """
    widths = tuple(channels or (_WIDTHS_ON_BACKBONE if backbone else _WIDTHS))
    check_range("unet", "[1, inf)", channels=min(widths))
    if (len(widths) != 5) if backbone else (len(widths) < 2):
        many = "5, for strides 1 to 16, go with a backbone" if backbone else "at least 2 are needed"
        raise UserError(f"unet: {len(widths)} channels {list(widths)}; {many}.")
    if backbone:
        down = Encoder(backbone, dropout=dropout_encoder, pretrained=pretrained)
    elif pretrained:
        raise UserError("unet: there are no pretrained weights without a backbone; name one.")
    else:
        down = _Levels(widths, norm, dropout_encoder)
    up = _Ascent(down, widths if backbone else widths[:-1], norm, dropout_decoder)
    classifier = nn.Conv2d(widths[0], num_classes, 1)
    return Segmenter(down, up, classifier, stride=down.strides[-1], dropout=dropout)


class _Levels(nn.Module):
    """The paper's encoder: at every level two 3x3 convolutions, between levels a 2x2 max pool."""

    def __init__(self, channels: Sequence[int], norm: bool, dropout: float):
        super().__init__()
        self.channels = list(channels)
        self.strides = [2**level for level in range(len(channels))]
        widths = zip([3, *channels], channels, strict=False)
        self.net = nn.ModuleList(_twice(a, b, norm, 0.0) for a, b in widths)
        self.dropout = dropout_layer(dropout)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> one (B, channels[i], H / 2^i, W / 2^i) a level."""
        features: list[Tensor] = []
        for level in self.net:
            last = F.max_pool2d(features[-1], 2) if features else images
            features.append(self.dropout(level(last)))
        return features

    def stages(self) -> dict[str, int]:
        """The level of each parameter by its name in `net`."""
        return {name: int(name.partition(".")[0]) for name, _ in self.net.named_parameters()}


class _Ascent(nn.Module):
    """Doubled by a 2x2 transposed convolution, beside the encoder's level, two 3x3 convolutions."""

    def __init__(
        self, down: Encoder | _Levels, channels: Sequence[int], norm: bool, dropout: float
    ):
        super().__init__()
        self.ups, self.levels, self.skips = nn.ModuleList(), nn.ModuleList(), []
        last_of = {stride: place for place, stride in enumerate(down.strides)}
        inputs = down.channels[-1]
        for level, width in reversed(list(enumerate(channels))):
            self.skips.append(skip := last_of.get(2**level))
            beside = 0 if skip is None else down.channels[skip]
            self.ups.append(nn.ConvTranspose2d(inputs, width, 2, stride=2))
            self.levels.append(_twice(width + beside, width, norm, dropout))
            inputs = width

    def forward(self, features: list[Tensor]) -> Tensor:
        """features from fine to coarse -> (B, channels[0], H, W)."""
        seen = features[-1]
        for up, level, skip in zip(self.ups, self.levels, self.skips, strict=True):
            seen = up(seen)
            if skip is not None:
                seen = torch.cat([features[skip], resize(seen, features[skip].shape[-2:])], 1)
            seen = level(seen)
        return seen


def _twice(inputs: int, outputs: int, norm: bool, dropout: float) -> nn.Sequential:
    """Two 3x3 convolutions, each with ReLU, and BatchNorm where wanted."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        if norm:
            layers.append(convolution(width, outputs, dropout=dropout))
        else:
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU(), dropout_layer(dropout)]
    return nn.Sequential(*layers)

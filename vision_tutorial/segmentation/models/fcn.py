"""FCN, convolutional from the image to the class map; DeconvNet, a VGG16 and its mirror image."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import UserError, check_range
from ...core.registry import models
from .backbones import Encoder, Segmenter, fc6_fc7, fcn_head, normed


@models.register
def fcn(
    num_classes: int,
    /,
    *,
    backbone: str = "vgg16",
    stride: Literal[8, 16, 32] = 8,
    output_stride: Literal[8, 16, 32] = 32,
    hidden: int | None = None,
    dropout: float | None = None,
    dropout_encoder: float = 0.0,
    auxiliary: bool = False,
    auxiliary_channels: int = 256,
    pretrained: bool | str = False,
) -> nn.Module:
    """FCN-8s, FCN-16s and FCN-32s on any backbone (Long et al. 2015).

    Class scores of the last stage, doubled in size and summed with those of finer stages
    (1411.4038). A doubling is a transposed convolution that starts as bilinear and learns; the last
    enlargement is bilinear. Images are padded to whole strides; the authors pad them by 100.
    stride: of the finest stage that is scored: 8 is FCN-8s, 32 is FCN-32s.
    output_stride: of the last stage; it is 8 in torchvision's fcn_resnet50.
    hidden: on a VGG, channels of fc6 (7x7) and fc7, null is 4096; elsewhere, of one 3x3 convolution
        with BatchNorm, null is a quarter of the backbone's.
    dropout: behind these; null is .5 on a VGG, else .1. (B, 3, H, W) -> (B, C, H, W).
    """
    if stride > output_stride:
        raise UserError(f"fcn: stride {stride} is above output_stride {output_stride}; lower it.")
    features = Encoder(
        backbone, output_stride=output_stride, dropout=dropout_encoder, pretrained=pretrained
    )
    inputs, vgg = features.channels[-1], backbone.startswith("vgg")
    if hidden is None:
        hidden = 4096 if vgg else inputs // 4
    if dropout is None:
        dropout = 0.5 if vgg else 0.1
    if vgg:
        layers = fc6_fc7(inputs, hidden, 7, 1, dropout)
        head = nn.Sequential(*layers, nn.Conv2d(hidden, num_classes, 1))
    else:
        head = fcn_head(inputs, hidden, num_classes, dropout)
    finer = [s for s in (16, 8) if stride <= s < output_stride]
    decoder = _Scores(features, head, finer, num_classes, pools=vgg)
    return Segmenter(
        features,
        decoder,
        nn.Identity(),
        stride=output_stride,
        heads=[head[-1], *decoder.scores],
        auxiliary=auxiliary,
        auxiliary_channels=auxiliary_channels,
    )


class _Scores(nn.Module):
    """Class scores of the last stage; doubled, plus those of the next finer stage; and so on.
    pools: score a stage behind its pool, as FCN does on VGG, where timm gives what is before it."""

    def __init__(
        self, features: Encoder, head: nn.Module, strides: list[int], classes: int, pools: bool
    ):
        super().__init__()
        self.head, self.pools = head, pools
        self.stages = [features.at(stride // 2 if pools else stride) for stride in strides]
        channels = [features.channels[stage] for stage in self.stages]
        self.scores = nn.ModuleList(nn.Conv2d(inputs, classes, 1) for inputs in channels)
        self.doubles = nn.ModuleList(_bilinear_doubling(classes) for _ in strides)

    def forward(self, features: list[Tensor]) -> Tensor:
        """features from fine to coarse -> (B, C, h, w) of the finest stage scored."""
        total = self.head(features[-1])
        for stage, score, double in zip(self.stages, self.scores, self.doubles, strict=True):
            finer = F.max_pool2d(features[stage], 2) if self.pools else features[stage]
            total = double(total) + score(finer)
        return total


def _bilinear_doubling(channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles height and width; at first bilinear, class by class."""
    double = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        double.weight.copy_(torch.eye(channels)[:, :, None, None] * torch.outer(tent, tent))
    return double


_LEAST = 224  # pixels: five halvings leave 7x7, which is fc6's kernel
_MIRROR = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))


@models.register
def deconvnet(
    num_classes: int,
    /,
    *,
    hidden: int = 4096,
    dropout: float = 0.0,
    dropout_encoder: float = 0.0,
    dropout_decoder: float = 0.0,
    pretrained: bool | str = False,
) -> nn.Module:
    """DeconvNet: VGG16 mirrored, with unpooling and transposed convolutions (Noh et al. 2015).

    251.8 M parameters with 21 classes (1505.04366), most of them in fc6 and its mirror image, 7x7
    with `hidden` channels (512 makes a network of 55.4 M). Every convolution has BatchNorm. The
    encoder is timm's vgg16_bn. dropout_decoder: after each layer from fc6 to the last transposed
    convolution. (B, 3, H, W) -> (B, C, H, W). Raises UserError for images below 224 pixels.
    """
    check_range("deconvnet", "[1, inf)", hidden=hidden)
    features = Encoder("vgg16_bn", dropout=dropout_encoder, pretrained=pretrained)
    decoder = _Mirror(features.channels[-1], hidden, dropout_decoder)
    classifier = nn.Conv2d(_MIRROR[-1][-1], num_classes, 1)
    return _DeconvNet(features, decoder, classifier, stride=32, dropout=dropout)


class _DeconvNet(Segmenter):
    """A Segmenter whose decoder needs the places of the maxima."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < _LEAST:
            raise UserError(f"deconvnet needs images of {_LEAST} px, not {width}x{height}; resize.")
        return super().forward(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        features, places = images, []
        for layer in self.encoder.net.values():
            if isinstance(layer, nn.MaxPool2d):
                features, where = F.max_pool2d(features, 2, return_indices=True)
                places.append(where)
            else:
                features = layer(features)
        return [self.classifier(self.dropout(self.decoder(features, places)))]


class _Mirror(nn.Module):
    """fc6, fc7, fc6's mirror image, then unpooling and transposed convolutions, level by level."""

    def __init__(self, inputs: int, hidden: int, dropout: float):
        super().__init__()
        self.fully_connected = nn.Sequential(
            *normed(nn.Conv2d(inputs, hidden, 7), dropout),
            *normed(nn.Conv2d(hidden, hidden, 1), dropout),
            *normed(nn.ConvTranspose2d(hidden, inputs, 7), dropout),
        )
        self.levels = nn.ModuleList()
        for widths in _MIRROR:
            self.levels.append(level := nn.Sequential())
            for outputs in widths:
                level.extend(normed(nn.ConvTranspose2d(inputs, outputs, 3, padding=1), dropout))
                inputs = outputs

    def forward(self, features: Tensor, places: list[Tensor]) -> Tensor:
        """features (B, 512, H/32, W/32); places: max_pool2d's indices, from fine to coarse."""
        features = self.fully_connected(features)
        for level, where in zip(self.levels, reversed(places), strict=True):
            features = level(F.max_unpool2d(features, where, 2))
        return features

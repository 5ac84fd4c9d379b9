"""FCN: the first network that is convolutional from the image to the class map."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import UserError
from ...core.registry import models
from .backbones import Encoder, auxiliary_head, encoder
from .layers import Segmenter, fc6_fc7, fcn_head


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
        raise UserError(
            f"fcn: stride {stride} is coarser than output_stride {output_stride}; set stride to "
            f"{output_stride} or less."
        )
    features = encoder(
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
        auxiliary=auxiliary_head(auxiliary, features, auxiliary_channels, num_classes),
    )


class _Scores(nn.Module):
    """Class scores of the last stage; doubled, plus those of the next finer stage; and so on.

    pools: score a stage behind its pool, as FCN does on VGG, where timm gives what is before it.
    """

    def __init__(
        self, features: Encoder, head: nn.Module, strides: list[int], classes: int, pools: bool
    ):
        super().__init__()
        self.head = head
        self.pools = pools
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

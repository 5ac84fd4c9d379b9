"""DeepLabV1 and V2: VGG16 with holes, and four fields of view that are summed."""

from typing import Literal

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.registry import models
from .backbones import encoder
from .layers import Last, at_least, fc6_fc7, resize
from .segmenter import Segmenter

_RATES = {"large": (6, 12, 18, 24), "small": (2, 4, 8, 12)}
_SCALES = (0.5, 0.75, 1.0)


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
    has rate 2; an average pool; fc6 and fc7 with `hidden` channels and dropout; x8 bilinear.
    backbone: vgg16, or another VGG of timm, such as vgg16_bn.
    dropout: after fc6 and fc7. dropout_encoder: after each of the encoder's stages.
    pretrained: true takes timm's weights of the backbone, a path takes a file. fc6 and fc7 are
        drawn, where the authors took every so many of ImageNet's.
    Raises UserError for a backbone that is no VGG.
    """
    if not backbone.startswith("vgg"):
        raise UserError(
            f"deeplabv1 is made of a VGG, not of '{backbone}'; choose vgg16 or vgg16_bn, or take "
            "deeplabv2 or deeplabv3."
        )
    at_least(1, hidden=hidden, rate=rate)
    features = encoder(backbone, output_stride=8, dropout=dropout_encoder, pretrained=pretrained)
    decoder = Last(
        nn.AvgPool2d(3, stride=1, padding=1),
        *fc6_fc7(features.channels[-1], hidden, 3, rate, dropout),
    )
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

    Output stride 8 (1606.00915). A VGG has fc6, fc7 and fc8 in each branch; any other backbone has
    one 3x3 convolution to classes a branch.
    field_of_view: `large` is ASPP-L, rates 6, 12, 18, 24; `small` is ASPP-S, rates 2, 4, 8, 12.
    rates: instead of these.
    multi_scale: see the image at 0.5, 0.75 and 1 times its size and take the largest logit. The
        authors also teach each scale by itself; here the loss sees the largest alone.
    hidden, dropout: of fc6 and fc7, in a VGG's branches. dropout_encoder: after each stage.
    pretrained: true takes timm's weights of the backbone, a path takes a file.
    Raises UserError for a backbone that has no output stride 8.
    """
    features = encoder(backbone, output_stride=8, dropout=dropout_encoder, pretrained=pretrained)
    rates = rates or list(_RATES[field_of_view])
    at_least(1, rates=min(rates), hidden=hidden)
    branches, inputs = _Summed(), features.channels[-1]
    for rate in rates:
        if backbone.startswith("vgg"):
            layers = fc6_fc7(inputs, hidden, 3, rate, dropout)
            layers.append(nn.Conv2d(hidden, num_classes, 1))
        else:
            layers = [nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate)]
        branches.append(nn.Sequential(*layers))
    return DeepLabV2(features, branches, _SCALES if multi_scale else (1.0,))


class _Summed(nn.ModuleList):
    """Branches that see the same features; their outputs are summed."""

    def forward(self, features: Tensor) -> Tensor:
        return sum(branch(features) for branch in self)


class DeepLabV2(Segmenter):
    """Several branches that end in classes and are summed; several scales, of which the largest."""

    def __init__(self, features: nn.Module, branches: _Summed, scales: tuple[float, ...]):
        super().__init__(features, Last(), branches, stride=8)
        self.scales = scales

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) of any size; logits of that size."""
        size = images.shape[-2:]
        seen = [resize(images, [max(1, round(s * n)) for n in size]) for s in self.scales]
        logits = [resize(super(DeepLabV2, self).forward(view), size) for view in seen]
        return torch.stack(logits).amax(0) if len(logits) > 1 else logits[0]

    def last_layers(self) -> list[nn.Module]:
        """The last layer of each branch."""
        return [branch[-1] for branch in self.classifier]

"""What all networks of segmentation share: pad, encode, decode, classify, enlarge, crop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .backbones import Encoder
from .layers import at_least, convolution, dropout_layer, padded, resize


class Segmenter(nn.Module):
    """Images (B, 3, H, W) to logits (B, C, H, W); in training with an auxiliary head, to both.

    encoder: images -> feature maps, from fine to coarse. decoder: feature maps -> one map.
    classifier: that map -> logits. stride: what images are padded to multiples of; the padding
    is cut off again. auxiliary: a head on the last map but one, which learns and is never asked.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classifier: nn.Module,
        *,
        stride: int,
        dropout: float = 0.0,
        auxiliary: nn.Sequential | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.dropout = dropout_layer(dropout)
        self.classifier = classifier
        self.auxiliary = auxiliary
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """images (B, 3, H, W) of any size; logits, or (logits, auxiliary logits), of that size."""
        height, width = images.shape[-2:]
        whole = padded(images, self.stride)
        # float32 even under autocast: the loss wants that anyway, and between pixels it matters
        maps = [m.to(torch.promote_types(m.dtype, torch.float32)) for m in self.maps(whole)]
        maps = [resize(m, whole.shape[-2:])[..., :height, :width] for m in maps]
        return tuple(maps) if len(maps) > 1 else maps[0]

    def maps(self, images: Tensor) -> list[Tensor]:
        """images that divide by the stride; the logits of each head in use, at any resolution."""
        features = self.encoder(images)
        maps = [self.classifier(self.dropout(self.decoder(features)))]
        if self.training and self.auxiliary is not None:
            maps.append(self.auxiliary(features[-2]))
        return maps

    def get_classifier(self) -> nn.ModuleList:
        """The layers that give the logits; adaptive clipping leaves them alone."""
        auxiliary = [] if self.auxiliary is None else [self.auxiliary[-1]]
        return nn.ModuleList([*self.last_layers(), *auxiliary])

    def last_layers(self) -> list[nn.Module]:
        """Those of the main head."""
        return [self.classifier]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For layer_decay: a parameter's layer. Each stage of the encoder is one; the rest is last.

        coarse: part of timm's protocol; without meaning here.
        """
        stages = {f"encoder.net.{name}": stage for name, stage in self.encoder.stages().items()}
        last = max(stages.values()) + 1
        return lambda name: stages.get(name, last)


def fcn_head(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """3x3 convolution with BatchNorm and ReLU, dropout, 1x1 convolution to classes."""
    at_least(1, hidden=hidden)
    layers = convolution(inputs, hidden, dropout=dropout)
    return nn.Sequential(*layers, nn.Conv2d(hidden, num_classes, 1))


def auxiliary_head(
    wanted: bool, features: Encoder, channels: int, num_classes: int
) -> nn.Sequential | None:
    """fcn_head with dropout .1 on the encoder's last map but one, if wanted."""
    at_least(1, auxiliary_channels=channels)
    return fcn_head(features.channels[-2], channels, num_classes, 0.1) if wanted else None

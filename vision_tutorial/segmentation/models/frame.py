"""What all networks of segmentation share: pad, encode, decode, classify, enlarge, crop."""

from collections.abc import Callable

from torch import Tensor, nn

from .layers import at_least, convolution, dropped, padded, resize


class Segmenter(nn.Module):
    """Images (B, 3, H, W) to logits (B, C, H, W); in training with an auxiliary head, to both.

    encoder: images -> feature maps, from fine to coarse. decoder: feature maps -> one map.
    classifier: that map -> logits. stride: what pictures are padded to multiples of; the padding
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
        self.dropout = dropped(dropout)
        self.classifier = classifier
        self.auxiliary = auxiliary
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """images (B, 3, H, W) of any size; logits, or (logits, auxiliary logits), of that size."""
        height, width = images.shape[-2:]
        whole = padded(images, self.stride)
        maps = [resize(m, whole.shape[-2:])[..., :height, :width] for m in self.maps(whole)]
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
        return nn.ModuleList(
            [self.classifier, *([self.auxiliary[-1]] if self.auxiliary is not None else [])]
        )

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For layer_decay: a parameter's layer. Each stage of the encoder is one; the rest is last.

        coarse: part of timm's protocol; without meaning here.
        """
        stages = {f"encoder.net.{name}": stage for name, stage in self.encoder.stages().items()}
        last = max(stages.values()) + 1
        return lambda name: stages.get(name, last)


def fcn_head(inputs: int, channels: int, num_classes: int, dropout: float = 0.1) -> nn.Sequential:
    """3x3 convolution, dropout, 1x1 convolution to classes: the usual auxiliary head."""
    at_least(1, auxiliary_channels=channels)
    layers = convolution(inputs, channels, dropout=dropout)
    return nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))

"""DeconvNet: VGG16, and its mirror image, which puts every maximum back where it came from."""

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import UserError
from ...core.registry import models
from .backbones import encoder
from .layers import BatchNorm, at_least, dropout_layer
from .segmenter import Segmenter

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
    with `hidden` channels. Every convolution has BatchNorm. The encoder is timm's vgg16_bn.
    hidden: 4096 in the paper; 512 makes a network of 55.4 M.
    dropout: before the classifier. dropout_encoder: after each stage; dropout_decoder: after each
        layer of the decoder, fc6 to the last transposed convolution.
    pretrained: true takes timm's weights of the encoder, a path takes a file.
    (B, 3, H, W) -> (B, C, H, W). Raises UserError for images below 224 pixels.
    """
    at_least(1, hidden=hidden)
    features = encoder("vgg16_bn", dropout=dropout_encoder, pretrained=pretrained)
    return DeconvNet(
        features,
        _Mirror(features.channels[-1], hidden, dropout_decoder),
        nn.Conv2d(_MIRROR[-1][-1], num_classes, 1),
        stride=32,
        dropout=dropout,
    )


class DeconvNet(Segmenter):
    """A Segmenter whose decoder needs the places of the maxima."""

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W); logits of that size. UserError below 224 pixels."""
        height, width = images.shape[-2:]
        if min(height, width) < _LEAST:
            raise UserError(
                f"deconvnet needs images of {_LEAST} px or more, not {width}x{height}; resize or "
                "crop to that, or choose deeplabv3 or unet."
            )
        return super().forward(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) that divide by 32; one map of logits."""
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
            *_normed(nn.Conv2d(inputs, hidden, 7), dropout),
            *_normed(nn.Conv2d(hidden, hidden, 1), dropout),
            *_normed(nn.ConvTranspose2d(hidden, inputs, 7), dropout),
        )
        self.levels = nn.ModuleList()
        for widths in _MIRROR:
            level = nn.Sequential()
            for outputs in widths:
                deconvolution = nn.ConvTranspose2d(inputs, outputs, 3, padding=1)
                level.extend(_normed(deconvolution, dropout))
                inputs = outputs
            self.levels.append(level)

    def forward(self, features: Tensor, places: list[Tensor]) -> Tensor:
        """features (B, 512, H/32, W/32); places: max_pool2d's indices, from fine to coarse."""
        features = self.fully_connected(features)
        for level, where in zip(self.levels, reversed(places), strict=True):
            features = level(F.max_unpool2d(features, where, 2))
        return features


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d, dropout: float) -> list[nn.Module]:
    """The layer with BatchNorm, ReLU and, if asked for, dropout behind it."""
    layers = [layer, BatchNorm(layer.out_channels), nn.ReLU()]
    return [*layers, dropout_layer(dropout)] if dropout else layers

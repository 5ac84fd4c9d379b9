"""DeconvNet: VGG16, and its mirror image, which puts every maximum back where it came from."""

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import UserError, check_range
from ...core.registry import models
from .backbones import encoder
from .layers import Segmenter, normed

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
    features = encoder("vgg16_bn", dropout=dropout_encoder, pretrained=pretrained)
    decoder = _Mirror(features.channels[-1], hidden, dropout_decoder)
    classifier = nn.Conv2d(_MIRROR[-1][-1], num_classes, 1)
    return _DeconvNet(features, decoder, classifier, stride=32, dropout=dropout)


class _DeconvNet(Segmenter):
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
            *normed(nn.Conv2d(inputs, hidden, 7), dropout),
            *normed(nn.Conv2d(hidden, hidden, 1), dropout),
            *normed(nn.ConvTranspose2d(hidden, inputs, 7), dropout),
        )
        self.levels = nn.ModuleList()
        for widths in _MIRROR:
            level = nn.Sequential()
            for outputs in widths:
                level.extend(normed(nn.ConvTranspose2d(inputs, outputs, 3, padding=1), dropout))
                inputs = outputs
            self.levels.append(level)

    def forward(self, features: Tensor, places: list[Tensor]) -> Tensor:
        """features (B, 512, H/32, W/32); places: max_pool2d's indices, from fine to coarse."""
        features = self.fully_connected(features)
        for level, where in zip(self.levels, reversed(places), strict=True):
            features = level(F.max_unpool2d(features, where, 2))
        return features

"""A small network that learns images of 32 pixels in a few epochs, also on a CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import check_range
from ..core.registry import models

# What a patch of 2x2 pixels is seen as: brightness, red against blue, and green against both; each
# flat, and changing from left to right, from top to bottom, and along the diagonals. In photographs
# these hardly go together; they are near the principal components of the patches.
_COLOURS = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
_PATTERNS = (((1, 1), (1, 1)), ((1, -1), (1, -1)), ((1, 1), (-1, -1)), ((1, -1), (-1, 1)))
# Their variances in CIFAR-100's training images, normalised as `cifar100`: by colour and pattern.
_VARIANCES = (
    (9.73437, 0.29520, 0.30440, 0.04697),
    (1.13698, 0.01735, 0.01761, 0.00196),
    (0.26731, 0.00622, 0.00596, 0.00085),
)
_NOISE = 5e-4  # added to a variance, so that what is hardly there is not blown up


@models.register
def airbench(
    num_classes: int, /, *, channels: list[int] | None = None, depth: int = 2
) -> nn.Module:
    """The network of the CIFAR-10 speed-runs, three stages behind whitened patches (Jordan 2024).

    2404.00498. Every stage: a 3x3 convolution, 2x2 max pooling, BatchNorm, GELU; then the same
    again without pooling. Convolutions begin as the identity. Images (B, 3, H, W) of at least 9
    pixels, normalised as cifar100 or cifar10 -> logits (B, K).
    channels: of the stages; null is 64, 256, 256. depth: convolutions of each.
    It differs from the paper's in its whitening, which is the same for every data set.
    """
    widths = channels or [64, 256, 256]
    check_range("airbench", "[1, inf)", channels=widths, depth=depth)
    return Airbench(num_classes, widths, depth)


class Airbench(nn.Module):
    """The layers of `airbench`; `features` ends where the classifier begins."""

    def __init__(self, num_classes: int, widths: Sequence[int], depth: int):
        super().__init__()
        layers: list[nn.Module] = [_whitening(), nn.GELU()]
        inputs = 2 * len(_COLOURS) * len(_PATTERNS)
        for width in widths:
            for place in range(depth):
                layers.append(_convolution(inputs, width))
                if place == 0:
                    layers.append(nn.MaxPool2d(2))
                layers += [nn.BatchNorm2d(width, momentum=0.4), nn.GELU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes, bias=False)

    def get_classifier(self) -> nn.Module:
        """What timm's networks answer, too: adaptive clipping spares it."""
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> logits (B, K)."""
        return self.classifier(self.features(images).amax((2, 3))) / 9


def _whitening() -> nn.Conv2d:
    """A fixed 2x2 convolution: filters of variance 1 and their negatives; only its bias learns."""
    colours = nn.functional.normalize(torch.tensor(_COLOURS, dtype=torch.float32))
    patterns = torch.tensor(_PATTERNS) / 2
    filters = torch.einsum("cx,pij->cpxij", colours, patterns)
    filters /= (torch.tensor(_VARIANCES) + _NOISE).sqrt()[..., None, None, None]
    filters = filters.flatten(0, 1)
    layer = nn.Conv2d(3, 2 * len(filters), 2)
    layer.weight = nn.Parameter(torch.cat([filters, -filters]), requires_grad=False)
    nn.init.zeros_(layer.bias)
    return layer


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3; the first outputs begin as the inputs themselves."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])
    return layer

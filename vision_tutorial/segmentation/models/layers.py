"""What the networks of segmentation share: layers, and the frame around encoder and decoder."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import check_range


class Segmenter(nn.Module):
    """Images (B, 3, H, W) to logits (B, C, H, W); in training with an auxiliary head, to both.

    encoder: images -> feature maps, from fine to coarse. decoder: feature maps -> one map.
    classifier: that map -> logits. stride: what images are padded to multiples of; the padding
    is cut off again. heads: the layers that give logits, if not the classifier. auxiliary: a head
    on the last map but one, which learns and is never asked.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classifier: nn.Module,
        *,
        stride: int,
        dropout: float = 0.0,
        heads: Sequence[nn.Module] | None = None,
        auxiliary: nn.Sequential | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.dropout = dropout_layer(dropout)
        self.classifier = classifier
        self.auxiliary = auxiliary
        self.stride = stride
        self.heads = [*(heads or [classifier]), *([auxiliary[-1]] if auxiliary else [])]

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
        return nn.ModuleList(self.heads)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """For timm's layer_decay: a parameter's layer. Each stage of the encoder is one; the rest
        is last."""
        stages = {f"encoder.net.{name}": stage for name, stage in self.encoder.stages().items()}
        last = max(stages.values()) + 1
        return lambda name: stages.get(name, last)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that takes its running statistics where a channel has one value only.

    One value has no variance, so PyTorch raises there in training. It happens after global pooling
    when the batch is a single image, such as the last one of an epoch.
    """

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, H, W), same out."""
        if self.training and features.numel() == features.shape[1]:
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class Last(nn.Sequential):
    """Layers on the last, the coarsest, of the encoder's feature maps."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """features: a list of (B, C, H, W) from fine to coarse."""
        return super().forward(features[-1])


def normed(layer: nn.Conv2d | nn.ConvTranspose2d, dropout: float = 0.0) -> list[nn.Module]:
    """The layer, BatchNorm, ReLU and, with `dropout`, dropout."""
    layers = [layer, BatchNorm(layer.out_channels), nn.ReLU()]
    return [*layers, dropout_layer(dropout)] if dropout else layers


def convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    dilation: int = 1,
    separable: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU and, with `dropout`, dropout; height and width stay.

    separable: a 3x3 within each channel, then a 1x1 across them, each with norm and ReLU (Chen et
    al. 2018, 1802.02611).
    """
    options = {"padding": dilation * (kernel // 2), "dilation": dilation, "bias": False}
    if separable and kernel > 1:
        depthwise = normed(nn.Conv2d(inputs, inputs, kernel, groups=inputs, **options))
        across = nn.Conv2d(inputs, outputs, 1, bias=False)
        return nn.Sequential(*depthwise, *normed(across, dropout))
    return nn.Sequential(*normed(nn.Conv2d(inputs, outputs, kernel, **options), dropout))


def fc6_fc7(
    inputs: int, hidden: int, kernel: int, dilation: int, dropout: float
) -> list[nn.Module]:
    """VGG's fully connected layers as convolutions: kernel x kernel, then 1x1; size stays."""
    check_range("model", "[1, inf)", hidden=hidden, rate=dilation)
    padding = dilation * (kernel // 2)
    fc6 = nn.Conv2d(inputs, hidden, kernel, padding=padding, dilation=dilation)
    fc7 = nn.Conv2d(hidden, hidden, 1)
    return [fc6, nn.ReLU(), dropout_layer(dropout), fc7, nn.ReLU(), dropout_layer(dropout)]


def fcn_head(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """3x3 convolution with BatchNorm and ReLU, dropout, 1x1 convolution to classes."""
    check_range("model", "[1, inf)", channels=hidden)
    layers = convolution(inputs, hidden, dropout=dropout)
    return nn.Sequential(*layers, nn.Conv2d(hidden, num_classes, 1))


def dropout_layer(rate: float) -> nn.Dropout:
    """Dropout of single values. UserError unless the rate is from 0 to below 1."""
    check_range("model", "[0, 1)", dropout=rate)
    return nn.Dropout(rate)


def resize(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """maps (B, C, H, W) at another (height, width): bilinear, corners not aligned."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def padded(images: Tensor, stride: int) -> Tensor:
    """images (B, C, H, W) with zeros to the right and below, to multiples of `stride`."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride))

"""The layers that the networks of segmentation share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import UserError


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
    if separable and kernel > 1:
        depthwise = _convolution(inputs, inputs, kernel, dilation, groups=inputs)
        layers = [*depthwise, *_convolution(inputs, outputs, 1)]
    else:
        layers = _convolution(inputs, outputs, kernel, dilation)
    return nn.Sequential(*layers, *([dropout_layer(dropout)] if dropout else []))


def fc6_fc7(
    inputs: int, hidden: int, kernel: int, dilation: int, dropout: float
) -> list[nn.Module]:
    """VGG's fully connected layers as convolutions: kernel x kernel, then 1x1; size stays."""
    return [
        nn.Conv2d(inputs, hidden, kernel, padding=dilation * (kernel // 2), dilation=dilation),
        nn.ReLU(),
        dropout_layer(dropout),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        dropout_layer(dropout),
    ]


def dropout_layer(rate: float) -> nn.Dropout:
    """Dropout of single values. UserError unless the rate is from 0 to below 1."""
    if not 0 <= rate < 1:
        raise UserError(f"model: a dropout is {rate:g}; a rate from 0 to below 1 is expected.")
    return nn.Dropout(rate)


def at_least(least: int, **options: int) -> None:
    """UserError for the first of these options that is smaller than `least`."""
    for name, value in options.items():
        if value < least:
            raise UserError(f"model: {name} is {value}; a number from {least} up is expected.")


def _convolution(
    inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": False}
    return [nn.Conv2d(inputs, outputs, kernel, **options), BatchNorm(outputs), nn.ReLU()]


def resize(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """maps (B, C, H, W) at another (height, width): bilinear, corners not aligned."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def padded(images: Tensor, stride: int) -> Tensor:
    """images (B, C, H, W) with zeros to the right and below, to multiples of `stride`."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride))

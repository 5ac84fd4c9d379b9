"""Atrous spatial pyramid pooling: the same features seen through kernels of several widths."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import at_least, convolution

RATES = (1, 6, 12, 18)  # at output strides 16 and 32; twice as wide at 8


class ASPP(nn.Module):
    """DeepLabV3's: branches of several rates and the mean of the image, joined by a convolution.

    Rate 1 is a 1x1 convolution, any other a 3x3 one (Chen et al. 2017, 1706.05587).
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        rates: Sequence[int],
        *,
        separable: bool = False,
        join_kernel: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        at_least(1, aspp_channels=channels)
        branches: list[nn.Module] = [
            convolution(
                inputs,
                channels,
                1 if rate == 1 else 3,
                dilation=rate,
                separable=separable,
                dropout=dropout,
            )
            for rate in rates
        ]
        branches.append(_ImagePooling(inputs, channels, dropout))
        self.branches = nn.ModuleList(branches)
        self.join = convolution(len(branches) * channels, channels, join_kernel, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, inputs, H, W) -> (B, channels, H, W)."""
        return self.join(torch.cat([branch(features) for branch in self.branches], 1))


class _ImagePooling(nn.Module):
    """The mean over the image, a 1x1 convolution, and back to every position."""

    def __init__(self, inputs: int, channels: int, dropout: float = 0.0):
        super().__init__()
        self.convolution = convolution(inputs, channels, 1, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, inputs, H, W) -> (B, channels, H, W), the same everywhere."""
        mean = self.convolution(features.mean((2, 3), keepdim=True))
        return mean.expand(-1, -1, *features.shape[-2:])


def rates_for(output_stride: int, given: Sequence[int] | None) -> list[int]:
    """The rates of a recipe, or the paper's for the output stride. UserError below 1."""
    rates = list(given or [r if r == 1 or output_stride > 8 else 2 * r for r in RATES])
    at_least(1, rates=min(rates))
    return rates

"""Encoders: any timm model that gives feature maps, and VGG with a dilation of its own."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import weights
from ...core.errors import UserError, check_range, short
from .layers import fcn_head


class Encoder(nn.Module):
    """A backbone that gives its feature maps from fine to coarse.

    channels, strides: of each map; a map of stride s has 1/s of the image's height and width.
    """

    def __init__(self, net: nn.Module, strides: Sequence[int], dropout: float = 0.0):
        super().__init__()
        self.net = net
        self.channels: list[int] = net.feature_info.channels()
        self.strides = list(strides)
        self.channels_last = getattr(net, "output_fmt", None) == "NHWC"
        check_range("model", "[0, 1)", dropout_encoder=dropout)
        for stage in map(net.get_submodule, self.taps() if dropout else ()):
            if not isinstance(stage, nn.MaxPool2d):  # VGG's last, on what was dropped already
                stage.register_forward_hook(partial(_drop_out, dropout), prepend=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> one (B, channels[i], H / strides[i], W / strides[i]) a stage."""
        features = self.net(images)
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_last else features

    def at(self, stride: int) -> int:
        """Which is the last map of this stride. UserError if there is none."""
        if stride not in self.strides:
            raise UserError(
                f"the backbone has no features of stride {stride}, only of {self.strides}; "
                "choose a backbone that halves images step by step, such as resnet50."
            )
        return len(self.strides) - 1 - self.strides[::-1].index(stride)

    def taps(self) -> list[str]:
        """The names in `net` of the modules that end a stage. UserError where they have none."""
        known = dict(self.net.named_modules())
        found = []
        for name in self.net.feature_info.module_name():  # timm's wrappers change some
            same = (name, name.replace(".", "_", 1), f"body.{name}", f"model.{name}")
            found += [candidate for candidate in same if candidate in known][:1]
        if len(found) < len(self.channels):
            raise UserError(
                "the backbone's stages are no modules by themselves; leave out dropout_encoder and "
                "layer_decay, or choose a ResNet."
            )
        return found

    def stages(self) -> dict[str, int]:
        """The stage of each parameter by its name in `net`: which map it is the first to serve."""
        taps, found = self.taps(), {}
        stage = len(taps) - 1
        for name, module in reversed(list(self.net.named_modules())):
            for i, tap in enumerate(taps):
                if f"{name}.".startswith(f"{tap}."):
                    stage = i
            found |= {f"{name}.{key}".lstrip("."): stage for key in module._parameters}
        return found


def encoder(
    name: str,
    *,
    output_stride: int = 32,
    dropout: float = 0.0,
    multi_grid: Sequence[int] | None = None,
    pretrained: bool | str = False,
) -> Encoder:
    """The timm model `name` without its classifier, as an Encoder; options as in `models`.

    Below an output_stride of 32 the last stages keep their resolution and widen their kernels.
    UserError where these do not go together.
    """
    weights.check_name(name, "backbone")
    vgg = name.startswith("vgg")
    options = {} if vgg or output_stride == 32 else {"output_stride": output_stride}
    net = _create(name, options, pretrained)
    strides = net.feature_info.reduction()
    if vgg and output_stride < 32:
        _dilate_vgg(net, output_stride)
        strides = [min(stride, output_stride) for stride in strides]
    if strides[-1] != output_stride:
        raise UserError(
            f"backbone '{name}' ends at stride {strides[-1]}, not at {output_stride}; choose one "
            "that halves images step by step, such as resnet50."
        )
    if multi_grid:
        _widen(net, name, multi_grid, 32 // output_stride)
    return Encoder(net, strides, dropout)


def auxiliary_head(
    wanted: bool, features: Encoder, channels: int, num_classes: int
) -> nn.Sequential | None:
    """fcn_head with dropout .1 on the encoder's last map but one, if wanted."""
    check_range("model", "[1, inf)", auxiliary_channels=channels)
    return fcn_head(features.channels[-2], channels, num_classes, 0.1) if wanted else None


def _create(name: str, options: dict[str, Any], pretrained: bool | str) -> nn.Module:
    given = dict(options)
    if name.startswith("vgg") and not pretrained:
        # a classifier of 119 M weights would be drawn, and dropped: make it one channel wide
        given["mlp_ratio"] = 1 / 4096
    if pretrained is True:
        weights.prepare_hub(name)
    elif pretrained:
        with torch.random.fork_rng(devices=[]):  # weightless, and only to check the file's names
            whole = timm.create_model(name, device="meta")
        found = weights.fitting(whole, Path(pretrained).expanduser(), None)
        given["pretrained_cfg_overlay"] = {"state_dict": found}
    try:
        return timm.create_model(name, bool(pretrained), features_only=True, **given)
    except Exception as error:  # the hub and timm's classes raise whatever they like
        if pretrained is True:
            raise weights.unavailable(name, error) from error
        raise UserError(
            f"timm cannot give features of '{name}' with {options} ({short(repr(error), 120)}); "
            "choose output_stride 32, or a ResNet, EfficientNet, ConvNeXt or VGG."
        ) from error


def _dilate_vgg(net: nn.Module, output_stride: int) -> None:
    """VGG at a smaller output stride, as DeepLab has it.

    All pools become 3x3. Those that would go beyond the output stride keep the resolution, and the
    convolutions behind them step over the pixels that are no longer dropped (Chen et al. 2015).
    """
    stride = dilation = 1
    for module in net.modules():
        if isinstance(module, nn.MaxPool2d):
            keep = stride == output_stride
            stride, dilation = (stride, 2 * dilation) if keep else (2 * stride, dilation)
            module.kernel_size, module.padding, module.stride = 3, 1, 1 if keep else 2
        elif isinstance(module, nn.Conv2d):
            module.dilation = module.padding = (dilation, dilation)


def _widen(net: nn.Module, name: str, grid: Sequence[int], rate: int) -> None:
    """Multi-grid (DeepLabV3, 1706.05587): block i of the last stage has dilation rate·grid[i]."""
    check_range("model", "[1, inf)", multi_grid=min(grid))
    blocks = getattr(net, "layer4", ())
    if len(blocks) != len(grid):
        raise UserError(
            f"multi_grid {list(grid)} has {len(grid)} rates for the {len(blocks)} blocks in the "
            f"last stage of '{name}'; give one a block, and take a ResNet."
        )
    for block, factor in zip(blocks, grid, strict=True):
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (rate * factor, rate * factor)


def _drop_out(rate: float, module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
    """A forward hook, so that timm's names of parameters stay; heeds a copy's own mode."""
    return F.dropout(features, rate, module.training)

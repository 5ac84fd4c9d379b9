"""What the networks share: encoders, layers, and the frame around encoder and decoder."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import weights
from ...core.errors import UserError, check_range, short
from ...core.folders import typed_path


class Encoder(nn.Module):
    """The timm model `name` without its classifier: gives its feature maps from fine to coarse.

    Options as in `models`. Below an output_stride of 32 the last stages keep their resolution and
    widen their kernels. UserError where these do not go together.
    channels, strides: of each map; a map of stride s has 1/s of the image's height and width.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 32,
        dropout: float = 0.0,
        multi_grid: Sequence[int] | None = None,
        pretrained: bool | str = False,
    ):
        super().__init__()
        weights.check_name(name, "backbone")
        vgg = name.startswith("vgg")
        options = {} if vgg or output_stride == 32 else {"output_stride": output_stride}
        self.net = net = _create(name, options, pretrained)
        self.channels: list[int] = net.feature_info.channels()
        self.strides: list[int] = list(net.feature_info.reduction())
        self.channels_last = getattr(net, "output_fmt", None) == "NHWC"
        if vgg and output_stride < 32:
            _dilate_vgg(net, output_stride)
            self.strides = [min(stride, output_stride) for stride in self.strides]
        if self.strides[-1] != output_stride:
            raise UserError(
                f"backbone '{name}' ends at stride {self.strides[-1]}, not at {output_stride}; "
                "choose one that halves images step by step, such as resnet50."
            )
        if multi_grid:
            _widen(net, multi_grid, 32 // output_stride)
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
            raise UserError(f"the backbone has strides {self.strides}, not {stride}; try resnet50.")
        return len(self.strides) - 1 - self.strides[::-1].index(stride)

    def taps(self) -> list[str]:
        """The names in `net` of the modules that end a stage. UserError where they have none."""
        known, found = dict(self.net.named_modules()), []
        for name in self.net.feature_info.module_name():  # timm's wrappers change some
            same = (name, name.replace(".", "_", 1), f"body.{name}", f"model.{name}")
            found += [candidate for candidate in same if candidate in known][:1]
        if len(found) < len(self.channels):
            raise UserError(
                "the backbone has no stages; leave dropout_encoder and layer_decay out."
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


def _create(name: str, options: dict[str, Any], pretrained: bool | str) -> nn.Module:
    given = dict(options)
    if name.startswith("vgg") and not pretrained:  # 119 M weights would be drawn, and dropped
        given["mlp_ratio"] = 1 / 4096
    if pretrained is True:
        weights.prepare_hub(name)
    elif pretrained:
        with torch.random.fork_rng(devices=[]):  # weightless, and only to check the file's names
            whole = timm.create_model(name, device="meta")
        found = weights.fitting(whole, typed_path(pretrained), None)
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
    """VGG at a smaller output stride, as DeepLab has it (Chen et al. 2015): all pools become 3x3.
    Those that would go beyond the output stride keep the resolution, and the convolutions behind
    them step over the pixels that are no longer dropped."""
    stride = dilation = 1
    for module in net.modules():
        if isinstance(module, nn.MaxPool2d):
            keep = stride == output_stride
            stride, dilation = (stride, 2 * dilation) if keep else (2 * stride, dilation)
            module.kernel_size, module.padding, module.stride = 3, 1, 1 if keep else 2
        elif isinstance(module, nn.Conv2d):
            module.dilation = module.padding = (dilation, dilation)


def _widen(net: nn.Module, grid: Sequence[int], rate: int) -> None:
    """Multi-grid (DeepLabV3, 1706.05587): block i of the last stage has dilation rate·grid[i]."""
    check_range("model", "[1, inf)", multi_grid=min(grid))
    blocks = getattr(net, "layer4", ())
    if len(blocks) != len(grid):
        raise UserError(
            f"multi_grid has {len(grid)} rates for {len(blocks)} blocks; take a ResNet, one each."
        )
    for block, factor in zip(blocks, grid, strict=True):
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (rate * factor, rate * factor)


def _drop_out(rate: float, module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
    """A forward hook, so that timm's names of parameters stay; heeds a copy's own mode."""
    return F.dropout(features, rate, module.training)


class Segmenter(nn.Module):
    """Images (B, 3, H, W) to logits (B, C, H, W); in training with an auxiliary head, to both.

    encoder: images -> feature maps, from fine to coarse. decoder: feature maps -> one map.
    classifier: that map -> logits. stride: what images are padded to multiples of; the padding
    is cut off again. heads: the layers that give logits, if not the classifier. auxiliary: with a
    head on the last map but one, which learns and is never asked.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classifier: nn.Module,
        *,
        stride: int,
        dropout: float = 0.0,
        heads: Sequence[nn.Module] = (),
        auxiliary: bool = False,
        auxiliary_channels: int = 256,
    ):
        super().__init__()
        self.encoder, self.decoder, self.classifier = encoder, decoder, classifier
        self.dropout = dropout_layer(dropout)
        self.auxiliary, self.stride, self.heads = None, stride, list(heads) or [classifier]
        check_range("model", "[1, inf)", auxiliary_channels=auxiliary_channels)
        if auxiliary:
            inputs, classes = encoder.channels[-2], self.heads[0].out_channels
            self.auxiliary = fcn_head(inputs, auxiliary_channels, classes, 0.1)
            self.heads.append(self.auxiliary[-1])

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
    check_range("model", "[1, inf)", hidden=hidden)
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

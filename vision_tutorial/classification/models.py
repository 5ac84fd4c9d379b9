"""Networks: every timm model, with the options that small images need.

The initial weights are drawn from torch's global generator, which the caller seeds, and from
nothing else. Without options a model is exactly what `timm.create_model` builds.
"""

import inspect
import logging
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import timm
import torch
from timm.layers import BlurPool2d
from torch import nn

from ..core import weights
from ..core.errors import UserError, check_range, unknown
from ..core.folders import typed_path
from ..core.registry import models

# timm's class -> (what holds the convolutions before the first stage, where the last stage is).
# ResNet covers ResNeXt, Wide, SE-, ECA- and SK-ResNet, Res2Net, ResNeSt, and the -c -d -s -t stems.
FAMILIES = {
    "ResNet": ("conv1", "layer4"),
    "ResNetV2": ("stem", "stages"),
    "SENet": ("layer0", "layer4"),
    "RegNet": ("stem", "s4"),
    "ByobNet": ("stem", "stages"),
    "NormFreeNet": ("stem", "stages"),
    "DenseNet": ("features.conv0", "features.transition3"),
    "VovNet": ("stem", "stages"),
    "EfficientNet": ("conv_stem", None),
    "MobileNetV3": ("conv_stem", None),
}
_STEM_POOLS = ("maxpool", "pool0", "features.pool0", "stem.pool", "stem.pad")

logger = logging.getLogger(__name__)


@models.register_fallback()
def timm_model(
    name: str,
    num_classes: int,
    /,
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    stage4_stride: Literal[1, 2] | None = None,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    zero_init: bool | None = None,
    init: Literal["timm", "pytorch"] = "timm",
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """Any model of timm, by timm's name; further options go to timm's own class (Wightman 2019).

    num_classes: size of the classifier. The model maps images (B, 3, H, W) to logits (B, K).
    stem: `cifar` is a 3x3 convolution of stride 1 and no pooling, for images of about 32 pixels.
    stage4_stride: 1 lets the last stage keep its resolution; null and 2 leave it as it is.
    drop_path: stochastic depth, rate of the last block (Huang et al. 2016). dropout: before the
        classifier.
    zero_init: start the last norm of each residual branch at 0 (Goyal et al. 2017); null: as
        `init` has it, which is yes for timm's ResNets and no for PyTorch's defaults.
    init: `pytorch` gives every layer the weights that torch's constructors draw.
    pretrained: true takes timm's weights from the hub or its cache; a path takes a .safetensors or
        .pt file, whose classifier is left out where its class count differs.
    Raises UserError for an unknown name or option, and where an option makes no sense for a model.
    """
    weights.check_name(name)
    check_range("model", "[0, 1)", drop_path=drop_path, dropout=dropout)
    # which timm would only read in training
    check_range("model", "[0, 1)", drop_block_rate=float(options.get("drop_block_rate") or 0))
    wanted = dict(options)
    if drop_path:
        wanted["drop_path_rate"] = drop_path
    if zero_init is not None:
        wanted["zero_init_last"] = zero_init
    if wanted:
        _check_options(name, wanted)
    if dropout:
        wanted["drop_rate"] = dropout
    model = _create(name, num_classes, pretrained is True, wanted)
    if stem == "cifar":
        _cifar_stem(model, name, pretrained is True)
    if stage4_stride == 1:
        _keep_resolution(model, name)
    if init == "pytorch" and pretrained is not True:
        _initialise(model, bool(zero_init))
    if isinstance(pretrained, str):
        found = weights.fitting(model, typed_path(pretrained), num_classes)
        model.load_state_dict(found, strict=False)
    return model


def _check_options(name: str, wanted: dict[str, Any]) -> None:
    """Refuse what timm's class does not take; timm's factory itself would accept files to load."""
    with torch.random.fork_rng(devices=[]):  # weightless, and only to learn the class
        kind = type(timm.create_model(name, device="meta"))
    parameters = inspect.signature(kind).parameters
    config = getattr(parameters.get("cfg"), "annotation", None)
    known = set(parameters)
    if is_dataclass(config):  # what timm lays over the architecture's description
        known |= {f.name for f in fields(config)}
    for option, ours in (("drop_path_rate", "drop_path"), ("zero_init_last", "zero_init")):
        if option in wanted and option not in known:
            raise UserError(f"model '{name}' ({kind.__name__}) has no {ours}; leave it out.")
    known -= {"num_classes", "in_chans", "cfg", "kwargs", "device", "dtype", "block"}
    for option in wanted.keys() - known:
        raise UserError(unknown(f"option of {name}", option, known))


def _create(name: str, num_classes: int, pretrained: bool, wanted: dict[str, Any]) -> nn.Module:
    if pretrained:
        weights.prepare_hub(name)
    try:
        return timm.create_model(name, pretrained, num_classes=num_classes, **wanted)
    except Exception as error:  # the hub and timm's classes raise whatever they like
        if pretrained:
            raise weights.unavailable(name, error) from error
        raise UserError(f"timm cannot build '{name}' with {wanted} ({error!r}).") from error


def _place(model: nn.Module, name: str, option: str, which: int) -> str:
    """Where `which` of FAMILIES' two places is in `model`; UserError where it has none."""
    kind = type(model).__name__
    places = {family: pair[which] for family, pair in FAMILIES.items() if pair[which]}
    if kind not in places:
        known = ", ".join(places)
        raise UserError(f"'{option}' does not go with '{name}', a {kind}; it does with {known}.")
    return places[kind]


def _cifar_stem(model: nn.Module, name: str, pretrained: bool) -> None:
    """3x3 convolutions of stride 1, and no pooling, in front of the first stage."""
    before = model.get_submodule(_place(model, name, "stem: cifar", 0))
    for pool in _STEM_POOLS:
        if pool in dict(model.named_modules()):
            model.set_submodule(pool, nn.Identity())
    for conv in before.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            size = conv.kernel_size[0]
            if size > 3:  # in place, so that subclasses (standardised weights) stay
                middle = slice((size - 3) // 2, (size + 3) // 2)
                # initialisers give the variance 1 / (k^2 channels): times k/3, this is a 3x3 draw
                weight = conv.weight.detach()[..., middle, middle] * (size / 3)
                conv.weight, conv.kernel_size = nn.Parameter(weight), (3, 3)
                conv.padding = tuple(min(p, 1) for p in conv.padding)  # 0 where it pads by itself
                if pretrained:
                    logger.warning("stem: cifar keeps the middle of %s's pretrained stem.", name)


def _keep_resolution(model: nn.Module, name: str) -> None:
    """Stride 1 in the last stage, in its blocks and their shortcuts, as timm builds stride 1."""
    path = _place(model, name, "stage4_stride: 1", 1)
    stage = model.get_submodule(path)
    stage = stage[-1] if path == "stages" else stage
    kinds = nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d | BlurPool2d
    layers = [(inner, m) for inner, m in stage.named_modules() if isinstance(m, kinds)]
    strided = [(inner, m) for inner, m in layers if m.stride in (2, (2, 2))]
    if not strided:
        raise UserError(f"'stage4_stride: 1' changes nothing in model '{name}'; leave it out.")
    for inner, module in strided:
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d) and module.padding == 1:
            module.stride = 1  # Res2Net and ResNeSt smooth at any stride
        else:
            stage.set_submodule(inner, nn.Identity())


def _initialise(model: nn.Module, zero_init: bool) -> None:
    """Every layer as torch's constructors draw it; then the last norms to 0 where asked for."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for module in model.modules():
        if zero_init and hasattr(module, "zero_init_last"):
            module.zero_init_last()

"""The networks of segmentation_models_pytorch (smp), where it is installed: `smp/<Arch>`."""

from importlib.util import find_spec
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ...core import weights
from ...core.errors import UserError, unknown
from ...core.registry import models
from .backbones import padded

_NOT_OPTIONS = {
    *("self", "kwargs", "in_channels", "classes", "aux_params"),
    *("encoder_name", "encoder_weights"),  # here: encoder, pretrained
}


@models.register_fallback("smp/")
def smp(
    name: str,
    num_classes: int,
    /,
    *,
    encoder: str = "resnet34",
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """Any network of segmentation_models_pytorch, by its class's name (Iakubovskii 2019).

    encoder: smp's name; `tu-` before any name of timm. Further options go to smp's own class.
    pretrained: true is the encoder's ImageNet weights; a text is another set that smp has for it,
        such as noisy-student.
    (B, 3, H, W) -> (B, C, H, W), padded inside to multiples of 32. UserError where smp is not
    installed, and for what it does not know.
    """
    if not find_spec("segmentation_models_pytorch"):
        raise UserError(f"model {name} needs: pip install segmentation-models-pytorch.")
    import segmentation_models_pytorch as library

    kinds = {f"smp/{kind.__name__}": kind for kind in library.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in kinds:
        raise UserError(unknown("model", name, kinds))
    if not encoder.startswith("tu-") and encoder not in library.encoders.encoders:
        raise UserError(unknown("encoder of smp", encoder, library.encoders.encoders))
    known = set(signature(kinds[name].__init__).parameters) - _NOT_OPTIONS
    for option in set(options) - known:
        raise UserError(unknown(f"option of {name}", option, known))
    if pretrained:
        weights.look_for_hub()
    options["encoder_weights"] = "imagenet" if pretrained is True else pretrained or None
    try:
        return _Padded(kinds[name](encoder, classes=num_classes, **options))
    except Exception as error:  # the hub and smp's classes raise whatever they like
        raise UserError(
            f"smp cannot build {name} on {encoder} with {options} ({error!r:.200})."
        ) from error


class _Padded(nn.Module):
    """smp's network for images of any size."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return self.network(padded(images, 32))[..., :height, :width]

    def get_classifier(self) -> nn.Module:
        return self.network.segmentation_head

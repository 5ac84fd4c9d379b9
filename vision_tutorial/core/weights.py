"""Pretrained weights: from the hub or its cache, or from a file, and never by running a pickle.

Here and not in a track: classifiers and the backbones of segmentation start from the same files.
"""

import logging
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors.torch import load_file
from torch import Tensor, nn

from .atomic import regular
from .errors import UserError, unknown

MEND = "Set pretrained to a local .safetensors or .pt file"

logger = logging.getLogger(__name__)


def check_name(name: str, kind: str = "model") -> None:
    """Refuse a model, or a tag behind its dot, that timm does not have; name the nearest."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(unknown(kind, name, timm.list_models()))
    tagged = [known for known in timm.list_pretrained() if known.startswith(f"{base}.")]
    if tag and name not in tagged:
        raise UserError(unknown(kind, name, [base, *tagged]))


def prepare_hub(name: str) -> None:
    """Refuse a model without weights; then look for the hub."""
    if not timm.models.is_model_pretrained(name):
        raise UserError(f"timm has no pretrained weights for '{name}'. {MEND}, or to false.")
    look_for_hub()


def look_for_hub() -> None:
    """Ask only the cache from now on, if the hub does not answer at once."""
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # offline; the hub's client would retry for a minute and more
        constants.HF_HUB_OFFLINE = True


def unavailable(name: str, error: Exception) -> UserError:
    """The one line for weights that neither the hub nor its cache gave."""
    where = "offline, and not in the hub's cache" if constants.HF_HUB_OFFLINE else repr(error)
    return UserError(
        f"no pretrained weights for '{name}' ({where}). {MEND}, or start once with a network."
    )


def fitting(model: nn.Module, path: Path, num_classes: int | None) -> dict[str, Tensor]:
    """The weights in `path` that fit `model`, which may be on the meta device, by name.

    None may be missing or differ in shape, except the classifier's: one for another number of
    classes is left out, with a note, and any where `num_classes` is None. UserError: what is wrong.
    """
    if not path.is_file():
        raise UserError(f"pretrained: no file {path}. {MEND}, to true (timm's), or to false.")
    own, found = model.state_dict(), read(path)
    head = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{h}." for h in ([head] if isinstance(head, str) else head))
    other = {k for k in own.keys() & found.keys() if own[k].shape != found[k].shape}
    if num_classes is not None and other and all(k.startswith(heads) for k in other):
        text = "%s has %d classes, not %d: its classifier is left out."
        logger.warning(text, path, len(found[min(other)]), num_classes)
        num_classes = None
    if num_classes is None:
        own, found = (
            {k: v for k, v in weights.items() if not k.startswith(heads)}
            for weights in (own, found)
        )
    for what, names in (
        ("lacks", own.keys() - found.keys()),
        ("has, unknown to the model,", found.keys() - own.keys()),
        ("has in another shape", other & own.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise UserError(f"{path} {what} {shown} ({len(names)} in all); is it another model's?")
    return found


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pt file, out of the dictionaries and names that trainers
    put around it; no code in it runs. UserError if there is none."""
    regular(path)
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:  # written out, since an environment variable can turn the default off
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever they like on damaged files
        raise UserError(
            f"{path}: not a weights file that can be read without running its code "
            f"({type(error).__name__}). Save the state_dict alone, best as .safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"{path}: holds no state_dict (names and tensors). Save that alone.")
    return {k.removeprefix("_orig_mod.").removeprefix("module."): v for k, v in found.items()}

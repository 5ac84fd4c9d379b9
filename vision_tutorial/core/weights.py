"""Pretrained weights: from the hub or its cache, or from a file, and never by running a pickle.

Here and not in a track: classifiers and the backbones of segmentation start from the same files.
"""

import logging
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors.torch import load_file
from torch import Tensor, nn

from .atomic import read_json, regular
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

    path: a file, or a run folder or checkpoint of ours. None may be missing or differ in shape,
    except the classifier's: one for another number of classes, or none, is left out, with a note,
    and any where `num_classes` is None. Position embeddings are resampled to the model's size, as
    timm does it. UserError: what is wrong.
    """
    own, file = model.state_dict(), _file_of(path)
    found = without_prefix(read(file), own)
    head = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{h}." for h in ([head] if isinstance(head, str) else head))
    other = {k for k in own.keys() & found.keys() if own[k].shape != found[k].shape}
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt and not all(k.startswith(heads) for k in other):
        with suppress(Exception):  # what does not fit is said below
            found = adapt(found, model)
            other = {k for k in own.keys() & found.keys() if own[k].shape != found[k].shape}
    if num_classes is not None and heads:
        if other and all(k.startswith(heads) for k in other):
            text = "%s has %d classes, not %d: its classifier is left out."
            logger.warning(text, path, len(found[min(other)]), num_classes)
            num_classes = None
        elif not any(k.startswith(heads) for k in found):
            logger.warning("%s has no classifier: it is learned from the beginning.", path)
            num_classes = None
    if num_classes is None:
        own, found = (
            {k: v for k, v in weights.items() if not k.startswith(heads)}
            for weights in (own, found)
        )
    both = own.keys() & found.keys()
    for what, names in (
        ("lacks", own.keys() - found.keys()),
        ("has, unknown to the model,", found.keys() - own.keys()),
        ("has in another shape", other & both),
        ("has no finite numbers in", {k for k in both if not _like(found[k], own[k])}),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise UserError(f"{path} {what} {shown} ({len(names)} in all); is it another model's?")
    return found


def _like(found: Tensor, own: Tensor) -> bool:
    """Whether `found` holds numbers that `own` can: neither quantized nor complex nor infinite."""
    kind = found.is_floating_point() == own.is_floating_point() and not found.is_complex()
    return kind and not found.is_meta and bool(found.to_dense().float().isfinite().all())


def _file_of(path: Path) -> Path:
    """The file itself, or that of a checkpoint or of a run's best one: averaged weights, if any."""
    folder, saved = path, path / "ckpt"
    if saved.is_dir():
        known = sorted(saved.glob("step-*"))
        with suppress(UserError, TypeError, KeyError):
            known.append(saved / Path(read_json(saved / "best.json")["folder"]).name)
        folder = next(filter(Path.is_dir, reversed(known)), path)
    files = (path, *(folder / f"{group}.safetensors" for group in ("ema", "model")))
    file = next(filter(Path.is_file, files), None)
    if file is None:
        where = f"no file {path}" if not path.is_dir() else f"no weights in the folder {path}"
        raise UserError(
            f"pretrained: {where}. {MEND}, a run folder, to true (timm's), or to false."
        )
    return file


def without_prefix(found: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """`found` by the names in `own`: out of the module that holds the model (`model.`, as
    Lightning has it), without what stands beside it."""
    own = set(own)
    if len(own & found.keys()) * 2 > len(own):
        return found
    ends = {name.rpartition(".")[2] for name in own}
    prefixes = Counter(
        name[:dot]
        for name in found
        if name.rpartition(".")[2] in ends
        for dot in (n + 1 for n, letter in enumerate(name) if letter == ".")
        if name[dot:] in own
    )
    prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
    if count <= len(own & found.keys()):
        return found
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


# what trainers call the state dict in a checkpoint
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "module")


class _Inert:
    """Stands for any class of a checkpoint that is not torch's, and does nothing. Without arguments
    it is a dictionary, one of the few types that torch fills without running code."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return super().__new__(cls) if args else OrderedDict()

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pt file, out of the dictionaries and names that trainers
    put around it; no code in it runs. UserError if there is none."""
    regular(path)
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            unknown_classes = []
            with suppress(Exception):  # an old format; then only what torch knows is read
                unknown_classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            # such as the `args` of timm's training script
            known = torch.serialization.safe_globals([(_Inert, name) for name in unknown_classes])
            with known, warnings.catch_warnings(action="ignore"):  # of torch, about the format
                # written out, since an environment variable can turn the default off
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever they like on damaged files
        raise UserError(
            f"{path}: not a weights file that can be read without running its code "
            f"({type(error).__name__}). Save the state_dict alone, best as .safetensors."
        ) from error
    for key in _INSIDE * 3:  # one in the other, at most so deep
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if (
        not isinstance(found, dict)
        or not found
        or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
        )
    ):
        raise UserError(f"{path}: holds no state_dict (names and tensors). Save that alone.")
    return {k.removeprefix("_orig_mod.").removeprefix("module."): v for k, v in found.items()}

"""Python values as JSON beside named tensors, and back, bit for bit: what an optimizer remembers.

JSON has no tuple, no infinity, no key but text, no tensor. Such a value becomes a dictionary with
one marked key: {"$tuple": […]}, {"$float": "inf"}, {"$dict": [[key, value], …]},
{"$dtype": "bfloat16"}, {"$tensor": name, "stride": […]}.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core.errors import UserError, shown


def pack(value: Any, tensors: dict[str, Tensor] | None = None, path: str = "") -> Any:
    """`value` in JSON types; its tensors go into `tensors` under the path where they stood.

    Raises TypeError for what can be stored neither way.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(float(value))}
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        items = [pack(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        items = {key: pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {"$dict": [[pack(key), item] for key, item in items.items()]}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Tensor) and tensors is not None:
        name = path.removeprefix(".")
        assert name not in tensors, f"two tensors called {name}"
        tensors[name] = value
        # of a dense copy that keeps the memory layout (channels_last, say)
        return {"$tensor": name, "stride": torch.empty_like(value, device="meta").stride()}
    raise TypeError(f"{path or 'the value'} cannot be saved: it is a {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """The inverse of `pack`; tensors come back with the strides that they had.

    What `pack` did not make raises KeyError, TypeError, ValueError or AttributeError.
    """
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    match next(iter(packed), None):
        case "$float":
            return float(packed["$float"])
        case "$tuple":
            return tuple(unpack(packed["$tuple"], tensors))
        case "$dict":
            return {unpack(key): unpack(item, tensors) for key, item in packed["$dict"]}
        case "$dtype":
            found = getattr(torch, packed["$dtype"])
            if not isinstance(found, torch.dtype):
                raise TypeError(f"{packed} is no dtype")
            return found
        case "$tensor":
            return _copy(tensors[packed["$tensor"]], packed["stride"])
    return {key: unpack(item, tensors) for key, item in packed.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], packed: Any) -> None:
    """Load a packed `state_dict()`: the next step will be, bit for bit, what it would have been.

    Raises UserError if the optimizer has other parameter groups.
    """
    saved = unpack(packed, tensors)
    # How the step is computed is this machine's matter; where its counters lie depends on it.
    for there, here in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        there |= {key: here[key] for key in ("fused", "foreach", "capturable") if key in here}
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, KeyError) as error:
        raise UserError(f"the checkpoint is of another optimizer: {error}. Start anew.") from error
    # load_state_dict finds the right device for each tensor, but casts it to its parameter's dtype.
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            entry[key] = _exact(saved["state"][index][key], value)
    _check(optimizer)


def _check(optimizer: Optimizer) -> None:
    """UserError where state cannot be of its parameter: other sizes than the parameter has (or
    products of them, as factored and preconditioned optimizers keep), or none of what its like has.
    """
    kinds: dict[Any, Any] = {}
    torchs = type(optimizer).__module__.startswith("torch.")  # all parameters have the same there
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entry = optimizer.state.get(parameter, {})
            sides = {1, parameter.numel(), *parameter.shape}
            sides |= {parameter.numel() // side for side in sides if side}
            for name, value in entry.items():
                if value is None:
                    continue
                sizes = set(value.shape) if isinstance(value, Tensor) else set()
                kind = kinds.setdefault(name, type(value))
                if not sizes <= sides or (kind is Tensor) != isinstance(value, Tensor):
                    shape = tuple(parameter.shape)
                    raise UserError(f"{name} {shown(value)} is no state of a parameter {shape}")
            like = (id(group), None if torchs else parameter.shape)
            if entry and kinds.setdefault(like, set(entry)) != set(entry):
                raise UserError(f"a parameter has {sorted(entry)}, another {sorted(kinds[like])}")


def _exact(saved: Any, loaded: Any) -> Any:
    if isinstance(saved, Tensor):
        return _copy(saved, saved.stride(), loaded.device)
    if isinstance(saved, list | tuple):
        return type(saved)(map(_exact, saved, loaded))
    return saved


def _copy(tensor: Tensor, stride: Any, device: torch.device | None = None) -> Tensor:
    place = device or tensor.device
    extent = 1 + sum((n - 1) * by for n, by in zip(tensor.shape, stride, strict=True))
    if tensor.numel() and extent != tensor.numel():  # a stride of millions would take the memory
        raise ValueError(f"strides {stride} for a tensor of {tuple(tensor.shape)}")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=place).copy_(tensor)

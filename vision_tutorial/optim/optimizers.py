"""Optimizers (torch's ASGD, and timm's factory), their parameter groups, and gradient clipping."""

import inspect
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch
from timm import optim
from timm.optim import muon as timm_muon
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.optim import ASGD, Optimizer

from ..core.errors import UserError, unknown
from ..core.registry import optimizers
from ..recipe.fields import Clip

_newton_schulz = timm_muon.zeropower_via_newtonschulz


def _newton_schulz_for_device(matrix: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """timm's Newton-Schulz iteration of muon, which it does in bfloat16; on a CPU in float32, which
    is more exact and, where the processor has no bfloat16, 20 times as fast."""
    if matrix.device.type == "cpu":
        options["dtype"] = torch.float32
    return _newton_schulz(matrix, *args, **options)


timm_muon.zeropower_via_newtonschulz = _newton_schulz_for_device


@optimizers.register
def asgd(
    groups: Any,
    *,
    lr: float,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Averaged stochastic gradient descent, torch's (Polyak & Juditsky 1992).

    The step is lr / (1 + lambd·lr·t)^alpha of the lr at hand; averaging starts at step t0.
    """
    options = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}
    return _made("asgd", ASGD, groups, **options)


@optimizers.register_fallback()
def timm_optimizer(
    name: str, groups: Any, /, *, lr: float, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """Any optimizer of timm's factory, with timm's defaults: `sgd` is Nesterov, momentum is 0.9.

    `lookahead_NAME` wraps one in Lookahead (Zhang et al. 2019). lr is the schedule's peak. A
    UserError tells a name or option that nobody has, the nearest one, and a package not there.
    """
    base = name.removeprefix("lookahead_")
    if base not in optim.list_optimizers():
        raise UserError(unknown("optimizer", name, [*optimizers, *optim.list_optimizers()]))
    try:
        signature = inspect.signature(optim.get_optimizer_class(base, bind_defaults=False))
    except (AssertionError, ImportError) as error:
        package = str(optim.get_optimizer_info(base).opt_class).partition(".")[0]
        raise UserError(
            f"optimizer '{base}' needs the package {package} and a CUDA device ({error}); "
            "install it, or choose another optimizer."
        ) from error
    allowed = {"lr", "weight_decay", *signature.parameters} - {"params"}
    for option in sorted(options.keys() - allowed):
        raise UserError(unknown(f"option of '{name}'", option, allowed))
    # YAML knows no tuples; the optimizers compare, unpack and save their betas as such.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    groups = list(groups)
    plain = "fused" in allowed and not {"fused", "foreach"} & options.keys()
    if plain and all(isinstance(group, dict) for group in groups):
        parameters = [p for group in groups for p in group["params"]]
        if all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters):
            options["fused"] = True  # one pass over the memory, where torch's default makes several
    options |= {"opt": name, "lr": lr, "weight_decay": weight_decay}
    return _made(name, optim.create_optimizer_v2, groups, **options)


def _made(name: str, make: Callable[..., Optimizer], groups: Any, **options: Any) -> Optimizer:
    try:
        return make(groups, **options)
    except Exception as error:  # torch and timm raise whatever they like on odd values
        reason = " ".join(str(error).split())
        hint = ". timm's is Nesterov; nesterov: false is not" if "Nesterov" in reason else ""
        raise UserError(f"optimizer '{name}': {reason}{hint}") from error


def try_out(make: Callable[[Any], Optimizer]) -> Optimizer:
    """The optimizer that `make` makes of tiny parameters, after two steps; raises what they raise.

    Nothing random is drawn from the global generators.
    """
    shapes = [(2,), (4, 3), (4, 3, 2, 2)]
    parameters = [nn.Parameter(torch.full(shape, 0.5, device="cpu")) for shape in shapes]
    with (
        torch.random.fork_rng(devices=[]),
        torch.compiler.set_stance("force_eager"),
        torch.enable_grad(),  # which an interruption may leave off
    ):
        optimizer = make([{"params": parameters}])
        second_order = getattr(optimizer, "is_second_order", False)
        for _ in range(2):
            optimizer.zero_grad()
            total = sum((parameter**3).sum() for parameter in parameters)
            with warnings.catch_warnings(action="ignore"):  # of a graph that keeps itself
                total.backward(create_graph=second_order)
            optimizer.step()
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_decay_1d: bool = True,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters, split by who is decayed; by layer too if `layer_decay` is given.

    Spared are biases and other 1-D parameters, and what `model.no_weight_decay()` names. With
    layer_decay d, layer i of n has lr_scale d^(n−1−i) (BEiT, Bao et al. 2021), which `set_lr`
    heeds. Call it before the model is wrapped. UserError: nothing to train, or no layers known.
    """
    spared = set(getattr(model, "no_weight_decay", set)())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kind = type(model).__name__
    if not trainable:
        raise UserError(f"{kind} has no trainable parameter; unfreeze some.")
    if layer_decay is not None:
        groups = optim.param_groups_layer_decay(
            model,
            weight_decay=weight_decay,
            no_weight_decay_list=spared,
            weight_decay_exclude_1d=no_decay_1d,
            layer_decay=layer_decay,
        )
        if layer_decay != 1 and all(group["lr_scale"] == 1 for group in groups):
            raise UserError(f"layer_decay has no effect: {kind} does not tell its layers apart.")
        return groups
    free, decayed = [], []
    for name, parameter in trainable.items():
        flat = no_decay_1d and (parameter.ndim <= 1 or name.endswith(".bias"))
        named = any(fnmatch(name, pattern) for pattern in spared)
        (free if flat or named or not weight_decay else decayed).append(parameter)
    pairs = [(free, 0.0), (decayed, weight_decay)]
    return [{"params": found, "weight_decay": decay} for found, decay in pairs if found]


def clip_gradients(clip: Clip | None, network: nn.Module, norm: torch.Tensor) -> None:
    """Clip the network's gradients, whose total norm is `norm`; nothing without `clip`."""
    if clip is None:
        return
    if clip.norm is not None:
        nn.utils.clip_grads_with_norm_(network.parameters(), clip.norm, norm)
    elif clip.value is not None:
        nn.utils.clip_grad_value_(network.parameters(), clip.value)
    else:  # all but the head, as in the paper and in timm
        known = hasattr(network, "get_classifier")
        head = {id(p) for p in network.get_classifier().parameters()} if known else set()
        adaptive_clip_grad([p for p in network.parameters() if id(p) not in head], clip.agc)

"""Optimizers: torch's ASGD, and every name that timm's factory knows."""

import inspect
from collections.abc import Callable
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch.optim import ASGD, Optimizer

from ..core.errors import UserError, unknown
from ..core.registry import optimizers

_LOOKAHEAD = "lookahead_"


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
    return _made(
        "asgd", ASGD, groups, lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay
    )


@optimizers.register_fallback()
def timm_optimizer(
    name: str, groups: Any, /, *, lr: float, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """Any optimizer of timm's factory, with timm's defaults: `sgd` is Nesterov, momentum is 0.9.

    `lookahead_NAME` wraps one in Lookahead (Zhang et al. 2019). lr is the schedule's peak. A
    UserError tells a name or option that nobody has, the nearest one, and a package not there.
    """
    base = name.removeprefix(_LOOKAHEAD)
    if base not in list_optimizers():
        raise UserError(unknown("optimizer", name, [*optimizers, *list_optimizers()]))
    allowed = _options(base)
    for option in options:
        if option not in allowed:
            raise UserError(unknown(f"option of '{name}'", option, allowed))
    # YAML knows no tuples; the optimizers compare, unpack and save their betas as such.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    options = {"lr": lr, "weight_decay": weight_decay, **options}
    groups = list(groups)
    if "fused" in allowed and not {"fused", "foreach"} & options.keys() and _can_fuse(groups):
        options["fused"] = True  # one pass over the memory, where torch's own default makes several
    return _made(name, create_optimizer_v2, groups, opt=name, **options)


def _can_fuse(groups: Any) -> bool:
    """Whether these are parameter groups, of parameters for which torch has fused steps."""
    if not all(isinstance(group, dict) for group in groups):
        return False
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def _options(name: str) -> list[str]:
    try:
        signature = inspect.signature(get_optimizer_class(name, bind_defaults=False))
    except (AssertionError, ImportError) as error:
        package = str(get_optimizer_info(name).opt_class).partition(".")[0]
        raise UserError(
            f"optimizer '{name}' needs the package {package} and a CUDA device ({error}); "
            "install it, or choose another optimizer."
        ) from error
    return ["lr", "weight_decay", *(set(signature.parameters) - {"params", "lr", "weight_decay"})]


def _made(name: str, make: Callable[..., Optimizer], *given: Any, **options: Any) -> Optimizer:
    """`make(…)`; what it says of a bad value becomes a UserError."""
    try:
        return make(*given, **options)
    except Exception as error:  # torch and timm raise whatever they like on odd values
        reason = " ".join(str(error).split())
        hint = ". timm's is Nesterov; nesterov: false is not" if "Nesterov" in reason else ""
        raise UserError(f"optimizer '{name}': {reason}{hint}") from error

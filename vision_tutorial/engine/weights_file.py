"""The weights of a finished training: which file, and whether they fit the network."""

from pathlib import Path

from torch import Tensor, nn

from ..core.errors import UserError
from .checkpoint import best
from .checkpoint_folder import candidates


def weights_path(run: Path, which: str) -> Path:
    """What `load_weights` is to read: the run's best, its newest checkpoint ("last"), or a file."""
    if which not in ("best", "last"):
        return Path(which)
    found = best(run) if which == "best" else next(iter(candidates(run / "ckpt")), None)
    if found is None:
        raise UserError(f"{run}: holds no checkpoint yet. Train it first, or name --weights FILE.")
    return found


def put(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights whose names and shapes must be the network's."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the weights of this recipe's model: {reason}") from error

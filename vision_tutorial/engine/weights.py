"""The weights of a training for whoever evaluates it: which file, verified, into the network."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core import weights
from ..core.atomic import read_json
from ..core.errors import UserError
from .checkpoint_folder import FOLDER, MANIFEST, Damaged, candidates, verify


def weights_path(run: Path, which: str) -> Path:
    """What `load_weights` is to read: the run's best (the newest checkpoint if none was named
    best), its newest ("last"), or a file."""
    if which not in ("best", "last"):
        return Path(which)
    best, newest = run / "ckpt" / "best.json", candidates(run / "ckpt")
    if which == "best" and best.exists():
        found = read_json(best)
        name = found.get("folder") if isinstance(found, dict) else None
        if not isinstance(name, str) or not FOLDER.fullmatch(name):
            raise UserError(f"{best} is damaged. Name a checkpoint folder instead.")
        return best.parent / name
    if not newest:
        raise UserError(f"{run}: holds no checkpoint yet. Train it first, or name --weights FILE.")
    return newest[0]


def load_weights(path: Path | str, group: str = "model") -> dict[str, Tensor]:
    """The tensors of a run (its best checkpoint), a checkpoint folder, or a file of weights.

    group: "model" or "ema", where there is a choice. Our own checkpoints are verified. A file that
    is not safetensors is read as `.pt`, tensors only: nothing in it is executed. Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        is_checkpoint = FOLDER.fullmatch(path.name) or (path / MANIFEST).exists()
        path = (path if is_checkpoint else weights_path(path, "best")) / f"{group}.safetensors"
    try:
        if FOLDER.fullmatch(path.parent.name) or (path.parent / MANIFEST).exists():
            verify(path.parent)
        if not path.is_file():
            raise UserError(f"there is no {path}. Name a run, a checkpoint or a file of weights.")
        return load_file(path) if path.suffix == ".safetensors" else weights.read(path)
    except (Damaged, SafetensorError) as error:
        raise UserError(f"{path} cannot be used: {error}. Name another checkpoint.") from error


def put_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights whose names and shapes must be the network's."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the weights of this recipe's model: {reason}") from error

"""The weights of a training for whoever evaluates it: which file, verified, into the network."""

from pathlib import Path

from torch import Tensor, nn

from ..core import weights
from ..core.atomic import read_json
from ..core.errors import UserError
from .checkpoint_folder import FOLDER, MANIFEST, Damaged, candidates, read_tensors, verify


def best_checkpoint(run: Path | str) -> Path | None:
    """The folder of the best checkpoint of a run, of the newest if none was named best, or None."""
    folder = Path(run) / "ckpt"
    if (folder / "best.json").exists():
        found = read_json(folder / "best.json")
        name = found.get("folder") if isinstance(found, dict) else None
        if not isinstance(name, str) or not FOLDER.fullmatch(name):
            raise UserError(f"{folder / 'best.json'} is damaged. Name a checkpoint folder instead.")
        return folder / name
    return next(iter(candidates(folder)), None)


def weights_path(run: Path, which: str) -> Path:
    """What `load_weights` is to read: the run's best, its newest checkpoint ("last"), or a file."""
    if which not in ("best", "last"):
        return Path(which)
    last = next(iter(candidates(run / "ckpt")), None)
    found = best_checkpoint(run) if which == "best" else last
    if found is None:
        raise UserError(f"{run}: holds no checkpoint yet. Train it first, or name --weights FILE.")
    return found


def load_weights(path: Path | str, group: str = "model") -> dict[str, Tensor]:
    """The tensors of a run (its best checkpoint), a checkpoint folder, or a file of weights.

    group: "model" or "ema", where there is a choice. Our own checkpoints are verified. A file that
    is not safetensors is read as `.pt`, tensors only: nothing in it is executed. Raises UserError.
    """
    path = Path(path)
    try:
        if path.is_dir():
            is_checkpoint = FOLDER.fullmatch(path.name) or (path / MANIFEST).exists()
            folder = path if is_checkpoint else best_checkpoint(path)
            if folder is None:
                raise UserError(f"{path} holds no checkpoint. Name a run, a checkpoint or a file.")
            verify(folder)
            path = folder / f"{group}.safetensors"
        elif (path.parent / MANIFEST).exists():
            verify(path.parent)
        if not path.is_file():
            raise UserError(f"there is no {path}. Name a run, a checkpoint or a file of weights.")
        return read_tensors(path) if path.suffix == ".safetensors" else weights.read(path)
    except Damaged as error:
        raise UserError(f"{path} cannot be used: {error}. Name another checkpoint.") from error


def put_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights whose names and shapes must be the network's."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the weights of this recipe's model: {reason}") from error

"""Checkpoints: what is saved and when, what may be resumed, and what happens when either fails.

Only tensors and JSON types are stored, so reading a checkpoint can run no code. `folders` has how
one is written and verified; `<run>/ckpt/best.json` names the best of them.
"""

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from ..core.atomic import read_json, write_json
from ..core.errors import NonFiniteError, StorageError, UserError
from ..runs import run_folder
from . import checkpoint_folder
from .checkpoint_folder import Damaged
from .optimizer_state import pack, unpack

Tensors = Mapping[str, Tensor]  # by name
Groups = Mapping[str, Tensors]  # by file: model, ema, optim

# A full disk is a RuntimeError in torch, a SafetensorError in safetensors, an OSError elsewhere.
FAILURES = (OSError, RuntimeError, SafetensorError, StorageError)
PATIENCE = 3  # failed saves in a row that end the training
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


class Loaded(NamedTuple):
    """A checkpoint in memory, on the CPU."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: Any
    folder: Path
    best: str | None  # name of the best checkpoint when this one was written


class Checkpoints:
    """Writes and reads the checkpoints of one run; for the one process that holds the run's lock.

    `save` copies the tensors and returns; a thread writes them. A save that fails is reported at
    the next `save`, `wait` or `finish`, and the training goes on; three in a row, or a failed last
    one, raise StorageError.
    """

    def __init__(
        self, run: Path, recipe_hash: str, *, keep: int = 2, say: Callable[[str], None] = print
    ):
        self.folder = Path(run) / "ckpt"
        self.recipe_hash = recipe_hash
        self.keep = keep
        self.say = say
        self.source: str | None = None  # what was resumed from, kept for as long as we run
        self.best: str | None = None
        self.failures = 0
        self.reason = ""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, tensors: Groups, state: Any, is_best: bool = False) -> None:
        """Save `tensors` ({"model": {name: tensor}, …}) and `state` (JSON types and tuples)."""
        self.wait()
        job = (step, snapshot(tensors), json.dumps(pack(state), allow_nan=False), is_best)
        self._thread = threading.Thread(target=self._run, args=job, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is under way; count and report a failed one.

        Raises NonFiniteError if a tensor held NaN or infinity, StorageError as the class says.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is None:
            self.failures = 0
            return
        if not isinstance(error, FAILURES):
            raise error
        self.failures += 1
        self.reason = f"a checkpoint could not be saved in {self.folder}: {error}"
        self.say(f"{self.reason} (failure {self.failures} of {PATIENCE} in a row)")
        if self.failures >= PATIENCE:
            raise StorageError(self.reason) from error

    @property
    def busy(self) -> bool:
        """Whether a save is under way; `wait` returns at once if not."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait for the last save of a training; StorageError if it failed."""
        self.wait()
        if self.failures:
            raise StorageError(self.reason)

    def load(self, like: Groups) -> Loaded | None:
        """The newest checkpoint that is whole; see `load`. It will not be deleted by us."""
        self.wait()
        loaded = load(self.folder, like, self.recipe_hash, self.say)
        if loaded is not None:
            self.source = loaded.folder.name
            self.best = loaded.best
            # A crash between the rename and best.json leaves best.json one behind.
            if self.best and (self.folder / self.best).is_dir():
                write_json(self.folder / "best.json", {"folder": self.best})
        return loaded

    def _run(self, *job: Any) -> None:
        try:
            self._write(*job)
        except Exception as error:  # raised again, or counted, in `wait`
            self._error = error

    def _write(self, step: int, tensors: Groups, state: str, is_best: bool) -> None:
        if bad := _non_finite(tensors):
            raise NonFiniteError(f"step {step}: {bad} holds NaN or infinity, so it is not saved.")
        if not self.folder.is_dir():
            self.folder.mkdir()
            run_folder.sync_folder(self.folder.parent)
        checkpoint_folder.sweep(self.folder)
        _check_room(self.folder, tensors, state)
        name = checkpoint_folder.free_name(self.folder, step)
        best = name if is_best else self.best
        facts = {"step": step, "recipe_hash": self.recipe_hash, "best": best}
        checkpoint_folder.write_folder(self.folder / name, _files(tensors, state), facts)
        self.best = best
        if is_best:
            write_json(self.folder / "best.json", {"folder": name})
        checkpoint_folder.prune(self.folder, name, self.keep, {self.best, self.source})


class NoCheckpoints:
    """The twin of `Checkpoints` for the other processes: it reads, and writes nothing."""

    def __init__(self, run: Path, recipe_hash: str):
        self.folder = Path(run) / "ckpt"
        self.recipe_hash = recipe_hash

    def save(self, step: int, tensors: Groups, state: Any, is_best: bool = False) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def load(self, like: Groups) -> Loaded | None:
        """The newest checkpoint that is whole; see `load`."""
        return load(self.folder, like, self.recipe_hash, say=lambda line: None)


# -- writing ---------------------------------------------------------------------------------------


def snapshot(tensors: Groups) -> dict[str, dict[str, Tensor]]:
    """Contiguous copies on the CPU that share memory with nothing (safetensors asks for both)."""
    copies = {
        group: {name: _copy(tensor.detach()) for name, tensor in named.items()}
        for group, named in tensors.items()
    }
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copies


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU; of a GPU's tensor in pinned memory, on its way there."""
    if tensor.is_cuda:  # all are sent off before anyone waits for one
        return tensor.contiguous().to("cpu", non_blocking=True)
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def _files(tensors: Groups, state: str) -> Iterable[tuple[str, bytes]]:
    for group, named in tensors.items():
        yield f"{group}.safetensors", safetensors.save(dict(named))
    yield "state.json", state.encode()


def _non_finite(tensors: Groups) -> str | None:
    for group, named in tensors.items():
        for name, tensor in named.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return f"{group} '{name}'"
    return None


def _check_room(folder: Path, tensors: Groups, state: str) -> None:
    need = sum(t.nbytes for named in tensors.values() for t in named.values()) + len(state)
    free = shutil.disk_usage(folder).free
    if free < need * 1.01 + 2**20:
        text = f"needs {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
        raise OSError(errno.ENOSPC, text)


# -- reading ---------------------------------------------------------------------------------------


def load(
    folder: Path, like: Groups, recipe_hash: str, say: Callable[[str], None] = print
) -> Loaded | None:
    """The newest whole checkpoint in a `ckpt` folder; None if there never was one.

    `like` holds tensors by group and name as the model has them now: names, shapes and dtypes must
    agree (groups absent from it are not compared). A damaged checkpoint is reported through `say`
    and passed over. Raises UserError if all are damaged, or if the newest whole one belongs to
    another recipe or model.
    """
    found = checkpoint_folder.candidates(folder)
    for path in found:
        try:
            return _read(path, like, recipe_hash)
        except Damaged as error:
            say(f"checkpoint {path} is damaged ({error}); looking at the one before it")
    if found:
        raise UserError(
            f"{folder}: all {len(found)} checkpoints are damaged. Put one back from a copy, or "
            "start a new run."
        )
    return None


def _read(folder: Path, like: Groups, recipe_hash: str) -> Loaded:
    manifest = checkpoint_folder.verify(folder)
    if manifest["recipe_hash"] != recipe_hash:
        raise UserError(
            f"{folder} was made by another recipe ({manifest['recipe_hash']}, now {recipe_hash}). "
            "On resume only epochs, workers, logging and the number of processes may change; "
            "start a new run."
        )
    for group, named in like.items():
        _compare(folder / f"{group}.safetensors", named)
    tensors = {
        Path(name).stem: checkpoint_folder.read_tensors(folder / name)
        for name in manifest["files"]
        if name.endswith(".safetensors")
    }
    if bad := _non_finite(tensors):
        raise Damaged(f"{bad} holds NaN or infinity")
    state = unpack(checkpoint_folder.read_json(folder / "state.json"))
    return Loaded(manifest["step"], tensors, state, folder, manifest["best"])


def _compare(path: Path, named: Tensors) -> None:
    """UserError unless the tensors in `path` are those of `named`; reads the header only."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no '{path.stem}', which this recipe needs.")
    with safe_open(path, framework="pt") as file:
        there = {key: _describe(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118
    here = {key: (list(tensor.shape), tensor.dtype) for key, tensor in named.items()}
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise UserError(
                f"{path} was written for another model: '{key}' is "
                f"{_words(there.get(key))} there and {_words(here.get(key))} here."
            )


def _describe(header: Any) -> tuple[list[int], torch.dtype | str]:
    return header.get_shape(), DTYPES.get(header.get_dtype(), header.get_dtype())


def _words(tensor: tuple[list[int], Any] | None) -> str:
    return f"{tensor[0]} {str(tensor[1]).removeprefix('torch.')}" if tensor else "absent"


# -- weights for evaluation ------------------------------------------------------------------------


def best(run: Path | str) -> Path | None:
    """The folder of the best checkpoint of a run, of the newest if none was named best, or None."""
    folder = Path(run) / "ckpt"
    if (folder / "best.json").exists():
        found = read_json(folder / "best.json")
        name = found.get("folder") if isinstance(found, dict) else None
        if not isinstance(name, str) or not checkpoint_folder.FOLDER.fullmatch(name):
            raise UserError(f"{folder / 'best.json'} is damaged. Name a checkpoint folder instead.")
        return folder / name
    return next(iter(checkpoint_folder.candidates(folder)), None)


def load_weights(path: Path | str, group: str = "model") -> dict[str, Tensor]:
    """The tensors of a run (its best checkpoint), a checkpoint folder, or a file of weights.

    group: "model" or "ema", where there is a choice. Our own checkpoints are verified. A file that
    is not safetensors is read as `.pt`, tensors only: nothing in it is executed. Raises UserError.
    """
    path = Path(path)
    try:
        if path.is_dir():
            path = _folder(path) / f"{group}.safetensors"
        elif (path.parent / checkpoint_folder.MANIFEST).exists():
            checkpoint_folder.verify(path.parent)
        if not path.is_file():
            raise UserError(f"there is no {path}. Name a run, a checkpoint or a file of weights.")
        return (
            checkpoint_folder.read_tensors(path)
            if path.suffix == ".safetensors"
            else _torch_file(path)
        )
    except Damaged as error:
        raise UserError(f"{path} cannot be used: {error}. Name another checkpoint.") from error


def _folder(path: Path) -> Path:
    """The verified checkpoint folder that a run's or a checkpoint's path means."""
    is_checkpoint = (
        checkpoint_folder.FOLDER.fullmatch(path.name)
        or (path / checkpoint_folder.MANIFEST).exists()
    )
    folder = path if is_checkpoint else best(path)
    if folder is None:
        raise UserError(f"{path} holds no checkpoint. Name a run, a checkpoint or a file.")
    checkpoint_folder.verify(folder)
    return folder


def _torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pt` file, taken out of the wrappings that trainers put around them."""
    try:
        # Written out: an environment variable can turn the default back into running the file.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on damaged or hostile files
        raise UserError(
            f"{path} cannot be read without running code from it ({type(error).__name__}): it is "
            "damaged or holds more than tensors. Save model.state_dict(), best as .safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in found.items()
    ):
        raise UserError(f"{path} holds no tensors by name. Save model.state_dict() instead.")
    return {
        name.removeprefix("_orig_mod.").removeprefix("module."): tensor
        for name, tensor in found.items()
    }

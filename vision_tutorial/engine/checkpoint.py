"""Checkpoints: what is saved and when, what may be resumed, and what happens when either fails.

Only tensors and JSON types are stored, so reading a checkpoint can run no code. checkpoint_folder
writes and verifies one; `<run>/ckpt/best.json` names the best of them.
"""

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from ..core.atomic import sync_folder, write_json
from ..core.errors import NonFiniteError, StorageError, UserError
from . import checkpoint_folder
from .checkpoint_folder import Damaged
from .optimizer_state import pack, unpack

Tensors = Mapping[str, Tensor]  # by name
Groups = Mapping[str, Tensors]  # by file: model, ema, optim

# A full disk is a RuntimeError in torch, a SafetensorError in safetensors, an OSError elsewhere.
FAILURES = (OSError, RuntimeError, SafetensorError, StorageError)
PATIENCE = 3  # failed saves in a row that end the training


class LoadedCheckpoint(NamedTuple):
    """A checkpoint in memory, on the CPU."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: Any
    folder: Path
    best: str | None  # name of the best checkpoint when this one was written


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Only the process that holds the run's lock writes; with `write` false `save` does nothing.
    `save` copies the tensors and returns; a thread writes them. A save that fails is reported at
    the next `save`, `wait` or `finish`, and the training goes on; three in a row, or a failed last
    one, raise StorageError.
    """

    def __init__(
        self,
        run: Path,
        recipe_hash: str,
        *,
        keep: int = 2,
        say: Callable[[str], None] = print,
        write: bool = True,
    ):
        self.folder = Path(run) / "ckpt"
        self.recipe_hash = recipe_hash
        self.keep = keep
        self.say = say if write else lambda line: None
        self.write = write
        self.source: str | None = None  # what was resumed from, kept for as long as we run
        self.best: str | None = None
        self.failures = 0
        self.reason = ""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, tensors: Groups, state: Any, is_best: bool = False) -> None:
        """Save `tensors` ({"model": {name: tensor}, …}) and `state` (JSON types and tuples)."""
        if not self.write:
            return
        self.wait()
        job = (step, _copies(tensors), json.dumps(pack(state), allow_nan=False), is_best)
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

    def load(self, like: Groups) -> LoadedCheckpoint | None:
        """The newest checkpoint that is whole; see `load`. It will not be deleted by us."""
        self.wait()
        loaded = load(self.folder, like, self.recipe_hash, self.say)
        if loaded is not None:
            self.source = loaded.folder.name
            self.best = loaded.best
            # A crash between the rename and best.json leaves best.json one behind.
            if self.write and self.best and (self.folder / self.best).is_dir():
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
            sync_folder(self.folder.parent)
        checkpoint_folder.sweep(self.folder)
        need = sum(t.nbytes for named in tensors.values() for t in named.values()) + len(state)
        free = shutil.disk_usage(self.folder).free
        if free < need * 1.01 + 2**20:
            text = f"needs {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
            raise OSError(errno.ENOSPC, text)
        name = checkpoint_folder.free_name(self.folder, step)
        best = name if is_best else self.best
        facts = {"step": step, "recipe_hash": self.recipe_hash, "best": best}
        checkpoint_folder.write_folder(self.folder / name, _files(tensors, state), facts)
        self.best = best
        if is_best:
            write_json(self.folder / "best.json", {"folder": name})
        checkpoint_folder.prune(self.folder, name, self.keep, {self.best, self.source})


def _copies(tensors: Groups) -> dict[str, dict[str, Tensor]]:
    """Contiguous copies on the CPU that share memory with nothing (safetensors asks for both)."""

    def copy(tensor: Tensor) -> Tensor:
        if tensor.is_cuda:  # into pinned memory; all are sent off before anyone waits for one
            return tensor.contiguous().to("cpu", non_blocking=True)
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)

    copies = {
        group: {name: copy(tensor.detach()) for name, tensor in named.items()}
        for group, named in tensors.items()
    }
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copies


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


def load(
    folder: Path, like: Groups, recipe_hash: str, say: Callable[[str], None] = print
) -> LoadedCheckpoint | None:
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


def _read(folder: Path, like: Groups, recipe_hash: str) -> LoadedCheckpoint:
    manifest = checkpoint_folder.verify(folder)
    if manifest["recipe_hash"] != recipe_hash:
        raise UserError(
            f"{folder} was made by another recipe ({manifest['recipe_hash']}, now {recipe_hash}). "
            "On resume only epochs, workers, logging and the number of processes may change; "
            "start a new run."
        )
    tensors = {
        Path(name).stem: checkpoint_folder.read_tensors(folder / name)
        for name in manifest["files"]
        if name.endswith(".safetensors")
    }
    for group, named in like.items():
        if group not in tensors:
            raise UserError(f"{folder} has no '{group}', which this recipe needs.")
        _compare(folder / f"{group}.safetensors", tensors[group], named)
    if bad := _non_finite(tensors):
        raise Damaged(f"{bad} holds NaN or infinity")
    state = unpack(checkpoint_folder.read_json(folder / "state.json"))
    return LoadedCheckpoint(manifest["step"], tensors, state, folder, manifest["best"])


def _compare(path: Path, there: Tensors, here: Tensors) -> None:
    for name in sorted(there.keys() | here.keys()):
        saved, ours = (
            f"{list(group[name].shape)} {str(group[name].dtype).removeprefix('torch.')}"
            if name in group
            else "absent"
            for group in (there, here)
        )
        if saved != ours:
            raise UserError(
                f"{path} was written for another model: '{name}' is {saved} there and {ours} here."
            )

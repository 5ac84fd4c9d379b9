"""Checkpoints: what is saved and when, what may be resumed, and what happens when either fails.

Only tensors and JSON types are stored, so reading a checkpoint can run no code. checkpoint_folder
writes and verifies one; `<run>/ckpt/best.json` names the best of them.
"""

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
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

Groups = Mapping[str, Mapping[str, Tensor]]  # by file (model, ema, optim) and name

# A full disk is a RuntimeError in torch, a SafetensorError in safetensors, an OSError elsewhere.
FAILURES = (OSError, RuntimeError, SafetensorError, StorageError)
PATIENCE = 3  # failed saves in a row that end the training


class LoadedCheckpoint(NamedTuple):
    """A checkpoint in memory, on the CPU."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: Any
    folder: Path


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
        self.saving: Future | None = None

    def save(self, step: int, tensors: Groups, state: Any, is_best: bool = False) -> None:
        """Save `tensors` ({"model": {name: tensor}, …}) and `state` (JSON types and tuples)."""
        if not self.write:
            return
        self.wait()
        job = (step, _copies(tensors), json.dumps(pack(state), allow_nan=False), is_best)
        thread = ThreadPoolExecutor(1, "checkpoint")
        self.saving = thread.submit(self._write, *job)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return when no save is under way; count and report a failed one.

        Raises NonFiniteError if a tensor held NaN or infinity, StorageError as the class says.
        """
        if self.saving is None:
            return
        error, self.saving = self.saving.exception(), None
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
        return self.saving is not None and not self.saving.done()

    def finish(self) -> None:
        """Wait for the last save of a training; StorageError if it failed."""
        self.wait()
        if self.failures:
            raise StorageError(self.reason)

    def load(self) -> LoadedCheckpoint | None:
        """The newest whole checkpoint, which we will not delete; None if there never was one.

        A damaged one is reported and passed over. UserError if all are damaged, or if the newest
        whole one belongs to another recipe.
        """
        self.wait()
        found = checkpoint_folder.candidates(self.folder)
        for path in found:
            try:
                manifest = checkpoint_folder.verify(path)
            except Damaged as error:
                self.say(f"checkpoint {path} is damaged ({error}); looking at the one before it")
            else:
                return self._read(path, manifest)
        if found:
            raise UserError(
                f"{self.folder}: all {len(found)} checkpoints are damaged. Put one back from a "
                "copy, or start a new run."
            )
        return None

    def _read(self, folder: Path, manifest: dict[str, Any]) -> LoadedCheckpoint:
        theirs = manifest["recipe_hash"]
        if theirs != self.recipe_hash:
            raise UserError(
                f"{folder} was made by another recipe ({theirs}, now {self.recipe_hash}). On "
                "resume only epochs, workers, logging and the number of processes may change; "
                "start a new run."
            )
        names = [Path(name) for name in manifest["files"] if name.endswith(".safetensors")]
        tensors = {name.stem: safetensors.load((folder / name).read_bytes()) for name in names}
        state = unpack(json.loads((folder / "state.json").read_bytes()))
        self.source, self.best = folder.name, manifest["best"]
        # A crash between the rename and best.json leaves best.json one behind.
        if self.write and self.best and (self.folder / self.best).is_dir():
            write_json(self.folder / "best.json", {"folder": self.best})
        return LoadedCheckpoint(manifest["step"], tensors, state, folder)

    def _write(self, step: int, tensors: Groups, state: str, is_best: bool) -> None:
        for group, named in tensors.items():
            for name, tensor in named.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise NonFiniteError(
                        f"step {step}: {group} '{name}' holds NaN or infinity, so it is not saved."
                    )
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
        files = ((f"{key}.safetensors", safetensors.save(dict(g))) for key, g in tensors.items())
        files = chain(files, [("state.json", state.encode())])
        checkpoint_folder.write_folder(self.folder / name, files, facts)
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

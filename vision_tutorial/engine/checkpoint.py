"""Checkpoints: written whole or not at all, verified, resumed from, read for an evaluation.

    <run>/ckpt/step-00001200/  model.safetensors ema.safetensors … state.json MANIFEST.json

Only tensors and JSON types are stored, so reading one can run no code, and nothing is read that the
manifest does not vouch for. `<run>/ckpt/best.json` names the best.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from ..core import weights
from ..core.atomic import (
    free_space,
    new_folder,
    read_json,
    regular,
    sync_folder,
    write_bytes,
    write_json,
)
from ..core.errors import NonFiniteError, StorageError, UserError, short
from ..recipe.fields import differing, other_recipe
from ..recipe.loading import refreshed
from .optimizer_state import pack, unpack

Groups = Mapping[str, Mapping[str, Tensor]]  # by file (model, ema, optim) and name
Loaded = tuple[Path, dict[str, dict[str, Tensor]], Any]  # the folder, its tensors, its state

FORMAT = 1
MANIFEST, STATE = "MANIFEST.json", "state.json"
FOLDER = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # .1: that step was saved once before
# A full disk is a RuntimeError in torch, a SafetensorError in safetensors, an OSError elsewhere.
FAILURES = (OSError, RuntimeError, SafetensorError, StorageError)
PATIENCE = 3  # failed saves in a row that end the training


class Damaged(Exception):
    """A checkpoint, or a file of it, that is not what was written."""


class _Manifest(BaseModel):
    """What a manifest must have; names lead out of the folder in none."""

    model_config = ConfigDict(strict=True)

    step: Annotated[int, Field(ge=0, lt=2**53)]
    recipe_hash: str
    best: Annotated[str, Field(pattern=rf"^{FOLDER.pattern}$")] | None
    files: dict[Annotated[str, Field(pattern=r"^(\w+\.safetensors|state\.json)$")], dict[str, Any]]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if STATE not in self.files or "model.safetensors" not in self.files:
            raise ValueError("the model or the state is missing")
        return self


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Only the process that holds the run's lock writes; with `write` false `save` does nothing.
    `save` copies the tensors and returns; a thread writes them. A save that fails is reported at
    the next `save` or `wait`, and the training goes on; three in a row, or a failed last one, raise
    StorageError.
    """

    def __init__(
        self,
        run: Path,
        recipe_hash: str,
        *,
        recipe: Mapping[str, Any] | None = None,
        also: Collection[str] = (),
        keep: int = 2,
        say: Callable[[str], None] = print,
        write: bool = True,
    ):
        """recipe: plain, kept to say what another one differs in. also: hashes of the same recipe
        by earlier versions, which kept none."""
        self.folder = Path(run) / "ckpt"
        self.recipe_hash, self.keep, self.write = recipe_hash, keep, write
        self.recipe, self.also = recipe, set(also)
        self.say = say if write else lambda line: None
        self.source: str | None = None  # what was resumed from, kept for as long as we run
        self.best: str | None = None
        self.failures, self.reason = 0, ""
        self.saving: Future | None = None

    def save(self, step: int, tensors: Groups, state: Any, is_best: bool = False) -> None:
        """Save `tensors` ({"model": {name: tensor}, …}) and `state` (JSON types and tuples)."""
        if not self.write:
            return
        self.wait()
        text = json.dumps(pack(state), allow_nan=False).encode()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self.saving = thread.submit(self._write, step, _copies(tensors), text, is_best)
        thread.shutdown(wait=False)

    def wait(self, last: bool = False) -> None:
        """Return when no save is under way; count and report a failed one.

        last: of a training; it must succeed. Raises NonFiniteError if a tensor held NaN or
        infinity, StorageError as the class says.
        """
        if self.saving is not None:
            error, self.saving = self.saving.exception(), None
            if error and not isinstance(error, FAILURES):
                raise error
            self.failures = self.failures + 1 if error else 0
            if error:
                self.reason = f"a checkpoint could not be saved in {self.folder}: {error}"
                self.say(f"{self.reason} (failure {self.failures} of {PATIENCE} in a row)")
        if self.failures >= (1 if last else PATIENCE):
            raise StorageError(
                f"{self.reason.rstrip('.')}. Make room there; then go on with the run."
            )

    @property
    def busy(self) -> bool:
        """Whether a save is under way; `wait` returns at once if not."""
        return self.saving is not None and not self.saving.done()

    def load(self, accept: Callable[..., Any] = lambda *given: given[-1]) -> Loaded | None:
        """The newest whole checkpoint, which we will not delete; None if there never was one.

        A damaged one is reported and passed over; so is one of which `accept`, given folder,
        tensors and state, raises ValueError or the like; what it returns is the state. UserError if
        all are damaged, or if the newest whole one belongs to another recipe.
        """
        self.wait()
        found = candidates(self.folder)
        for folder in found:
            try:
                manifest = verify(folder)
                self._check_recipe(folder, manifest)
                tensors, state = _contents(folder, manifest, accept)
            except Damaged as error:
                self.say(f"checkpoint {folder} is damaged ({error}); looking at the one before it")
                continue
            self.source, self.best = folder.name, manifest["best"]
            # A crash between the rename and best.json leaves best.json one behind.
            if self.write and self.best and (self.folder / self.best).is_dir():
                write_json(self.folder / "best.json", {"folder": self.best})
            return folder, tensors, state
        if found:
            raise UserError(
                f"{self.folder}: no checkpoint of {len(found)} is whole. Put one back from a "
                "copy, or start a new run."
            )
        return None

    def _check_recipe(self, folder: Path, manifest: dict[str, Any]) -> None:
        """UserError for a checkpoint of another recipe: what differs."""
        theirs, stored = manifest["recipe_hash"], manifest.get("recipe")
        found = [f"{theirs}, now {self.recipe_hash}"]
        if theirs == self.recipe_hash or not stored and theirs in self.also:
            return
        # a later version may have more keys, and so another hash
        if isinstance(stored, dict) and self.recipe:
            with suppress(UserError, RecursionError):
                found = differing(refreshed(stored, folder.parents[1] / "recipe.yaml"), self.recipe)
        if found:
            raise other_recipe(folder, found)

    def _write(self, step: int, tensors: Groups, state: bytes, is_best: bool) -> None:
        for group, named in tensors.items():
            for name, tensor in named.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise NonFiniteError(
                        f"step {step}: {group} '{name}' holds NaN or infinity, so it is not saved."
                    )
        if not self.folder.is_dir():
            self.folder.mkdir()
            sync_folder(self.folder.parent)
        # half written or half deleted when a process died; .tmp-: by an older version
        for leftover in chain(self.folder.glob(".step-*"), self.folder.glob(".tmp-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        need = sum(t.nbytes for named in tensors.values() for t in named.values()) + len(state)
        if (free := free_space(self.folder)) < need * 1.01 + 2**20:
            raise OSError(f"needs {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free")
        name, attempt = f"step-{step:08d}", 0
        while (self.folder / name).exists():  # a save never has to replace a folder
            attempt += 1
            name = f"step-{step:08d}.{attempt}"
        facts = {"step": step, "recipe_hash": self.recipe_hash, "recipe": self.recipe}
        facts["best"] = best = name if is_best else self.best
        with new_folder(self.folder / name) as work:
            files = {}
            groups = ((f"{k}.safetensors", safetensors.save(dict(g))) for k, g in tensors.items())
            for file, data in chain(groups, [(STATE, state)]):
                write_bytes(work / file, data)
                digest = hashlib.sha256(data).hexdigest()
                files[file] = {"bytes": len(data), "sha256": digest}
            write_bytes(work / MANIFEST, _seal({"format": FORMAT, **facts, "files": files}))
        self.best = best
        if is_best:
            write_json(self.folder / "best.json", {"folder": name})
        self._prune(name)

    def _prune(self, current: str) -> None:
        """Delete all but the current checkpoint, the `keep - 1` steps before it, and the best.

        What is newer than the current step was damaged, or training had resumed from it.
        """
        found = candidates(self.folder)
        newest: dict[int, str] = {}  # of several saves of a step
        for path in found:
            newest.setdefault(step_of(path), path.name)
        now = step_of(self.folder / current)
        before = [name for step, name in newest.items() if step < now][: self.keep - 1]
        for path in found:
            if path.name not in {current, *before, self.best, self.source}:
                with suppress(OSError):  # left to the next save
                    # gone from its name before anything is missing
                    shutil.rmtree(path.rename(path.with_name(f".{path.name}")))


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


def _seal(manifest: dict[str, Any]) -> bytes:
    """The manifest as text with its own digest, so that no byte of it can change unnoticed."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2).encode()


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written; else raises Damaged."""
    name = MANIFEST
    try:
        text = regular(folder / MANIFEST).read_bytes()
        content = json.loads(text)
        del content["sha256"]
        if _seal(content) != text:
            raise ValueError(name)
        if content["format"] != FORMAT:
            problem = f"not of format {FORMAT}. Read it with the version it is of"
            raise UserError(f"{folder} is {problem}.")
        _Manifest.model_validate(content)
        for name, expected in content["files"].items():
            with regular(folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected["sha256"]:
                raise ValueError(name)
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{name} is not as it was written") from error
    return content


def _contents(folder: Path, manifest: Mapping[str, Any], accept: Callable[..., Any]) -> tuple:
    """The tensors by file and name, and what `accept` makes of them and the state; else Damaged.

    The digests vouch for what was written, not for who wrote it.
    """
    paths = [folder / name for name in manifest["files"] if name != STATE]
    try:
        tensors = {path.stem: safetensors.load(path.read_bytes()) for path in paths}
        state = unpack(json.loads((folder / STATE).read_bytes()))
        return tensors, accept(folder, tensors, state)
    except (UserError, torch.OutOfMemoryError):
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        said = short(" ".join(str(error).split()), 200)
        raise Damaged(f"it holds what no training saves: {said}") from error


def candidates(folder: Path) -> list[Path]:
    """The checkpoints in a `ckpt` folder, newest first, damaged ones included."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if FOLDER.fullmatch(p.name)), key=_order, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint folder."""
    return _order(path)[0]


def _order(path: Path) -> tuple[int, int]:
    """The step of a checkpoint folder, and how often that step was saved before."""
    step, attempt = FOLDER.fullmatch(path.name).groups()
    return int(step), int(attempt or 0)


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
        is_ours = path.suffix == ".safetensors"
        return safetensors.load_file(path) if is_ours else weights.read(path)
    except (Damaged, SafetensorError) as error:
        raise UserError(f"{path} cannot be used: {error}. Name another checkpoint.") from error


def put_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights whose names and shapes must be the network's."""
    try:
        network.load_state_dict(weights.without_prefix(tensors, network.state_dict()))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the weights of this recipe's model: {reason}") from error

"""Everything that knows of more than one process, or of accelerate, is in this file.

accelerate places, wraps (DDP), casts (autocast) and scales (fp16). It does not touch the data:
`prepare(dataloader)` pads and counts samples twice, so who takes what is decided in data/loader.py.
"""

import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ..core.errors import MemoryExhausted, PeerLost, UserError
from ..core.processes import usable_cores
from ..core.sources import ArraySource, Source

T = TypeVar("T")
TIMEOUT = timedelta(seconds=120)  # a dead rank shows at once; this is for one that hangs
PATIENCE = 20  # seconds between signs of life of a process that others wait for
CPU_TIMEOUT = timedelta(seconds=900)  # one ResNet-50 step of 512 images takes minutes on a laptop
ARRAYS = ("images", "targets", "masks")
FACTS = ("name", "classes", "known_digest", "dense", "keys")


class Distributed:
    """The processes of one training: who am I, where do I compute, what do the others say."""

    def __init__(
        self, precision: str = "fp32", threads: int | None = None, deterministic: bool = True
    ):
        self.rank, self.world, self.local_world = torchrun_environment()
        self.threads = threads or max(1, len(usable_cores()) // self.local_world)
        torch.set_num_threads(self.threads)
        on_cpu = not torch.cuda.is_available() and self.world > 1
        self.precision, self.notice = usable_precision(
            precision, torch.cuda.is_available(), has_amx()
        )
        if torch.cuda.is_available() and self.local_world > torch.cuda.device_count():
            raise UserError(
                f"{self.local_world} processes for {torch.cuda.device_count()} GPUs; "
                f"start with --nproc {torch.cuda.device_count()}."
            )
        if torch.cuda.is_available():
            _choose_algorithms(deterministic)
        timeout = CPU_TIMEOUT if not torch.cuda.is_available() else TIMEOUT
        self.accelerator = Accelerator(
            cpu=on_cpu,  # without it, N processes on CPU silently train N separate models
            mixed_precision={"fp32": "no"}.get(self.precision, self.precision),
            # whatever ACCELERATE_… in the environment says
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timeout),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=True, broadcast_buffers=False
                ),
            ],
        )
        assert self.accelerator.num_processes == self.world, "accelerate did not join the others"
        torch.set_num_threads(self.threads)  # accelerate may have set its own
        self.device = self.accelerator.device
        self.scaler = self.accelerator.scaler

    @property
    def main(self) -> bool:
        """Whether this process draws, writes and talks."""
        return self.rank == 0

    def wrap(self, model: nn.Module, sync_bn: bool = False, replicate: bool = True) -> nn.Module:
        """Onto the device, under autocast, and into DDP where there are several processes."""
        if sync_bn and self.world > 1:
            if self.device.type != "cuda":
                raise UserError("sync_bn: true needs GPUs; on CPU use shards, or sync_bn: false.")
            model = convert_sync_batchnorm(model)  # torch's own drops timm's activations
        with warnings.catch_warnings():
            # torch 2.15 has another word for broadcast_buffers, which older ones do not know
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            prepared = self.accelerator.prepare_model(model, evaluation_mode=not replicate)
        return prepared if replicate else model

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Gradients of `loss`, scaled where fp16 needs it."""
        self.accelerator.backward(loss, **options)

    def unsynchronised(self, model: nn.Module, when: bool) -> Any:
        """A context in which backward leaves gradients where they are, if `when`."""
        return self.accelerator.no_sync(model) if when and self.world > 1 else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on every process."""
        if self.world == 1:
            return values
        moved = values.to(self.device)
        torch.distributed.all_reduce(moved)
        return moved.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.world == 1 else self.sum(torch.tensor([float(flag)])).item() > 0

    def broadcast_object(self, value: Any) -> Any:
        """The value that rank 0 holds."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all processes, on every process."""
        box = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(box, value)
        return box

    def run_together(self, work: Callable[[], T]) -> T:
        """What `work` gives, once it is done on every process; it may outlast the timeout.

        An error of one process is raised by all of them, and printed by the one.
        """
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        while self.any(thread.is_alive()):
            thread.join(PATIENCE)
        errors = self.all_gather_object(_error_for_peers(failed[0], self.rank) if failed else None)
        if failed:
            raise failed[0]
        for error in filter(None, errors):
            error.said = True
            raise error
        return done[0]

    def share_dataset(self, read: Callable[[], Source]) -> Source:
        """The source that `read` gives: read by the first process of each machine, and held once
        there; the others map what it read, or read for themselves what lies in files."""
        if self.world == 1:
            return read()
        local = os.environ.get("LOCAL_RANK", str(self.rank % self.local_world))
        leader = self.rank - int(local)  # the first process of this machine
        first = self.rank == leader
        with sharing() as shared:
            own = self.run_together(lambda: read() if first else None)
            several = first and self.local_world > 1
            shared = self.run_together(lambda: shared.publish(own) if several else shared)
            everyones = self.all_gather_object(shared)
            notices = {self.notice, *(other.notice for other in everyones)} - {None}
            self.notice = " ".join(sorted(notices)) or None
            mine = everyones[leader]
            return self.run_together(lambda: mine.attach() or own or read())

    def broadcast(self, values: Tensor, source: int) -> Tensor:
        """`values` of process `source`, in place."""
        if self.world > 1:
            torch.distributed.broadcast(values, src=source)
        return values

    def seed(self, number: int) -> None:
        """Seed the generators that a network draws from, here and on the device.

        torch.manual_seed does so for every kind of device there is, and notes a traceback for each.
        """
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        elif self.device.type != "cpu":
            torch.manual_seed(number)

    @contextmanager
    def peers(self) -> Iterator[None]:
        """Turn the backends' pages of text about a process that is gone into one line."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MemoryExhausted(
                f"out of memory on {self.device}: {str(error).splitlines()[0][:200]} Lower "
                "micro_batch or eval_batch_size, or use precision: bf16."
            ) from error
        except RuntimeError as error:
            text = str(error)
            if "DefaultCPUAllocator" in text:
                raise MemoryExhausted(
                    f"out of memory on the CPU: {text.splitlines()[0][:200]}. Lower micro_batch, "
                    "eval_batch_size or the size of images."
                ) from error
            if self.world > 1 and any(word in text for word in ("gloo", "NCCL", "process group")):
                raise PeerLost(
                    f"process {self.rank} lost the others: one of the {self.world} ended or hung; "
                    f"look for its own message. ({text.splitlines()[0][:160]})"
                ) from error
            raise

    def close(self) -> None:
        """Leave the group, so that nobody waits for us; a notebook may then train again."""
        self.accelerator.free_memory()
        self.accelerator.state._reset_state(reset_partial_state=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _error_for_peers(error: BaseException, rank: int) -> UserError:
    if isinstance(error, UserError):
        return error
    return PeerLost(f"process {rank} failed: {type(error).__name__}: {error}")


def torchrun_environment() -> tuple[int, int, int]:
    """(rank, processes, processes on this machine) as torchrun set them; (0, 1, 1) without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if name in os.environ}
    wrong = [name for name, value in given.items() if not value.isdecimal()]
    if not wrong:
        numbers = {name: int(value) for name, value in given.items()}
        rank, world = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
        together = world == 1 or {"RANK", "MASTER_PORT"} <= given.keys()
        if rank < world and together:
            return rank, world, numbers.get("LOCAL_WORLD_SIZE", world)
    shown = " ".join(f"{name}={value}" for name, value in given.items())
    raise UserError(
        f"the environment says {shown}, which no launcher would set; unset these, or start with "
        "torchrun --nproc N."
    )


def _choose_algorithms(deterministic: bool) -> None:
    """On a GPU: those that give equal bits each time, or those that were fastest when tried.

    An operation that only has the other kind goes on; torch warns of it, once.
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nobody reads what nobody wrote


def usable_precision(requested: str, cuda: bool, amx: bool) -> tuple[str, str | None]:
    """What this machine can compute in, and what to say if it is not what was asked."""
    half_here = "bf16" if amx else "fp32"
    if requested == "auto":
        if cuda:
            half_here = "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
        return half_here, None
    if requested == "fp16" and not cuda:
        return half_here, f"precision: fp16 needs a GPU; this machine computes in {half_here}."
    return requested, None


def has_amx() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware; without, bf16 is slower."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask and ask())


@dataclass
class SharedDataset:
    """One copy of a data set on a machine, and what its first process sends of it to the others.

    The first process writes the arrays to files, the others map them, and then the files are
    deleted: the memory lives as long as a process maps it, and a killed process leaves nothing
    behind. Sets that lie in files anyway (images, arrays folders) need none of this.
    """

    folder: Path | None = None  # None: nothing is shared
    facts: dict[str, Any] = field(default_factory=dict)
    notice: str | None = None

    def publish(self, source: Source | None) -> "SharedDataset":
        """Write the arrays of a source in memory, if it is one and there is room."""
        if not isinstance(source, ArraySource) or isinstance(source.images, np.memmap):
            return self
        arrays = {name: getattr(source, name) for name in ARRAYS}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="vision-tutorial-"))
            for name, array in arrays.items():
                np.save(self.folder / f"{name}.npy", array)
        except OSError as error:
            size = sum(array.nbytes for array in arrays.values()) / 2**20
            self.notice = (
                f"each process holds its own copy of the data set ({size:,.0f} MiB): it cannot be "
                f"shared through {tempfile.gettempdir()} ({error.strerror or error}); TMPDIR may "
                "name a folder with room."
            )
            return self
        self.facts = {name: getattr(source, name) for name in FACTS}
        return self

    def attach(self) -> ArraySource | None:
        """The source that was published, mapped; None if there is none or it is out of reach."""
        if not self.facts:
            return None
        paths = {name: self.folder / f"{name}.npy" for name in ARRAYS}
        try:
            mapped = {n: np.load(p, mmap_mode="r") for n, p in paths.items() if p.exists()}
            targets = np.array(mapped.pop("targets"))  # few and often asked for
            return ArraySource(targets=targets, **mapped, **self.facts)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # another machine's, or this process has a temporary folder of its own


@contextmanager
def sharing() -> Iterator[SharedDataset]:
    """A data set to publish, whose files are deleted at the end."""
    shared = SharedDataset()
    try:
        yield shared
    finally:
        if shared.folder:
            shutil.rmtree(shared.folder, ignore_errors=True)

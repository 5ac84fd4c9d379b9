"""Everything that knows of more than one process, or of accelerate, is in this file.

accelerate places, wraps (DDP), casts (autocast) and scales (fp16). It does not touch the data:
`prepare(dataloader)` pads and counts samples twice, so who takes what is decided in data/loader.py.
"""

import errno
import math
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ..core.errors import ExitCode, MemoryExhausted, PeerLost, UserError, counted
from ..core.processes import usable_cores
from ..core.sources import ArraySource, Source
from ..recipe.fields import Ddp
from .device_errors import is_lost_peer, is_out_of_memory, machine_error
from .launchers import ignore_accelerate, torchrun_environment

T = TypeVar("T")
TIMEOUT = timedelta(seconds=120)  # a dead rank shows at once; this is for one that hangs
PATIENCE = 20  # seconds between signs of life of a process that others wait for
CPU_TIMEOUT = timedelta(seconds=900)  # one ResNet-50 step of 512 images takes minutes on a laptop
MEETING = timedelta(seconds=45)  # processes of one machine start together, or one of them is gone
_ACCELERATES = {"fp32": "no"}  # its word for it
SPEAKING = 2  # seconds that processes which fail stay for the one that says why


class Distributed:
    """The processes of one training: who am I, where do I compute, what do the others say."""

    def __init__(
        self,
        precision: str = "fp32",
        threads: int | None = None,
        deterministic: bool = True,
        shards: int | None = None,
        ddp: Ddp | None = None,
    ):
        self.rank, self.world, self.local_world = torchrun_environment()
        self._said: bool | None = None  # whether another process says what this one failed at
        # with shards as many for any number of processes: their number decides last bits, too
        share = max(1, len(usable_cores()) // (shards or self.local_world))
        self.threads = threads or min(share, self._most_threads())
        torch.set_num_threads(self.threads)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        # AMX multiplies bf16 matrices in hardware; without, bf16 is slower
        amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
        self.precision, notice = usable_precision(precision, gpus > 0, amx)
        self.notice = " ".join(filter(None, (notice, ignore_accelerate()))) or None
        if gpus and self.local_world > gpus:
            raise UserError(
                f"{self.local_world} processes for {counted(gpus, 'GPU')}; "
                f"start with --nproc {gpus}."
            )
        if gpus:
            # equal bits each time, or what was fastest when tried; an operation that only has the
            # other kind goes on, with a warning: docs.pytorch.org/docs/stable/notes/randomness.html
            if deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the first product
            torch.backends.cudnn.deterministic = deterministic
            torch.backends.cudnn.benchmark = not deterministic
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # nobody reads it
        if not os.environ.get("OMP_NUM_THREADS", "1").isdecimal():  # 4,2; accelerate wants a number
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if self.world == 1:
            os.environ.pop("LOCAL_RANK", None)  # by which accelerate would look for others
        meeting = MEETING if self.local_world == self.world else CPU_TIMEOUT
        with self.peers(), _meeting(self.rank, meeting) if self.world > 1 else nullcontext():
            self.accelerator = Accelerator(
                # without it, N processes on CPU silently train N separate models
                cpu=not gpus and self.world > 1,
                mixed_precision=_ACCELERATES.get(self.precision, self.precision),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=meeting), _ddp(ddp or Ddp())],
            )
        if self.world > 1:  # all are there; what they do may take longer
            group, limit = torch.distributed, TIMEOUT if gpus else CPU_TIMEOUT
            if hasattr(group, "set_timeout"):
                group.set_timeout(limit)
            else:  # before torch 2.15
                group.distributed_c10d._set_pg_timeout(limit)
        assert self.accelerator.num_processes == self.world, "accelerate did not join the others"
        torch.set_num_threads(self.threads)  # accelerate may have set its own
        self.device = self.accelerator.device
        self.scaler = self.accelerator.scaler

    def _most_threads(self) -> float:
        """OMP_NUM_THREADS, of a list its first number; of several processes a 1 says nothing, since
        torchrun and accelerate set that where nobody has set anything."""
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        most = int(first) if first.isdecimal() else 0
        return most if most > (self.local_world > 1) else math.inf

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
        return broadcast_object_list([value])[0]

    def run_together(self, work: Callable[[], T]) -> T:
        """What `work` gives, once it is done on every process; it may outlast the timeout.

        An error of one process is raised by all of them, and printed by the one.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while self.any(not wait([future], PATIENCE).done):
            pass
        mine = error = future.exception()
        if error and not isinstance(error, UserError):
            mine = PeerLost(f"process {self.rank} failed: {type(error).__name__}: {error}")
        errors = [error for error in gather_object([mine]) if error]
        if errors and not mine:
            errors[0].said = True
            raise errors[0]
        return future.result()

    def share_dataset(self, read: Callable[[], Source]) -> Source:
        """The source that `read` gives: read by the first process of each machine, and held once
        there; the others map what it read, or read for themselves what lies in files.

        The first process writes the arrays to files, the others map them, and then the files are
        deleted: the memory lives as long as a process maps it, and a killed one leaves nothing.
        """
        if self.world == 1:
            return read()
        local = int(os.environ.get("LOCAL_RANK", self.rank % self.local_world))
        with ExitStack() as folders:

            def read_first() -> tuple[Source | None, bytes | str | None]:
                own = None if local else read()
                return own, _publish(own, folders) if own and self.local_world > 1 else None

            own, sent = self.run_together(read_first)
            everyones = gather_object([sent])
            notices = {self.notice, *(x for x in everyones if isinstance(x, str))} - {None}
            self.notice = " ".join(sorted(notices)) or None

            def attach() -> Source:
                with suppress(OSError):  # another machine's files, or this process cannot see them
                    if isinstance(everyones[self.rank - local], bytes):
                        return pickle.loads(everyones[self.rank - local])
                return own or read()

            return self.run_together(attach)

    def broadcast(self, values: Tensor, source: int) -> Tensor:
        """`values` of process `source`, in place."""
        if self.world > 1:
            torch.distributed.broadcast(values, src=source)
        return values

    def seed(self, number: int) -> None:
        """Seed the generators that a network draws from, here and on the device. (torch.manual_seed
        does so for every kind of device there is, and notes a traceback for each.)"""
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        elif self.device.type != "cpu":
            torch.manual_seed(number)

    @contextmanager
    def peers(self) -> Iterator[None]:
        """Turn a backend's page of text about a process that is gone into one line. An error that
        several processes meet is printed by the first of them."""
        try:
            yield
        except (UserError, OSError, RuntimeError) as error:
            made = self._in_words(error)
            if made is None:
                raise
            self._said = made.said = self._is_said(made.said) if self._said is None else self._said
            raise made from (None if made is error else error)

    def _in_words(self, error: Exception) -> UserError | None:
        """An error that a person can mend, as one; None for another."""
        text = str(error)
        if isinstance(error, UserError):
            return error
        if is_out_of_memory(error):
            said = text.splitlines()[0][:200].rstrip(". ")
            return MemoryExhausted(
                f"out of memory on {self.device}: {said}. Lower micro_batch, eval_batch_size or "
                "the size of images, or use precision: bf16."
            )
        if isinstance(error, OSError):
            return UserError(loader_failure(text)) if error.errno == errno.EMFILE else None
        if any(word in text for word in ("DataLoader ", "ancdata", "with the workers")):
            return UserError(loader_failure(text))
        if self.world > 1 and is_lost_peer(error):
            return PeerLost(
                f"process {self.rank} lost the others: one of the {self.world} ended, hung or "
                f"never came; look for its own message. ({text.splitlines()[0][:160]})"
            )
        return machine_error(error)

    def _is_said(self, by_another: bool) -> bool:
        """Whether another process says what went wrong, which failed first or was known to. Who is
        silent stays a while: torchrun ends all processes when one of them has ended."""
        silent, group = by_another, torch.distributed
        with suppress(RuntimeError):  # who keeps the counts is gone
            if self.world > 1 and group.is_initialized():
                store = group.distributed_c10d._get_default_store()
                store.set_timeout(timedelta(seconds=SPEAKING))
                silent = by_another or store.add("speaking", 1) > 1
                failed, end = store.add("failed", 1), time.monotonic() + SPEAKING
                while time.monotonic() < end and (silent or (self.main and failed < self.world)):
                    time.sleep(0.05)
                    if self.main:  # it keeps the counts; others see pages of text if it is gone
                        failed = store.add("failed", 0)
        return silent

    def close(self) -> None:
        """Leave the group, so that nobody waits for us; a notebook may then train again."""
        self.accelerator.free_memory()
        self.accelerator.state._reset_state(reset_partial_state=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def loader_failure(text: str) -> str:
    """One line with the cure, of torch's page about a data loader whose process died or hung."""
    if hasattr(signal, "SIGCHLD"):  # torch's handler raises anew for each worker that ends
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = re.search(r"with exit code (\d+)", text)
    reason = re.sub(r".*\) (is )?|\[.*\] ", "", text.splitlines()[0].partition(". ")[0])
    if code and int(code[1]) > 1:
        reason = os.strerror(int(code[1]))
    return (
        f"data loading: a loader process could not go on ({reason}). Set fewer workers, or "
        "workers=0; if files ran out: ulimit -n 4096; if shared memory did, in a container: "
        "--shm-size=8g; a process that was killed may have had too little memory."
    )


def _ddp(options: Ddp) -> DistributedDataParallelKwargs:
    hook = _ACCELERATES.get(options.gradients, options.gradients)
    return DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        static_graph=options.static_graph,
        comm_hook=DDPCommunicationHookType(hook),
    )


@contextmanager
def _meeting(rank: int, limit: timedelta) -> Iterator[None]:
    """End this process if the others are not met in time. PyTorch's client of a store whose process
    was killed begins again after its limit, and cannot be interrupted."""

    def end() -> None:
        text = f"process {rank} waited {limit.seconds} s for the others: one ended or never came"
        print(f"error: {text}; look for its own message.", file=sys.stderr, flush=True)
        os._exit(ExitCode.PEER_LOST)

    timer = threading.Timer(limit.total_seconds() + SPEAKING, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def usable_precision(requested: str, cuda: bool, amx: bool) -> tuple[str, str | None]:
    """What this machine can compute in, and what to say if it is not what was asked."""
    if requested == "auto" and cuda:
        return ("bf16" if torch.cuda.is_bf16_supported(False) else "fp16"), None
    here = "bf16" if amx else "fp32"
    if requested == "fp16" and not cuda:
        return here, f"precision: fp16 needs a GPU; this machine computes in {here}."
    return (here if requested == "auto" else requested), None


def _publish(source: Source, folders: ExitStack) -> bytes | str | None:
    """Write the arrays of a source that is in memory: itself, which maps them where it is read, or,
    where there is no room, what to say."""
    if not isinstance(source, ArraySource) or isinstance(source.images, np.memmap):
        return None
    arrays = {name: getattr(source, name) for name in ("images", "masks")}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    options = {"prefix": "vision-tutorial-", "ignore_cleanup_errors": True}
    try:
        folder = Path(folders.enter_context(tempfile.TemporaryDirectory(**options)))
        for name, array in arrays.items():
            np.save(folder / name, array)
        mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}
        return pickle.dumps(replace(source, **mapped))
    except OSError as error:
        size = sum(array.nbytes for array in arrays.values()) / 2**20
        return (
            f"each process holds its own copy of the data set ({size:,.0f} MiB): it cannot be "
            f"shared through {tempfile.gettempdir()} ({error.strerror or error}); TMPDIR may "
            "name a folder with room."
        )

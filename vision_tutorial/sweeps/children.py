"""Trainings as processes that we start: each on its own GPUs and cores, and none outlives us.

A child is in a session of its own, so that Ctrl-C asks it to stop once, through us.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from ..core.errors import UserError, counted
from ..core.processes import environment, follow_parent, last_line, usable_cores
from ..core.stopping import StopSignal
from ..runs.fingerprint import output

Child = subprocess.Popen[bytes]


@dataclass(frozen=True)
class DeviceSlot:
    """What one child computes on. gpus: for CUDA_VISIBLE_DEVICES; () leaves it as it is."""

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


def device_slots(jobs: int | None, processes: int = 1) -> list[DeviceSlot]:
    """Slots for `jobs` children at a time, of so many processes each; None: one a GPU, or one.

    The cores are divided among them; so are the GPUs, in turn where there are more jobs than GPUs.
    """
    gpus, cores = visible_gpus(), usable_cores()
    if gpus and processes > len(gpus):
        raise UserError(
            f"--nproc {processes}: {counted(len(gpus), 'GPU')} can be seen. Ask for fewer."
        )
    jobs = jobs or max(1, len(gpus) // processes)
    made = []
    for job in range(jobs):
        own = [gpus[(job * processes + i) % len(gpus)] for i in range(processes)] if gpus else []
        first, end = job * len(cores) // jobs, (job + 1) * len(cores) // jobs
        made.append(DeviceSlot(tuple(own), tuple(cores[first : max(end, first + 1)])))
    return made


def visible_gpus() -> list[str]:
    """The GPUs that a training would see, by number or name, without torch; [] where none is."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    lines = (output("nvidia-smi", "-L") or "").splitlines()
    return [str(n) for n in range(sum(line.startswith("GPU ") for line in lines))]


def training(arguments: Sequence[str], processes: int = 1) -> list[str]:
    """The command that trains with these arguments of `train`, on so many processes."""
    module = ["-m", "vision_tutorial.train", *arguments]
    if processes == 1:
        return [sys.executable, *module]
    launcher = str(Path(__file__).parents[1] / "torchrun_nproc.py")
    return [sys.executable, launcher, "--nproc", str(processes), *module]


def start(
    command: Sequence[str], slot: DeviceSlot = DeviceSlot(), output: BinaryIO | None = None
) -> Child:
    """Start a command on a slot; what it prints goes to `output`, or stands among our own."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)} if slot.gpus else {}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        env=environment() | gpus,
        start_new_session=True,
        preexec_fn=_prepare(slot) if os.name == "posix" else None,
    )


def _prepare(slot: DeviceSlot) -> Callable[[], None]:
    """What the child does before the command: take its cores, get a signal when we die."""
    parent = os.getpid()

    def prepare() -> None:
        follow_parent(parent)
        if slot.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, slot.cores)

    return prepare


def failure_reason(log: Path) -> str:
    """The last error in the log of a training, or its last line (torchrun's is a border)."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("error: ")), last_line(log))


class Stop(StopSignal):
    """Whether we were asked to stop; the children are asked in turn, once for each time."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def watch(self, child: Child) -> None:
        """Ask this child too; at once, if we were asked while it was started."""
        self.children.append(child)
        if self.signalled():
            child.terminate()

    def receive(self, number: int, frame: FrameType | None) -> None:
        super().receive(number, frame)
        for child in self.children:
            if child.poll() is None:
                child.terminate()

"""How fast a network trains on this machine, from a short training of it. No torch in here."""

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.atomic import read_json, storage
from ..core.errors import ExitCode, UserError
from ..recipe.fields import written
from . import children
from .children import DeviceSlot, Stop
from .scale_down import NETWORKS, Speed, path_of

RECIPE = "r3"  # AutoAugment and CutMix: none of the table takes longer to augment
STEPS = 16  # of an epoch
ENDLESS = 1_000_000  # epochs; the lr stays low, which cannot diverge


class _Stopped(UserError):
    code = ExitCode.PREEMPTED


@dataclass(frozen=True)
class ThroughputProbe:
    """How to measure. overrides: of the recipe, `key=value`; images: as many as there are."""

    folder: Path
    overrides: Sequence[str]
    images: int
    slots: Sequence[DeviceSlot]
    processes: int
    seconds: float
    stop: Stop

    def measure(self, network: str, batch_size: int) -> Speed:
        """The mean speed of a network on a slot, with all slots in use as later.

        Measured once more if the training had to compile first, as a later one will not.
        UserError if a training fails or is stopped.
        """
        for _ in range(2):
            shutil.rmtree(self.folder, ignore_errors=True)
            speeds = self._train(network, batch_size)
            logs = [log.read_text(errors="replace") for log in self.folder.glob("*.log")]
            if not any("compiling" in log for log in logs):
                break
        shutil.rmtree(self.folder, ignore_errors=True)
        return Speed(*map(statistics.fmean, zip(*speeds, strict=True)))

    def _train(self, network: str, batch_size: int) -> list[Speed]:
        model = NETWORKS[network]
        words = [str(path_of(RECIPE)), *self.overrides]
        words += [f"model={written(model)}"] if model else []
        words += [f"{key}={ENDLESS}" for key in ("epochs", "eval_every", "warmup.epochs")]
        words += ["name=probe", "wandb.mode=disabled", f"batch_size={batch_size}", "--quiet"]
        words += [f"subset={min(STEPS * batch_size, self.images)}", "--runs", str(self.folder)]
        words += ["--minutes", f"{self.seconds / 60:.4f}"]
        with storage(self.folder):
            self.folder.mkdir(parents=True)
        began, running = time.monotonic(), []
        for job, slot in enumerate(self.slots):
            command = children.training([*words, "--id", str(job)], self.processes)
            with (self.folder / f"{job}.log").open("wb") as output:
                running.append(children.start(command, slot, output))
            self.stop.watch(running[-1])
        for child in running:
            child.wait()
        if self.stop.asked:
            raise _Stopped("stopped while it measured; the same command measures again")
        seconds = time.monotonic() - began
        return [self._read(job, batch_size, seconds) for job in range(len(running))]

    def _read(self, job: int, batch_size: int, seconds: float) -> Speed:
        run = self.folder / "probe" / str(job)
        if not (run / "summary.json").is_file():
            reason = children.failure_reason(self.folder / f"{job}.log")
            raise UserError(f"the short training failed: {reason}")
        states = [read_json(path)["progress"] for path in run.glob("ckpt/*/state.json")]
        last = max(states, key=lambda progress: progress["step"])
        epochs = [*last["rows"], last]  # the last was cut short
        steps, measured = last["step"] - epochs[0]["step"], epochs[1:]
        if not steps:  # a slow machine: nothing after the first epoch, which starts slowly
            steps, measured = last["step"], epochs[:1]
        return Speed(
            start=max(0.0, seconds - last["total_seconds"]),
            rate=steps * batch_size / sum(epoch["seconds"] for epoch in measured),
            saving=statistics.median(epoch["seconds_overhead"] for epoch in measured),
        )

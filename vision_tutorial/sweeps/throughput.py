"""How fast a network trains on this machine, from a short training of it. No torch in here."""

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.atomic import read_json, storage
from ..core.errors import UserError
from ..recipe.fields import written
from ..runs import run_folder
from . import children
from .children import DeviceSlot, Stop
from .scale_down import NETWORKS, Speed, path_of

RECIPE = "r3"  # AutoAugment and CutMix: none of the table takes longer to augment
STEPS = 16  # of an epoch
ENDLESS = 1_000_000  # epochs
TICK = 0.1  # seconds between two checks of the child


@dataclass(frozen=True)
class ThroughputProbe:
    """How to measure: on all slots at once, as later. overrides: of the recipe, `key=value`."""

    folder: Path
    overrides: Sequence[str]
    slots: Sequence[DeviceSlot]
    processes: int
    seconds: float
    stop: Stop

    def measure(self, network: str, batch_size: int, images: int) -> Speed:
        """The mean speed of a network on a slot. images: as many as there are.

        Measured once more if the training had to compile first, as a later one will not.
        UserError if a training fails or is stopped.
        """
        speeds = self._train(network, batch_size, images)
        if any("compiling" in log.read_text(errors="replace") for log in self.folder.glob("*.log")):
            speeds = self._train(network, batch_size, images)
        shutil.rmtree(self.folder, ignore_errors=True)
        return Speed(*map(statistics.fmean, zip(*speeds, strict=True)))

    def _train(self, network: str, batch_size: int, images: int) -> list[Speed]:
        shutil.rmtree(self.folder, ignore_errors=True)
        with storage(self.folder):
            self.folder.mkdir(parents=True)
        model = NETWORKS[network]
        words = [str(path_of(RECIPE)), *self.overrides]
        words += [f"model={written(model)}"] if model else []
        # without an end, and with a low lr, which cannot diverge
        words += [f"{key}={ENDLESS}" for key in ("epochs", "eval_every", "warmup.epochs")]
        words += ["name=probe", "wandb.mode=disabled", f"batch_size={batch_size}"]
        words += [f"subset={min(STEPS * batch_size, images)}", "--quiet"]
        words += ["--minutes", f"{self.seconds / 60:.4f}", "--runs", str(self.folder)]
        running: list[tuple[children.Child, float]] = []
        ended: dict[int, float] = {}
        try:
            for job, slot in enumerate(self.slots):
                command = children.training([*words, "--id", str(job)], self.processes)
                with (self.folder / f"{job}.log").open("wb") as output:
                    running.append((children.start(command, slot, output), time.monotonic()))
                self.stop.watch(running[-1][0])
            while len(ended) < len(running):
                time.sleep(TICK)
                for job, (child, began) in enumerate(running):
                    if job not in ended and child.poll() is not None:
                        ended[job] = time.monotonic() - began
        finally:
            for child, _ in running:
                if child.poll() is None:  # we failed
                    child.terminate()
        if self.stop.asked:
            raise UserError("the short training was stopped")
        return [self._read(job, batch_size, spent) for job, spent in ended.items()]

    def _read(self, job: int, batch_size: int, seconds: float) -> Speed:
        run = self.folder / "probe" / str(job)
        try:
            summary = read_json(run / "summary.json")
        except UserError:
            reason = children.failure_reason(run, self.folder / f"{job}.log")
            raise UserError(f"the short training failed: {reason}") from None
        rows = run_folder.read_rows(run / "metrics.jsonl")
        if len(rows) < 2:  # a slow machine: also the epoch that was cut short
            states = [read_json(path)["progress"] for path in run.glob("ckpt/*/state.json")]
            rows.append(max(states, key=lambda progress: progress["step"]))
        steps, counted = rows[-1]["step"] - rows[0]["step"], rows[1:]
        if not steps:  # nothing after the first epoch: the first, though it starts slowly
            steps, counted = rows[-1]["step"], rows[:1]
        return Speed(
            start=max(0.0, seconds - summary["wall_seconds"]),
            rate=steps * batch_size / sum(row["seconds"] for row in counted),
            saving=statistics.median(row["seconds_overhead"] for row in counted),
        )

"""How fast a network trains on this machine, from a short training of it. No torch in here."""

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.atomic import read_json, storage
from ..core.errors import UserError
from ..recipe.fields import written
from ..runs import run_folder
from . import children
from .children import Child, Seat, Stop
from .scale_down import NETWORKS, Speed, path_of

PROBED = "r3"  # AutoAugment and CutMix: none of the table takes longer to augment
STEPS = 16  # of an epoch; the first epoch is not counted
SECONDS = 6.0  # of training, at least
PART = 0.01  # of the budget, at least
ENDLESS = 1_000_000  # epochs
TICK = 0.1  # seconds between two looks at the child


@dataclass(frozen=True)
class Probe:
    """How to measure: on all seats at once, as later. overrides: of the recipe, `key=value`."""

    folder: Path
    overrides: Sequence[str]
    seats: Sequence[Seat]
    processes: int
    seconds: float
    stop: Stop

    def __call__(self, network: str, batch_size: int, images: int) -> Speed:
        """The speed of a network on a seat, the mean of all; UserError if a training fails, is
        stopped, or is too slow. images: as many as there are."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a probe that was cut
        with storage(self.folder):
            self.folder.mkdir(parents=True)
        words = [str(path_of(PROBED)), *self.overrides, *settings(network, batch_size, images)]
        words += ["--minutes", f"{self.seconds / 60:.4f}", "--runs", str(self.folder), "--quiet"]
        running = []
        try:
            for job, seat in enumerate(self.seats):
                running.append(self.begin(words, seat, str(job)))
            ended = [self.ended(child, began) for child, began in running]
        finally:
            for child, _ in running:
                if child.poll() is None:  # we failed
                    child.terminate()
        if self.stop.asked:
            raise UserError("the short training was stopped")
        found = [self.read(str(job), batch_size, spent) for job, spent in enumerate(ended)]
        shutil.rmtree(self.folder, ignore_errors=True)
        return Speed(*map(statistics.fmean, zip(*found, strict=True)))

    def begin(self, words: Sequence[str], seat: Seat, job: str) -> tuple[Child, float]:
        """Start a training; it, and when that was."""
        log = self.folder / f"{job}.log"
        with storage(log), log.open("wb") as output:
            command = children.training([*words, "--id", job], self.processes)
            child = children.start(command, seat, output)
        self.stop.watch(child)
        return child, time.monotonic()

    def ended(self, child: Child, began: float) -> float:
        """Wait for its end; how many seconds after its start that was seen."""
        while child.poll() is None:
            time.sleep(TICK)
        return time.monotonic() - began

    def read(self, job: str, batch_size: int, seconds: float) -> Speed:
        """What a training that has ended says."""
        run = self.folder / "probe" / job
        try:
            summary = read_json(run / "summary.json")
        except UserError:
            why = children.complaint(run, self.folder / f"{job}.log")
            raise UserError(f"the short training failed: {why}") from None
        found = speed(run_folder.read_rows(run / "metrics.jsonl"), batch_size, seconds, summary)
        if found is None:
            raise UserError(
                f"fewer than {2 * STEPS} steps of {batch_size} images in {self.seconds:.0f} s. "
                "Name a smaller --network, or a larger --budget."
            )
        return found


def settings(network: str, batch_size: int, images: int) -> list[str]:
    """What makes a recipe a training without an end and with a low lr, which cannot diverge."""
    model = NETWORKS[network].model
    return [
        *([f"model={written(model)}"] if model else []),
        "name=probe",
        f"batch_size={batch_size}",
        f"subset={min(STEPS * batch_size, images)}",
        f"epochs={ENDLESS}",
        f"eval_every={ENDLESS}",
        f"warmup.epochs={ENDLESS}",
        "wandb.mode=disabled",
    ]


def speed(
    rows: Sequence[Mapping[str, Any]], batch_size: int, seconds: float, summary: Mapping[str, Any]
) -> Speed | None:
    """What the rows of a training say that took `seconds` in all; None if it was too short."""
    counted = rows[1:]
    if not counted:
        return None
    steps = rows[-1]["step"] - rows[0]["step"]
    return Speed(
        start=max(0.0, seconds - summary["wall_seconds"]),
        rate=steps * batch_size / sum(row["seconds"] for row in counted),
        saving=statistics.median(row["seconds_overhead"] for row in counted),
    )

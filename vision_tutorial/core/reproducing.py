"""The runs of a table, one after the other, each gone on with where it stopped, within a budget."""

import math
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from . import children, logbook
from .children import Child, Seat, Stop
from .errors import ExitCode, UserError
from .notation import duration
from .processes import last_line
from .run import Run
from .trials import busy
from .writing import storage

TICK = 0.25  # seconds between two looks at a training
STOPPED = (ExitCode.PREEMPTED, -signal.SIGTERM)  # asked to stop; before it could listen
# Seconds before the end of a budget when the training is asked to stop, and when it is killed: what
# is left is for the table and the page.
ASKED, KILLED = 20.0, 10.0


class Clock:
    """The end of a budget that begins now; without one it never comes."""

    def __init__(self, budget: float | None):
        self.end = time.monotonic() + budget if budget else math.inf

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def room(self) -> float:
        """Seconds until a training is asked to stop."""
        return self.left() - ASKED


class Trial(NamedTuple):
    """A recipe with a seed: one run. epochs: all that it takes."""

    name: str
    seed: int
    recipe: Path
    epochs: int

    @property
    def id(self) -> str:
        """The name of its run folder."""
        return f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


class Shift:
    """Trains one trial after the other. words: for `train`, behind the recipe; logs: a folder."""

    def __init__(
        self,
        trials: Sequence[Trial],
        folder: Path,
        logs: Path,
        words: Sequence[str],
        seat: Seat,
        processes: int,
        clock: Clock,
        stop: Stop,
    ):
        self.trials, self.folder, self.logs, self.words = trials, folder, logs, words
        self.seat, self.processes, self.clock, self.stop = seat, processes, clock, stop
        self.console = Console(highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Each that is not done, once; until we are asked to stop or the time is up."""
        for trial in self.trials:
            if self.over():
                return
            if self.state(trial) != "done":
                self.train(trial)

    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.stop.asked or self.clock.room() < 0

    def run_folder(self, trial: Trial) -> Path:
        """What its training leaves is here."""
        return self.folder / trial.name / trial.id

    def read(self, trial: Trial) -> Run | None:
        """What there is of it; None if nothing is, or nothing whole."""
        with suppress(UserError):
            return logbook.read(self.run_folder(trial))
        return None

    def state(self, trial: Trial) -> str:
        """new, done, failed, or how far it is."""
        run = self.read(trial)
        if run is None:
            return "new"
        if run.status in ("done", "failed"):
            return run.status
        return f"stopped at epoch {run.epochs} of {trial.epochs}"

    def train(self, trial: Trial) -> None:
        """Begin it or go on with it, to its end, or until it has to stop."""
        while busy(self.run_folder(trial)) and not self.over():
            time.sleep(TICK)  # a child of a start that was killed takes a moment to save
        if self.over():
            return
        began, before = time.monotonic(), self.state(trial)
        log = self.logs / f"{trial.name}-{trial.id}.log"
        where = ["--runs", str(self.folder), "--id", trial.id, "--resume"]
        words = [str(trial.recipe), *self.words, f"seed={trial.seed}", *where]
        with storage(log), log.open("ab") as output:
            command = children.training(words, self.processes)
            child = children.start(command, self.seat, output)
        self.stop.watch(child)
        self.say(f"{trial}: {'started' if before == 'new' else f'goes on ({before})'}")
        self.watch(trial, child)
        self.say(
            f"{trial}: {self.outcome(trial, child, log)}, {duration(time.monotonic() - began)}"
        )

    def watch(self, trial: Trial, child: Child) -> None:
        """Wait for its end; bring it about where the time is up."""
        asked = False
        # no thread that draws: children are forked here
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while child.poll() is None:
                if self.clock.room() < 0 and not asked:
                    asked = True
                    child.terminate()
                if self.clock.left() < KILLED:
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)  # its workers too
                if self.console.is_terminal:
                    live.update(Text(self.progress(trial)), refresh=True)
                time.sleep(TICK)

    def outcome(self, trial: Trial, child: Child, log: Path) -> str:
        """What came of it, in words."""
        run, state = self.read(trial), self.state(trial)
        if run and state == "done" and run.best and run.last:
            metric = (run.metric or "").removeprefix("val/")
            return f"{metric} {run.best.value:.2f} best, {run.last.value:.2f} last"
        if child.returncode in STOPPED or self.over():
            return state
        return f"failed with code {child.returncode}: {last_line(log)} (log: {log})"

    def progress(self, trial: Trial) -> str:
        """How far all is, on one line."""
        run = self.read(trial)
        done = f"epoch {run.epochs if run else 0} of {trial.epochs}"
        left = self.seconds_left()
        more = "" if left is None else f", about {duration(left)} left"
        return f"{trial}: {done}{more}"

    def seconds_left(self) -> float | None:
        """Of all trials, at the pace so far; None before an epoch is done."""
        runs = {trial: self.read(trial) for trial in self.trials}
        epochs = {trial: run.epochs if run else 0 for trial, run in runs.items()}
        seconds = sum(run.seconds or 0.0 for run in runs.values() if run)
        if not sum(epochs.values()) or not seconds:
            return None
        left = sum(trial.epochs - done for trial, done in epochs.items())
        return left * seconds / sum(epochs.values())

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(Text(line))

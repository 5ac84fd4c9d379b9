"""The runs of a table on a machine's seats, each gone on with where it stopped, within a budget."""

import math
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..core.child_process import kill_family
from ..core.errors import ExitCode, UserError
from ..core.machine import usable_cores
from ..recipe.batch_split import batch_parts
from ..recipe.fields import Recipe
from ..recipe.notation import duration
from ..runs import reader
from ..runs.run import Run
from . import children
from .children import Child, Seat, Stop
from .scheduler import Running, Seated

ROOM, LARGE_ROOM = 2 * 2**30, 8 * 2**30  # bytes of memory for each of several trainings on a CPU
SHOWN = 2.0  # seconds between two looks at how far they are
STOPPED = (ExitCode.PREEMPTED, -signal.SIGTERM)  # asked to stop; before it could listen
# Seconds before the end of a budget when the training is asked to stop, and when it is killed: what
# is left is for the table and the page.
ASKED, KILLED = 20.0, 10.0


def in_full(
    recipes: Iterable[Recipe], nproc: int | None, jobs: int | None
) -> tuple[list[Seat], int]:
    """Seats for one run (or `jobs`) on all GPUs that their batches divide over; the processes."""
    most = max(1, len(children.visible_gpus()))
    world = nproc or next(n for n in range(most, 0, -1) if n == 1 or _dealt(recipes, n))
    return children.seats(jobs or 1, world), world


def _dealt(recipes: Iterable[Recipe], processes: int) -> bool:
    try:
        return all(batch_parts(recipe, processes, on_gpu=True) for recipe in recipes)
    except UserError:
        return False


def side_by_side(
    runs: int, small: bool, nproc: int | None, jobs: int | None
) -> tuple[list[Seat], int]:
    """Seats for as many of so many runs as there are GPUs, or cores and memory for; the processes.

    small: their networks.
    """
    world = nproc or 1
    room = psutil.virtual_memory().available // (ROOM if small else LARGE_ROOM)
    most = len(children.visible_gpus()) or min(len(usable_cores()), room)
    return children.seats(max(1, min(jobs or most // world, runs)), world), world


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


class Shift(Seated):
    """Trains trials in order. words: for `train`, behind the recipe; logs: a folder."""

    def __init__(
        self,
        trials: Sequence[Trial],
        folder: Path,
        logs: Path,
        words: Sequence[str],
        seats: Sequence[Seat],
        processes: int,
        clock: Clock,
        stop: Stop,
    ):
        super().__init__(seats, stop)
        self.trials, self.folder, self.logs, self.words = trials, folder, logs, words
        self.processes, self.clock = processes, clock
        self.console = Console(highlight=False, soft_wrap=True)
        # no thread that draws: children are forked here
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.drawn = -math.inf  # when
        self.late = False  # the time was up before all was done

    def run(self) -> None:
        """Each that is not done, once; until we are asked to stop or the time is up."""
        with self.live:
            self.work([trial for trial in self.trials if self.state(trial) != "done"])
        self.late = self.late or bool(self.waiting) and self.clock.room() < 0

    def look(self) -> None:
        """Mind the time; show how far all is."""
        self.keep_time()
        if self.console.is_terminal and time.monotonic() - self.drawn > SHOWN:
            self.live.update(Text(self.progress()), refresh=True)
            self.drawn = time.monotonic()

    def keep_time(self) -> None:
        """Where the time is up, ask what runs to stop; if it has not, kill it."""
        if self.clock.room() < 0 and not self.late:
            self.late = bool(self.running)
            for one in () if self.stop.asked else self.running:  # asked twice, it would not save
                one.child.terminate()
        if self.clock.left() < KILLED:
            for one in self.running:
                kill_family(one.child.pid)

    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.stop.asked or self.clock.room() < 0

    def say_waiting(self) -> None:
        """Which."""
        self.say(f"waiting: another process trains {', '.join(map(str, self.waiting))}")

    def run_folder(self, trial: Trial) -> Path:
        """What its training leaves is here."""
        return self.folder / trial.name / trial.id

    def read(self, trial: Trial) -> Run | None:
        """What there is of it; None if nothing is, or nothing whole."""
        with suppress(UserError):
            return reader.read(self.run_folder(trial))
        return None

    def state(self, trial: Trial) -> str:
        """new, done, failed, or how far it is."""
        run = self.read(trial)
        if run is None:
            return "new"
        if run.status in ("done", "failed"):
            return run.status
        return f"stopped at epoch {run.epochs} of {trial.epochs}"

    def start(self, trial: Trial) -> None:
        """Begin it or go on with it; unless another process has ended it meanwhile."""
        before = self.state(trial)
        if before == "done":
            return
        where = ["--runs", str(self.folder), "--id", trial.id, "--resume"]
        words = [str(trial.recipe), *self.words, f"seed={trial.seed}", *where]
        self.seat(trial, children.training(words, self.processes), self.log(trial), before)
        self.say(f"{trial}: {'started' if before == 'new' else f'goes on ({before})'}")

    def end(self, one: Running) -> None:
        """Take note of how it ended."""
        self.say(f"{one.trial}: {self.outcome(one.trial, one.child)}, {duration(one.spent)}")

    def log(self, trial: Trial) -> Path:
        """What its training says."""
        return self.logs / f"{trial.name}-{trial.id}.log"

    def outcome(self, trial: Trial, child: Child) -> str:
        """What came of it, in words."""
        run, state = self.read(trial), self.state(trial)
        if run and state == "done" and run.best and run.last:
            metric = (run.metric or "").removeprefix("val/")
            return f"{metric} {run.best.value:.2f} best, {run.last.value:.2f} last"
        if child.returncode in STOPPED or self.over():
            return state
        log = self.log(trial)
        why = children.complaint(self.run_folder(trial), log)
        return f"failed with code {child.returncode}: {why} (log: {log})"

    def progress(self) -> str:
        """What runs, how far it is, and how long all takes."""
        lines = []
        for one in self.running:
            run = self.read(one.trial)
            lines.append(f"{one.trial}: epoch {run.epochs if run else 0} of {one.trial.epochs}")
        left = self.seconds_left()
        return "\n".join([*lines, *([f"about {duration(left)} left"] if left else [])])

    def seconds_left(self) -> float | None:
        """Of all trials, at the pace so far; None before an epoch is done."""
        runs = {trial: self.read(trial) for trial in self.trials}
        epochs = {trial: run.epochs if run else 0 for trial, run in runs.items()}
        seconds = sum(run.seconds or 0.0 for run in runs.values() if run)
        if not sum(epochs.values()) or not seconds:
            return None
        left = sum(trial.epochs - done for trial, done in epochs.items())
        return left * seconds / sum(epochs.values()) / self.jobs

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(Text(line))

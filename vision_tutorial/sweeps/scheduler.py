"""Trains trials on device slots, in order, each as soon as a slot is free, within a time limit."""

import math
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.atomic import storage
from ..core.errors import ExitCode
from ..core.processes import kill_family
from ..recipe.notation import duration
from . import children
from .children import Child, DeviceSlot, Stop
from .trials import Trial, TrialStatus, TrialTable, is_busy

TICK = 0.25  # seconds between two checks of the trainings
_REDRAW = 1.0  # seconds between two drawings of the table
_BEST_SHOWN = 3
_STOPPED = (ExitCode.PREEMPTED, -signal.SIGTERM)  # asked to stop; before it could listen
# Seconds before the deadline when trainings are asked to stop, and when they are killed. What is
# left is for the table and the page.
ASKED, KILLED = 20.0, 10.0


class Deadline:
    """The end of a time limit that begins now; without one it never comes."""

    def __init__(self, seconds: float | None = None):
        self.end = time.monotonic() + seconds if seconds else math.inf

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def room(self) -> float:
        """Seconds until trainings are asked to stop."""
        return self.left() - ASKED


class _Running(NamedTuple):
    """A trial that is being trained."""

    trial: Trial
    slot: DeviceSlot
    child: Child
    began: float


class Scheduler:
    """Starts trials on free slots and prints a line when one starts or ends.

    On a terminal, a table below the lines shows what runs and the best so far.
    """

    def __init__(
        self,
        table: TrialTable,
        slots: Sequence[DeviceSlot],
        processes: int,
        stop: Stop,
        deadline: Deadline | None = None,
    ):
        """processes: of each training."""
        self.table, self.processes, self.stop = table, processes, stop
        self.jobs, self.free = len(slots), list(slots)
        self.deadline = deadline or Deadline()
        self.late = False  # the time was up before all was done
        self.waiting: list[Trial] = []
        self.running: list[_Running] = []
        self._said_waiting = False
        self._drawn = -math.inf
        self.console = Console(highlight=False, soft_wrap=True)
        # no thread that draws: children are forked here
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def run(self, trials: Sequence[Trial]) -> None:
        """Until every trial has ended, or nothing more is to begin and those running have."""
        self.waiting = list(trials)
        if self.console.is_terminal:
            self.live.start()
        try:
            while self.running or (self.waiting and not self._over()):
                while self.free and not self._over() and (trial := self._next()):
                    self._start(trial)
                for one in [one for one in self.running if one.child.poll() is not None]:
                    self.running.remove(one)
                    self.free.append(one.slot)
                    self._end(one)
                self._keep_time()
                self._draw()
                time.sleep(TICK)
        finally:
            for one in self.running:  # no training outlives us when we fail
                one.child.terminate()
                one.child.wait()
            self.live.stop()
        self.late = self.late or bool(self.waiting) and self.deadline.room() < 0

    def _over(self) -> bool:
        return self.stop.asked or self.deadline.room() < 0

    def _next(self) -> Trial | None:
        """The first waiting trial that no other process trains.

        Another process may: a child of a start that was killed takes a moment to save.
        """
        found = next((trial for trial in self.waiting if not is_busy(trial.folder)), None)
        if found:
            self.waiting.remove(found)
        elif self.waiting and not self.running and not self._said_waiting:
            self._said_waiting = True
            self._say("waiting    other processes train " + ", ".join(t.name for t in self.waiting))
        return found

    def _start(self, trial: Trial) -> None:
        """Start a trial or continue it, unless another process has finished it meanwhile."""
        before = self.table.look(trial)
        if before.state == "done":
            return
        slot = self.free.pop(0)
        command = children.training(trial.arguments, self.processes)
        with storage(trial.log), trial.log.open("ab") as output:
            child = children.start(command, slot, output)
        self.running.append(_Running(trial, slot, child, time.monotonic()))
        self.stop.watch(child)
        at = f"  at epoch {before.epochs}" if before.epochs else ""
        self._say(f"started    {trial.id}  {trial.name}{at}")

    def _end(self, one: _Running) -> None:
        trial, code = one.trial, one.child.returncode
        if code and is_busy(trial.folder):
            self.waiting.append(trial)  # another process was first
            return
        status = self.table.look(trial)
        ended = status.stopped or self._over() or status.state in ("done", "failed")
        if not ended and code not in _STOPPED:
            reason = children.failure_reason(trial.folder, trial.log)
            status = TrialStatus("failed", status.epochs, error=f"ended with code {code}: {reason}")
            self.table.statuses[trial.folder] = status
        log = f" (log: {trial.log})" if status.state == "failed" else ""
        took = duration(time.monotonic() - one.began)
        self._say(
            f"{status.state:<10} {trial.id}  {trial.name}  {status}, {took}{log}  "
            f"({self._progress()})"
        )

    def _keep_time(self) -> None:
        """At the deadline, ask running trainings to stop; kill those that do not."""
        if self.deadline.room() < 0 and not self.late:
            self.late = bool(self.running)
            for one in () if self.stop.asked else self.running:  # asked twice, it would not save
                one.child.terminate()
        if self.deadline.left() < KILLED:
            for one in self.running:
                kill_family(one.child.pid)

    def _progress(self) -> str:
        states = [status.state for status in self.table.statuses.values()]
        failed = f", {n} failed" if (n := states.count("failed")) else ""
        trials = [*self.waiting, *(one.trial for one in self.running)]
        left = "unknown"
        if pace := self.table.measured_pace():
            seconds = self.table.epochs_left(trials) * pace[0]
            left = duration(seconds / min(self.jobs, max(1, len(trials))))
        return f"{states.count('done')} of {len(states)} done{failed}; left: {left}"

    def _say(self, line: str) -> None:
        self.console.print(Text(line))

    def _draw(self) -> None:
        if not self.live.is_started or time.monotonic() - self._drawn < _REDRAW:
            return
        self._drawn = time.monotonic()
        table = Table(title=self._progress(), box=None, title_justify="left")
        for name in ("", "epoch", "time", "trial"):
            table.add_column(name, no_wrap=True)
        for one in self.running:
            epochs = f"{self.table.look(one.trial).epochs}/{one.trial.epochs}"
            spent = duration(time.monotonic() - one.began)
            table.add_row("running", epochs, spent, Text(one.trial.name))
        done = [item for item in self.table.statuses.items() if item[1].best is not None]
        done.sort(key=lambda item: item[1].best, reverse=self.table.more_is_better)
        for folder, status in done[:_BEST_SHOWN]:
            table.add_row("best", f"{status.best:.2f}", "", Text(folder.name))
        self.live.update(table, refresh=True)

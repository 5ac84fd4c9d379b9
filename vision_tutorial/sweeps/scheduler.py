"""Trains trials on device slots, in order, each as soon as a slot is free, within a time limit."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.atomic import storage
from ..core.processes import kill_family
from ..recipe.notation import duration
from . import children
from .children import Child, DeviceSlot, Stop
from .trials import Trial, TrialTable, is_busy

TICK = 0.25  # seconds between two checks of the trainings
_REDRAW = 1.0  # seconds between two drawings of the table
_BEST_SHOWN = 3
# Seconds before the deadline when trainings are asked to stop, and when they are killed. What is
# left is for the table and the page.
ASKED, KILLED = 20.0, 10.0


class _Running(NamedTuple):
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
        deadline: float = math.inf,
    ):
        """processes: of each training. deadline: by `time.monotonic()`."""
        self.table, self.processes, self.stop, self.deadline = table, processes, stop, deadline
        self.jobs, self.free = len(slots), list(slots)
        self.late = False  # the time was up before all was done
        self.waiting: list[Trial] = []
        self.running: list[_Running] = []
        self._drawn = -math.inf
        self.console = Console(highlight=False, soft_wrap=True)
        # no thread that draws: children are forked here
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def run(self, trials: Sequence[Trial]) -> None:
        """Until every trial has ended, or nothing more is to begin and those running have."""
        self.waiting = list(trials)
        if self.console.is_terminal:
            self.live.start()
        others = False  # whether it was said that other processes train
        try:
            while self.running or (self.waiting and not self._over()):
                for trial in list(self.waiting):
                    # another process may train it: a child of a killed start takes time to save
                    if self.free and not self._over() and not is_busy(trial.folder):
                        self.waiting.remove(trial)
                        self._start(trial)
                if self.waiting and not (self.running or others or self._over()):
                    others = True
                    names = ", ".join(trial.name for trial in self.waiting)
                    self._print(f"waiting    other processes train {names}")
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
        self.late = self.late or bool(self.waiting) and self._left() < ASKED

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _over(self) -> bool:
        return self.stop.asked or self._left() < ASKED

    def _start(self, trial: Trial) -> None:
        """Start a trial or continue it, unless another process has finished it meanwhile."""
        before = self.table.look(trial)
        if before.state == "done":
            return
        slot = self.free.pop(0)
        with storage(trial.log), trial.log.open("ab") as output:
            command = children.training(trial.arguments, self.processes)
            child = children.start(command, slot, output)
        self.running.append(_Running(trial, slot, child, time.monotonic()))
        self.stop.watch(child)
        at = f"  at epoch {before.epochs}" if before.epochs else ""
        self._print(f"started    {trial.id}  {trial.name}{at}")

    def _end(self, one: _Running) -> None:
        trial, code = one.trial, one.child.returncode
        status = self.table.look(trial)
        if not (status.stopped or self._over() or status.state in ("done", "failed")):
            error = f"ended with code {code}: {children.failure_reason(trial.log)}"
            status = self.table.statuses[trial.folder] = status._replace(
                state="failed", error=error
            )
        log = f" (log: {trial.log})" if status.state == "failed" else ""
        took = duration(time.monotonic() - one.began)
        line = f"{status.state:<10} {trial.id}  {trial.name}  {status}, {took}{log}"
        self._print(f"{line}  ({self._progress()})")

    def _keep_time(self) -> None:
        """At the deadline, ask running trainings to stop; kill those that do not."""
        if self._left() < ASKED and not self.late:
            self.late = bool(self.running)
            for one in () if self.stop.asked else self.running:  # asked twice, it would not save
                one.child.terminate()
        for one in self.running if self._left() < KILLED else ():
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

    def _print(self, line: str) -> None:
        self.console.print(Text(line))

    def _draw(self) -> None:
        if not self.live.is_started or time.monotonic() - self._drawn < _REDRAW:
            return
        self._drawn = time.monotonic()
        table = Table("", "epoch", "time", "trial", title=self._progress(), box=None)
        for one in self.running:
            epochs = f"{self.table.look(one.trial).epochs}/{one.trial.epochs}"
            spent = duration(time.monotonic() - one.began)
            table.add_row("running", epochs, spent, Text(one.trial.name))
        statuses = self.table.statuses.items()
        done = [(s.best, folder.name) for folder, s in statuses if s.best is not None]
        for best, name in sorted(done, reverse=self.table.more_is_better)[:_BEST_SHOWN]:
            table.add_row("best", f"{best:.2f}", "", Text(name))
        self.live.update(table, refresh=True)

"""Trains trials on device slots, in order, each as soon as a slot is free, within a time limit."""

import math
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..core.atomic import storage
from ..core.errors import visible
from ..core.processes import kill_family
from ..recipe.notation import duration
from . import children
from .children import Child, DeviceSlot, Stop
from .trials import Trial, epochs_left, is_busy, measured_pace

TICK = 0.25  # seconds between two checks of the trainings
_REDRAW = 1.0  # seconds between two drawings of what runs
_BEST_SHOWN = 3
# Trainings are asked to stop so many seconds before the deadline, and killed so many seconds after
# that. What is left is for the table and the page.
ASKED, KILLED = 20.0, 10.0


class _Running(NamedTuple):
    trial: Trial
    slot: DeviceSlot
    child: Child
    began: float


class Scheduler:
    """Starts trials on free slots and prints a line when one starts or ends.

    On a terminal, lines below show what runs and the best so far.
    """

    def __init__(
        self, slots: Sequence[DeviceSlot], processes: int, stop: Stop, deadline: float = math.inf
    ):
        """processes: of each training. deadline: by `time.monotonic()`."""
        self.processes, self.stop, self.deadline = processes, stop, deadline
        self.jobs, self.free = len(slots), list(slots)
        self.late = False  # the time was up before all was done
        self.every: Collection[Trial] = ()
        self.waiting: list[Trial] = []
        self.running: list[_Running] = []
        self.console = Console(highlight=False, soft_wrap=True)
        self._drawn = -math.inf

    def run(self, trials: Sequence[Trial], every: Collection[Trial], quiet: bool = False) -> None:
        """Until all trials have ended, or nothing more is to begin and those running have.

        every: the trials of which progress tells.
        """
        self.waiting, self.every, self.console.quiet = list(trials), every, quiet
        others = False  # whether it was said that other processes train
        # no thread that draws: children are forked here
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
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
                    self._draw(live)
                    time.sleep(TICK)
            finally:
                for one in self.running:  # no training outlives us when we fail
                    kill_family(one.child.pid, patience=KILLED)
                    one.child.wait()
        self.late = self.late or bool(self.waiting) and self.left() < 0

    def left(self) -> float:
        """Seconds until trainings are asked to stop."""
        return self.deadline - ASKED - time.monotonic()

    def _over(self) -> bool:
        return self.stop.signalled() or self.left() < 0

    def _start(self, trial: Trial) -> None:
        """Start a trial or continue it, unless another process has finished it meanwhile."""
        if trial.look() == "done":
            return
        slot = self.free.pop(0)
        with storage(trial.log), trial.log.open("ab") as output:
            command = children.training(trial.arguments, self.processes)
            child = children.start(command, slot, output)
        self.running.append(_Running(trial, slot, child, time.monotonic()))
        self.stop.watch(child)
        at = f"  at epoch {trial.epochs_done}" if trial.epochs_done else ""
        self._print(f"started    {trial.id}  {trial.name}{at}")

    def _end(self, one: _Running) -> None:
        trial = one.trial
        trial.look()
        stopped = trial.run is not None and trial.run.status in ("preempted", "paused")
        if not (stopped or self._over() or trial.state in ("done", "failed")):
            reason = children.failure_reason(trial.log)
            trial.error = f"ended with code {one.child.returncode}: {reason}"
        log = f" (log: {trial.log})" if trial.state == "failed" else ""
        took = duration(time.monotonic() - one.began)
        line = f"{trial.state:<10} {trial.id}  {trial.name}  {trial}, {took}{log}"
        self._print(f"{line}  ({self._progress()})")

    def _keep_time(self) -> None:
        """At the deadline, ask running trainings to stop; kill those that do not."""
        if self.left() < 0 and not self.late:
            self.late = bool(self.running)
            if not self.stop.signalled():  # asked twice, it would not save
                for one in self.running:
                    one.child.terminate()
        for one in self.running if self.left() < -KILLED else ():
            kill_family(one.child.pid)

    def _progress(self) -> str:
        states = [trial.state for trial in self.every]
        failed = f", {n} failed" if (n := states.count("failed")) else ""
        trials = [*self.waiting, *(one.trial for one in self.running)]
        left = "unknown"
        if pace := measured_pace(self.every):
            seconds = epochs_left(trials) * pace[0]
            left = duration(seconds / min(self.jobs, max(1, len(trials))))
        return f"{states.count('done')} of {len(states)} done{failed}; left: {left}"

    def _print(self, line: str) -> None:
        self.console.print(Text(visible(line)))

    def _draw(self, live: Live) -> None:
        if not self.console.is_terminal or time.monotonic() < self._drawn + _REDRAW:
            return
        self._drawn = time.monotonic()
        lines = [self._progress()]
        for trial, *_, began in self.running:
            trial.look()
            spent = duration(self._drawn - began)
            lines.append(
                f"running  {trial.name}: epoch {trial.epochs_done}/{trial.epochs}, {spent}"
            )
        done = [trial for trial in self.every if trial.state == "done"]
        sign = -1 if all(trial.more_is_better for trial in done) else 1
        done.sort(key=lambda trial: sign * trial.values()[0])
        lines += [f"best     {trial.name}: {trial}" for trial in done[:_BEST_SHOWN]]
        live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

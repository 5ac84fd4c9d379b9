"""The trials of one stage run on a machine's seats, each once, until all have ended."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import children
from .children import Seat, Stop
from .notation import duration
from .processes import last_line
from .sweeping import Trial
from .trials import Board, Standing, busy
from .writing import storage

TICK = 0.25  # seconds between two looks at the children
BEST_SHOWN = 3


class Running(NamedTuple):
    """A trial that is being trained."""

    trial: Trial
    seat: Seat
    process: subprocess.Popen
    began: float
    before: Standing


class Shift:
    """Starts trials on free seats and takes note of how they end."""

    def __init__(
        self, board: Board, seats: Sequence[Seat], command: Callable[[Trial], list[str]], stop: Stop
    ):
        self.board, self.command, self.stop = board, command, stop
        self.jobs, self.free = len(seats), list(seats)
        self.waiting: list[Trial] = []
        self.running: list[Running] = []
        self.starts: list[float] = []  # seconds of each ended trial beside its epochs
        self.patient = False  # we said that we wait for others
        self.screen = Screen(self)

    def run(self, trials: Sequence[Trial]) -> None:
        """Until every trial has ended, or we are asked to stop and those running have."""
        self.waiting = list(trials)
        try:
            with self.screen:
                while self.running or (self.waiting and not self.stop.asked):
                    while self.free and not self.stop.asked and (trial := self.next()):
                        self.start(trial)
                    for one in [x for x in self.running if x.process.poll() is not None]:
                        self.end(one)
                    self.screen.draw()
                    time.sleep(TICK)
        finally:  # nothing is left when we fail
            for one in self.running:
                one.process.terminate()
                one.process.wait()

    def next(self) -> Trial | None:
        """The first trial that waits and that no other process trains.

        Another process may: a child of a sweep that was killed takes a moment to save.
        """
        found = next((t for t in self.waiting if not busy(self.board.run(t))), None)
        if found:
            self.waiting.remove(found)
        elif self.waiting and not self.running and not self.patient:
            self.patient = True
            self.screen.say(f"waiting    {len(self.waiting)} are trained by other processes")
        return found

    def start(self, trial: Trial) -> None:
        """Begin a trial, or go on with it; unless the other process has ended it meanwhile."""
        before = self.board.look(trial)
        if before.state == "done":
            return
        seat = self.free.pop(0)
        log = self.board.log(trial)
        with storage(log), log.open("ab") as output:
            process = children.start(self.command(trial), seat, output)
        self.running.append(Running(trial, seat, process, time.monotonic(), before))
        self.stop.watch(process)
        at = f" at epoch {before.epochs}" if before.epochs else ""
        self.screen.say(f"started    {trial.id}{at}  {trial.point.words}  seed {trial.seed}")

    def end(self, one: Running) -> None:
        """Take note of how a trial ended."""
        self.running.remove(one)
        self.free.append(one.seat)
        if one.process.returncode and busy(self.board.run(one.trial)):
            self.waiting.append(one.trial)  # somebody else was first
            return
        found = self.board.look(one.trial)
        seconds = time.monotonic() - one.began
        self.starts.append(max(0.0, seconds - (found.seconds - one.before.seconds)))
        code = one.process.returncode
        told = found.stopped or self.stop.asked or found.state in ("done", "failed")
        if not told and code != -signal.SIGTERM:  # sent before it could listen
            error = f"ended with code {code}: {last_line(self.board.log(one.trial))}"
            found = found._replace(state="failed", error=error)
            self.board.standings[one.trial.id] = found
        self.screen.say(
            f"{found.state:<10} {one.trial.id}  {outcome(found)}, {clock(seconds)}  "
            f"({self.progress()})"
        )

    def progress(self) -> str:
        """How many are done and how long the rest takes."""
        states = [standing.state for standing in self.board.standings.values()]
        failed = f", {n} failed" if (n := states.count("failed")) else ""
        left = clock(self.left())
        return f"{states.count('done')} of {len(states)} done{failed}; left: {left}"

    def left(self) -> float | None:
        """Seconds until all have ended, if that can be said."""
        pace = self.board.seconds_an_epoch()
        if pace is None:
            return None
        trials = [*self.waiting, *(one.trial for one in self.running)]
        start = sum(self.starts) / len(self.starts) if self.starts else 0.0
        seconds = self.board.epochs_left(trials) * pace[0] + len(self.waiting) * start
        return seconds / min(self.jobs, max(1, len(trials)))


def outcome(standing: Standing) -> str:
    """What came of a trial, in words."""
    if standing.state == "done":
        return f"{standing.metric} {standing.best:.2f} best, {standing.last:.2f} last"
    return standing.error or f"after {standing.epochs} epochs"


def clock(seconds: float | None) -> str:
    """A duration as a person says it."""
    return "unknown" if seconds is None else duration(seconds)


class Screen:
    """A line for each event; on a terminal, under them, a table of what is going on."""

    def __init__(self, shift: Shift):
        self.shift = shift
        self.console = Console(highlight=False, soft_wrap=True)
        # no thread that draws: children are forked here
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> None:
        if self.console.is_terminal:
            self.live.start()

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(Text(line))

    def draw(self) -> None:
        """The table, on a terminal."""
        if self.live.is_started:
            self.live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """What runs, how far it is, and the best so far."""
        shift, board = self.shift, self.shift.board
        table = Table(title=shift.progress(), box=None, title_justify="left")
        for name in ("", "epoch", "time", "point"):
            table.add_column(name, no_wrap=True)
        for one in shift.running:
            epochs = board.look(one.trial).epochs
            progress = f"{epochs}/{one.trial.point.recipe.total_epochs}"
            spent = clock(time.monotonic() - one.began)
            words = f"{one.trial.point.words}  seed {one.trial.seed}"
            table.add_row("running", progress, spent, Text(words))
        for result in board.ranked(board.every.values())[:BEST_SHOWN]:
            table.add_row("best", f"{result.best.mean:.2f}", "", Text(result.point.words))
        return table

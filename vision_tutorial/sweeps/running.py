"""The trials of one stage run on a machine's seats, each once, until all have ended."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.child_process import last_line
from ..recipe.notation import duration
from .children import Seat, Stop
from .scheduler import Running, Seated
from .sweep_file import Trial
from .trials import Board, Standing, busy

BEST_SHOWN = 3


class Shift(Seated):
    """The trials of a board. command: that trains one."""

    def __init__(
        self, board: Board, seats: Sequence[Seat], command: Callable[[Trial], list[str]], stop: Stop
    ):
        super().__init__(seats, stop)
        self.board, self.command = board, command
        self.starts: list[float] = []  # seconds of each ended trial beside its epochs
        self.screen = Screen(self)

    def run(self, trials: Sequence[Trial]) -> None:
        """Until every trial has ended, or we are asked to stop and those running have."""
        with self.screen:
            self.work(trials)

    def run_folder(self, trial: Trial) -> Path:
        """The board's."""
        return self.board.run(trial)

    def look(self) -> None:
        """Draw."""
        self.screen.draw()

    def say_waiting(self) -> None:
        """How many."""
        self.screen.say(f"waiting    {len(self.waiting)} are trained by other processes")

    def start(self, trial: Trial) -> None:
        """Begin a trial, or go on with it; unless the other process has ended it meanwhile."""
        before = self.board.look(trial)
        if before.state == "done":
            return
        self.seat(trial, self.command(trial), self.board.log(trial), before)
        at = f" at epoch {before.epochs}" if before.epochs else ""
        self.screen.say(f"started    {trial.id}{at}  {trial.point.words}  seed {trial.seed}")

    def end(self, one: Running) -> None:
        """Take note of how a trial ended."""
        if one.child.returncode and busy(self.board.run(one.trial)):
            self.waiting.append(one.trial)  # somebody else was first
            return
        found = self.board.look(one.trial)
        seconds = one.spent
        self.starts.append(max(0.0, seconds - (found.seconds - one.before.seconds)))
        code = one.child.returncode
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
            spent = clock(one.spent)
            words = f"{one.trial.point.words}  seed {one.trial.seed}"
            table.add_row("running", progress, spent, Text(words))
        for result in board.ranked(board.every.values())[:BEST_SHOWN]:
            table.add_row("best", f"{result.best.mean:.2f}", "", Text(result.point.words))
        return table

"""What a training prints: a bar under a growing table on a terminal, plain lines elsewhere.

Only rank 0 prints. A display never stops a training: a closed pipe silences it, and a character
that the console cannot write (cp949, ASCII) becomes '?'.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from ..core.errors import visible
from ..core.names import READABLE
from ..recipe.notation import duration
from ..runs.redaction import redact
from ..runs.run_folder import append_log

REDRAW_SECONDS = 0.1
NARROWEST_BAR = 40

# Widths that hold the usual values, so that rows printed one by one stand in columns; with all of
# them a line of the classification table is 79 characters.
WIDTHS = {"epoch": 7, "lr": 8, "time": 7}
GAP = "  "


class Display:
    """Prints on a console: rows of epochs, notices and, with `bar`, a bar below them.

    The bar is drawn from the training's own thread only: loader workers are forked from there, and
    a drawing thread might hold a lock at that moment for which the worker would wait for ever.
    """

    def __init__(self, console: Console, bar: bool) -> None:
        self._console, self._bar = console, bar
        self._progress: Progress | None = None
        self._header: dict[str, int] = {}
        self._run: Path | None = None
        self._said: list[str] = []  # before there was a run
        self.start(0, 1, 0)

    def keep(self, run: Path) -> None:
        """Write each line to the run's log.txt too: first the command and what was said already."""
        append_log(run, redact(shlex.join(sys.argv)))
        self._run = run
        for line in self._said:
            append_log(run, line)
        self._said.clear()

    def note(self, line: str) -> None:
        """A line for log.txt alone."""
        if self._run:
            append_log(self._run, line)
        else:
            self._said.append(line)

    def start(self, steps: int, per_epoch: int, epochs: int, done: int = 0) -> None:
        """Begin; `done` steps were done before, in the run that this one resumes."""
        self.close()
        self._total, self._per_epoch, self._epochs, self._done = steps, per_epoch, epochs, done
        self._first: tuple[float, int] | None = None  # when the first step ended, and its number
        self._last: list[str] = []  # what the bar says of the last step
        self._drawn = 0.0
        if not self._bar or not steps:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._progress.add_task("", total=steps, completed=done, status="")
        _survive(self._progress.start)
        # rich hides the cursor; a killed run could not bring it back
        _survive(lambda: self._console.show_cursor(True))
        self._draw()

    def step(self, step: int, loss: float | None, lr: float, speed: float) -> None:
        """`step` steps are done now, at `speed` images per second; loss None: there is none yet."""
        now = time.perf_counter()
        self._done, self._first = step, self._first or (now, step)
        if self._progress and now - self._drawn >= REDRAW_SECONDS:
            self._last = [f"loss {_number('loss', loss)}"] if loss is not None else []
            self._last += [f"lr {_number('lr', lr)}", f"{speed:,.0f} images/s"]
            self._draw(*self._last)

    def _eta(self) -> list[str]:
        """Time to the end at the pace since the first step, evaluations included; nothing as long
        as nothing was measured."""
        began, first = self._first or (0.0, self._done)
        if self._done <= first or self._done >= self._total:
            return []
        pace = (time.perf_counter() - began) / (self._done - first)
        return [f"eta {duration((self._total - self._done) * pace)}"]

    def evaluating(self, done: int, total: int) -> None:
        """`done` of `total` batches are evaluated."""
        if time.perf_counter() - self._drawn >= REDRAW_SECONDS or done >= total:
            self._draw(f"evaluating {done}/{total}", *self._last[-2:])

    def epoch(self, row: Mapping[str, Any], best: bool = False) -> None:
        """Print an epoch's line of metrics.jsonl; the best so far has a star, or says so."""
        values = _cells(row, self._epochs)
        words = [f"{name} {text}" for name, text in values.items()]
        self.note(GAP.join([*words, *["best"] * best]))
        if not self._bar:
            self._print(GAP.join([*words, *self._eta(), *["best"] * best]))
            return
        header = _columns(values, self._console.width - 1)
        if header != self._header:
            self._header = header
            names = GAP.join(f"{name:>{width}}" for name, width in header.items())
            self._print(" " + names, "dim")
        line = GAP.join(f"{values[name]:>{width}}" for name, width in header.items())
        self._print(("*" if best else " ") + line, "bold green" if best else "")
        self._draw(*self._last)

    def say(self, message: str) -> None:
        """Print one line, unwrapped, above the bar; safe to call from any thread."""
        self.note(message)
        self._print(message)

    def _print(self, message: str, style: str = "") -> None:
        _survive(lambda: self._console.print(Text(visible(message), style), soft_wrap=True))

    def close(self) -> None:
        """Take the bar away and leave the terminal as it was; the table stays."""
        if self._progress:
            _survive(self._progress.stop)
            self._progress = None

    def _draw(self, *words: str) -> None:
        if not self._progress:
            return
        self._drawn = time.perf_counter()
        epoch = min(max(self._done - 1, 0) // self._per_epoch + 1, self._epochs)
        where = f"epoch {epoch}/{self._epochs}"
        room = self._console.width - len(where) - len(" 100%") - 10
        status = [*self._eta(), *words]
        while len(GAP.join(status)) > room and status:
            status.pop()
        facts = {"description": where, "completed": self._done, "status": GAP.join(status)}
        self._progress.update(self._progress.task_ids[0], **facts)
        _survive(self._progress.refresh)


def make_display(enabled: bool, console: Console | None = None) -> Display:
    """The display of this process; `enabled` is false on all ranks but 0, which print nothing."""
    if not enabled:
        return Display(Console(quiet=True), bar=False)
    if console is None:  # rich takes FORCE_COLOR for a terminal, which would fill a log with bars
        terminal = bool(sys.stdout and sys.stdout.isatty())
        console = Console(force_terminal=None if terminal else False)
    if hasattr(console.file, "reconfigure"):
        console.file.reconfigure(errors=READABLE)
    drawable = console.is_terminal and not console.is_dumb_terminal
    return Display(console, bar=drawable and console.width >= NARROWEST_BAR)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "lr" or "loss" in name and abs(value) >= 1000:
        return f"{value:.3g}"
    return f"{value:.4f}" if "loss" in name else f"{value:.2f}"


def _cells(row: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """What is printed of a row, by column, from left to right; metrics in the row's own order."""
    metrics = [k for k in row if k.startswith("val/") and k.count("/") == 1 and k != "val/loss"]
    names = ["lr", "train/loss", "val/loss", *metrics]
    return {
        "epoch": f"{row['epoch']}/{epochs}",
        **{name: _number(name, row[name]) for name in names if name in row},
        "images/s": f"{row['images_per_second']:,.0f}",
        "time": f"{row['seconds']:.1f} s",
    }


def _columns(values: Mapping[str, str], room: int) -> dict[str, int]:
    """The widths of the columns that fit. Metrics go first, from the right, then the others; epoch
    and headline stay."""
    header = {name: max(len(name), WIDTHS.get(name, 0)) for name in values}
    metrics = [name for name in values if name.startswith("val/") and name != "val/loss"]
    for name in (*reversed(metrics[1:]), "images/s", "lr", "train/loss", "val/loss", "time"):
        if sum(header.values()) + len(GAP) * (len(header) - 1) > room:
            header.pop(name, None)
    return header


def _survive(draw: Callable[[], object]) -> None:
    """Draw; a terminal or a pipe that is gone (rich exits then) must not end the training."""
    try:
        draw()
    except (OSError, ValueError, SystemExit):
        return

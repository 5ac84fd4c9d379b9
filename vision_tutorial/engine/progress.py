"""What a training prints: a bar under a growing table on a terminal, plain lines elsewhere.

Only rank 0 prints. A display never stops a training: a closed pipe silences it, and a character
that the console cannot write (cp949, ASCII) becomes '?'.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

REDRAW_SECONDS = 0.1
WINDOW_SECONDS = 30.0
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
        self.start(0, 1, 0)

    def start(
        self, total_steps: int, steps_per_epoch: int, epochs: int, done_steps: int = 0
    ) -> None:
        """Begin; `done_steps` were done before, in the run that this one resumes."""
        self.close()
        self._total, self._per_epoch, self._epochs = total_steps, steps_per_epoch, epochs
        self._done = done_steps
        self._first: tuple[float, int] | None = None  # when the first step ended, and its number
        self._last: float | None = None  # when the last step ended; None between epochs
        self._seconds = self._images = 0.0  # of the steps of about the last half minute
        self._loss: float | None = None
        self._lr = self._drawn = 0.0
        if not self._bar or not total_steps:
            return
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True), markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._progress.add_task("", total=total_steps, completed=done_steps, status="")
        _survive(self._progress.start)
        # rich hides the cursor; a killed run could not bring it back
        _survive(lambda: self._console.show_cursor(True))
        self._draw()

    def step(self, step: int, loss: float | None, lr: float, images: int) -> None:
        """`step` steps are done now, the last with `images` images; loss None: keep the last."""
        now = time.perf_counter()
        self._loss = self._loss if loss is None else loss
        self._lr, self._done = lr, step
        self._first = self._first or (now, step)
        if self._last is not None:
            keep = math.exp(-(now - self._last) / WINDOW_SECONDS)
            self._seconds = self._seconds * keep + now - self._last
            self._images = self._images * keep + images
        self._last = now
        if now - self._drawn >= REDRAW_SECONDS:
            self._draw()

    def eta(self) -> float | None:
        """Seconds to the end at the pace since the first step, evaluations included; None as long
        as nothing was measured."""
        left = self._total - self._done
        began, first = self._first or (0.0, self._done)
        if left <= 0:
            return 0.0
        if self._done <= first:
            return None
        return left * (time.perf_counter() - began) / (self._done - first)

    def evaluating(self, done: int, total: int) -> None:
        """`done` of `total` batches are evaluated."""
        self.pause()
        if time.perf_counter() - self._drawn >= REDRAW_SECONDS or done >= total:
            self._draw(f"evaluating {done}/{total}")

    def pause(self) -> None:
        """An epoch's steps are over: what follows does not slow the images per second."""
        self._last = None

    def epoch(self, row: Mapping[str, Any], best: bool = False) -> None:
        """Print an epoch's line of metrics.jsonl; the best so far has a star, or says so."""
        values = _cells(row, self._epochs)
        if not self._bar:
            seconds = values.pop("time", None)
            words = [f"{name} {text}" for name, text in values.items() if name != "images/s"]
            words += [f"{values['images/s']} images/s"] if "images/s" in values else []
            words += [seconds] if seconds else []
            words += [f"eta {duration(self.eta())}"] if self.eta() else []
            self.say(GAP.join(words + ["best"] * best))
            return
        header = _columns(values, self._console.width - 1)
        if header != self._header:
            self._header = header
            names = GAP.join(f"{name:>{width}}" for name, width in header.items())
            self.say(" " + names, "dim")
        line = GAP.join(f"{values[name]:>{width}}" for name, width in header.items())
        self.say(("*" if best else " ") + line, "bold green" if best else "")
        self._draw()

    def say(self, message: str, style: str = "") -> None:
        """Print one line, unwrapped, above the bar; safe to call from any thread."""
        _survive(lambda: self._console.print(Text(message, style), soft_wrap=True))

    def close(self) -> None:
        """Take the bar away and leave the terminal as it was; the table stays."""
        if self._progress:
            _survive(self._progress.stop)
            self._progress = None

    def _draw(self, doing: str = "") -> None:
        if not self._progress:
            return
        self._drawn = time.perf_counter()
        speed = self._images / self._seconds if self._seconds else 0
        words = [
            f"eta {duration(self.eta())}",
            doing or (f"loss {_number('loss', self._loss)}" if self._loss is not None else ""),
            f"lr {_number('lr', self._lr)}" if self._lr else "",
            f"{speed:,.0f} images/s" if speed else "",
        ]
        epoch = min(max(self._done - 1, 0) // self._per_epoch + 1, self._epochs)
        where = f"epoch {epoch}/{self._epochs}"
        room = self._console.width - len(where) - len(" 100%") - 10
        while len(GAP.join(filter(None, words))) > room and words:
            words.pop()
        self._progress.update(
            self._progress.task_ids[0],
            description=where,
            completed=self._done,
            status=GAP.join(filter(None, words)),
        )
        _survive(self._progress.refresh)


def make_display(enabled: bool, console: Console | None = None) -> Display:
    """The display of this process; `enabled` is false on all ranks but 0, which print nothing."""
    if not enabled:
        return Display(Console(quiet=True), bar=False)
    if console is None:  # rich takes FORCE_COLOR for a terminal, which would fill a log with bars
        terminal = bool(sys.stdout and sys.stdout.isatty())
        console = Console(force_terminal=None if terminal else False)
    if hasattr(console.file, "reconfigure"):
        console.file.reconfigure(errors="replace")
    drawable = console.is_terminal and not console.is_dumb_terminal
    return Display(console, bar=drawable and console.width >= NARROWEST_BAR)


def duration(seconds: float | None) -> str:
    """Seconds in words: '12.3 s', '41 min', '2 h 05 min'."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(name: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    if name == "lr":
        return f"{value:.3g}"
    if "loss" in name:
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"
    return f"{value:.2f}"


def _cells(row: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """What is printed of a row, by column, from left to right; metrics in the row's own order."""
    cells = {"epoch": f"{row.get('epoch', '?')}/{epochs}"}
    metrics = [k for k in row if k.startswith("val/") and k.count("/") == 1 and k != "val/loss"]
    for name in ["lr", "train/loss", "val/loss", *metrics]:
        if name in row:
            cells[name] = _number(name, row[name])
    if "images_per_second" in row:
        cells["images/s"] = f"{row['images_per_second']:,.0f}"
    if "seconds" in row:
        cells["time"] = duration(row["seconds"])
    return cells


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

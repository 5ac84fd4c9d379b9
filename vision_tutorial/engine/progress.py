"""What a training shows: a bar under a growing table on a terminal, plain lines elsewhere.

Only rank 0 gets a real display. A display never stops a training: a closed pipe silences it, and
a character that the console cannot write (cp949, ASCII) becomes '?'.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

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


class Display(Protocol):
    """What the loop tells whoever watches; `step` is called every step and costs a microsecond."""

    def start(
        self, total_steps: int, steps_per_epoch: int, epochs: int, done_steps: int = 0
    ) -> None:
        """Begin; `done_steps` were done before, in the run that this one resumes."""

    def step(self, step: int, loss: float | None, lr: float, images: int) -> None:
        """`step` steps are done now, the last with `images` images; loss None: keep the last."""

    def evaluating(self, done: int, total: int) -> None:
        """`done` of `total` batches are evaluated."""

    def pause(self) -> None:
        """An epoch's steps are over: the time until the next step is not training."""

    def epoch(self, row: Mapping[str, Any], best: bool = False) -> None:
        """What came of an epoch, its line of metrics.jsonl; the next may have begun already."""

    def say(self, message: str) -> None:
        """Show one line of notice; safe to call from any thread."""

    def close(self) -> None:
        """Stop drawing and leave the terminal as it was."""


class NoDisplay:
    """The do-nothing twin: other ranks, or `verbose` off."""

    def start(
        self, total_steps: int, steps_per_epoch: int, epochs: int, done_steps: int = 0
    ) -> None:
        """Do nothing."""

    def step(self, step: int, loss: float | None, lr: float, images: int) -> None:
        """Do nothing."""

    def evaluating(self, done: int, total: int) -> None:
        """Do nothing."""

    def pause(self) -> None:
        """Do nothing."""

    def epoch(self, row: Mapping[str, Any], best: bool = False) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Pace:
    """How fast a run goes and when it ends, from the steps of about the last half minute.

    The time between two epochs (evaluation, checkpoint) is measured apart, so that it neither
    slows the images per second nor is missing from the estimate.
    """

    def __init__(self, total: int, per_epoch: int, done: int) -> None:
        self.total, self.per_epoch, self.done = total, per_epoch, done
        self._since: float | None = None  # None until the first step, and between epochs
        self._paused: float | None = None
        self._last = 0.0
        self._between: float | None = None
        self._new_steps = self._new_images = 0
        self._seconds = self._steps = self._images = 0.0

    def step(self, step: int, images: int) -> bool:
        """Count one step; True about ten times a second, when it is worth drawing again."""
        now = self._last = time.perf_counter()
        taken, self.done = step - self.done, step
        if self._since is None:
            self._resume(now)
            return True
        self._new_steps += taken
        self._new_images += images
        if now - self._since < REDRAW_SECONDS:
            return False
        self._settle(now)
        return True

    def pause(self) -> None:
        """The steps of an epoch are over; whatever follows until the next step is not training."""
        if self._since is not None:
            self._settle(self._last)
            self._since, self._paused = None, self._last

    def _resume(self, now: float) -> None:
        if self._paused is not None:
            gap = now - self._paused
            self._between = gap if self._between is None else (self._between + gap) / 2
        self._since, self._new_steps, self._new_images = now, 0, 0

    def _settle(self, now: float) -> None:
        seconds = now - (self._since or now)
        keep = math.exp(-seconds / WINDOW_SECONDS)
        self._seconds = self._seconds * keep + seconds
        self._steps = self._steps * keep + self._new_steps
        self._images = self._images * keep + self._new_images
        self._since, self._new_steps, self._new_images = now, 0, 0

    def images_per_second(self) -> float | None:
        """Images a second, or None as long as nothing was measured."""
        return self._images / self._seconds if self._images and self._seconds else None

    def eta(self) -> float | None:
        """Seconds to the end, or None as long as nothing was measured."""
        left = max(self.total - self.done, 0)
        if not left:
            return 0.0
        if not self._steps and self._between is None:
            return None
        training = left * self._seconds / self._steps if self._steps else 0.0
        return training + math.ceil(left / self.per_epoch) * (self._between or 0.0)


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them: '12.3 s', '41 min', '2 h 05 min'."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def number(name: str, value: Any) -> str:
    """A value of a row, as precise as its name deserves."""
    if not isinstance(value, (int, float)):
        return "-"
    if name == "lr":
        return f"{value:.3g}"
    if "loss" in name:
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"
    return f"{value:,.0f}" if name == "images/s" else f"{value:.2f}"


def cells(row: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """What is shown of a row, by column, from left to right; metrics in the row's own order."""
    shown = {"epoch": f"{row.get('epoch', '?')}/{epochs}"}
    metrics = [k for k in row if k.startswith("val/") and k.count("/") == 1 and k != "val/loss"]
    for name in ["lr", "train/loss", "val/loss", *metrics]:
        if name in row:
            shown[name] = number(name, row[name])
    if "images_per_second" in row:
        shown["images/s"] = number("images/s", row["images_per_second"])
    if "seconds" in row:
        shown["time"] = duration(row["seconds"])
    return shown


def _dispensable(names: list[str]) -> list[str]:
    """Columns in the order in which a narrow terminal drops them; epoch and headline stay."""
    metrics = [name for name in names if name.startswith("val/") and name != "val/loss"]
    rest = ["val/loss", "images/s", "lr", "time", "train/loss"]
    return metrics[:0:-1] + [name for name in rest if name in names]


def columns(names: list[str], width: int) -> dict[str, int]:
    """The columns that fit `width` characters, each with its own width."""
    widths = {name: max(len(name), WIDTHS.get(name, 0)) for name in names}
    for name in _dispensable(names):
        if 1 + sum(widths.values()) + len(GAP) * (len(widths) - 1) <= width:
            break
        del widths[name]
    return widths


def survive(draw: Callable[[], object]) -> None:
    """Draw; a terminal or a pipe that is gone (rich exits then) must not end the training."""
    try:
        draw()
    except (OSError, ValueError, SystemExit):
        return


def print_line(console: Console, message: str, style: str = "") -> None:
    """One line, unwrapped, above whatever is drawn."""
    survive(lambda: console.print(Text(message, style), soft_wrap=True))


class LineDisplay:
    """One plain line an epoch, for files, pipes and terminals that cannot draw."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace(0, 1, 0)
        self._epochs = 0

    def start(
        self, total_steps: int, steps_per_epoch: int, epochs: int, done_steps: int = 0
    ) -> None:
        """Begin to measure."""
        self._pace = Pace(total_steps, steps_per_epoch, done_steps)
        self._epochs = epochs

    def step(self, step: int, loss: float | None, lr: float, images: int) -> None:
        """Measure."""
        self._pace.step(step, images)

    def evaluating(self, done: int, total: int) -> None:
        """Keep the time of the evaluation apart from that of the steps."""
        self._pace.pause()

    def pause(self) -> None:
        """Keep the time between two epochs apart from that of the steps."""
        self._pace.pause()

    def epoch(self, row: Mapping[str, Any], best: bool = False) -> None:
        """Print the row."""
        shown = cells(row, self._epochs)
        last = [f"{shown.pop('images/s')} images/s"] if "images/s" in shown else []
        last += [shown.pop("time")] if "time" in shown else []
        words = [f"{name} {text}" for name, text in shown.items()] + last
        words += [f"eta {duration(self._pace.eta())}"] if self._pace.eta() else []
        self.say(GAP.join(words) + (f"{GAP}best" if best else ""))

    def say(self, message: str) -> None:
        """Print the message."""
        print_line(self._console, message)

    def close(self) -> None:
        """Nothing is open."""


class BarDisplay:
    """A bar at the bottom of a terminal, under the table of epochs that grows above it.

    It draws from the training's own thread only: loader workers are forked from there, and a
    drawing thread might hold a lock at that moment that the worker would then wait for for ever.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._pace = Pace(0, 1, 0)
        self._epochs = 0
        self._loss: float | None = None
        self._lr = 0.0
        self._header: dict[str, int] = {}
        self._drawn = 0.0

    def start(
        self, total_steps: int, steps_per_epoch: int, epochs: int, done_steps: int = 0
    ) -> None:
        """Draw the bar where the run stands."""
        self.close()
        self._pace = Pace(total_steps, steps_per_epoch, done_steps)
        self._epochs = epochs
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
        survive(self._progress.start)
        # rich hides the cursor; a killed run could not bring it back
        survive(lambda: self._console.show_cursor(True))
        self._draw()

    def step(self, step: int, loss: float | None, lr: float, images: int) -> None:
        """Move the bar, ten times a second at most."""
        if loss is not None:
            self._loss = loss
        self._lr = lr
        if self._pace.step(step, images):
            self._draw()

    def evaluating(self, done: int, total: int) -> None:
        """Say in the bar how far the evaluation is, ten times a second at most."""
        self._pace.pause()
        if time.perf_counter() - self._drawn >= REDRAW_SECONDS or done >= total:
            self._draw(f"evaluating {done}/{total}")

    def pause(self) -> None:
        """Keep the time between two epochs apart from that of the steps."""
        self._pace.pause()

    def epoch(self, row: Mapping[str, Any], best: bool = False) -> None:
        """Add a line to the table; the best so far has a star."""
        shown = cells(row, self._epochs)
        header = columns(list(shown), self._console.width)
        if header != self._header:
            self._header = header
            names = GAP.join(f"{name:>{width}}" for name, width in header.items())
            print_line(self._console, " " + names, "dim")
        line = GAP.join(f"{shown[name]:>{width}}" for name, width in header.items())
        style = "bold green" if best else ""
        print_line(self._console, ("*" if best else " ") + line, style)
        self._draw()

    def say(self, message: str) -> None:
        """Print the message above the bar."""
        print_line(self._console, message)

    def close(self) -> None:
        """Take the bar away; the table stays."""
        if self._progress is not None:
            survive(self._progress.stop)
            self._progress = None

    def _draw(self, doing: str = "") -> None:
        if self._progress is None:
            return
        self._drawn = time.perf_counter()
        epoch = min(max(self._pace.done - 1, 0) // self._pace.per_epoch + 1, self._epochs)
        where = f"epoch {epoch}/{self._epochs}"
        self._progress.update(
            self._progress.task_ids[0],
            description=where,
            completed=self._pace.done,
            status=self._status(doing, self._console.width - len(where) - len(" 100%") - 10),
        )
        survive(self._progress.refresh)

    def _status(self, doing: str, room: int) -> str:
        """The words behind the bar, as many as there is room for; the estimate stays longest."""
        speed = self._pace.images_per_second()
        words = [
            doing or (f"loss {number('loss', self._loss)}" if self._loss is not None else ""),
            f"lr {number('lr', self._lr)}" if self._lr else "",
            f"{speed:,.0f} images/s" if speed else "",
            f"eta {duration(self._pace.eta())}",
        ]
        for drop in ([], [2], [1, 2], [0, 1, 2]):
            kept = GAP.join(word for i, word in enumerate(words) if word and i not in drop)
            if len(kept) <= room:
                return kept
        return ""


def make_display(enabled: bool, console: Console | None = None) -> Display:
    """The display for this process and this output; `enabled` is false on all ranks but 0."""
    if not enabled:
        return NoDisplay()
    if console is None:  # rich takes FORCE_COLOR for a terminal, which would fill a log with bars
        terminal = bool(sys.stdout and sys.stdout.isatty())
        console = Console(force_terminal=None if terminal else False)
    if hasattr(console.file, "reconfigure"):
        console.file.reconfigure(errors="replace")
    drawable = console.is_terminal and not console.is_dumb_terminal
    return (
        BarDisplay(console) if drawable and console.width >= NARROWEST_BAR else LineDisplay(console)
    )

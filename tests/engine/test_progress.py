"""What a training prints, on a made-up terminal and clock."""

import io
import math
import os
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from vision_tutorial.engine import progress
from vision_tutorial.engine.progress import make_display

ROW = {"epoch": 3, "step": 30, "lr": 0.154, "train/loss": 3.91, "train/loss/focal": 2.0}
ROW |= {"val/loss": 4.0, "val/top1": 12.4, "val/top5": 30.0}
ROW |= {"images_per_second": 1240.3, "seconds": 12.3, "seconds_data": 0.1}


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until a test moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def make_console(width=80, encoding="utf-8", terminal=True, term="xterm-256color"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    options = {"file": stream, "width": width, "height": 25, "legacy_windows": False}
    return Console(force_terminal=terminal, _environ={"TERM": term}, **options)


def written(console):
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.file.encoding)


def screen(text):
    """What a terminal shows after `text`: returns, line feeds, cursor up and erase line."""
    lines, at, column = [""], 0, 0
    for token in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            at, column = at + 1, 0
            lines += [""] * (at >= len(lines))
        elif token.endswith("A"):
            at -= int(token[2:-1])
        elif token.endswith("K"):
            lines[at] = ""
        elif not token.startswith("\x1b"):
            lines[at] = lines[at][:column].ljust(column) + token + lines[at][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


def play(display, clock):
    """A run of two epochs of ten steps of a second each, with two seconds between epochs."""
    display.start(20, 10, 2)
    for step in range(1, 21):
        clock.seconds += 1.0
        display.step(step, 4.0, 0.1543, 64.0)
        if step % 10 == 0:
            for done in (1, 2):
                clock.seconds += 1.0
                display.evaluating(done, 2)
            display.epoch(ROW | {"epoch": step // 10}, best=step == 10)
    display.close()


@pytest.mark.parametrize("done", [0, 950])
def test_the_estimate_counts_evaluations_but_not_the_first_step(clock, done):
    console = make_console(terminal=False)
    display = make_display(True, console)
    display.start(1000, 100, 10, done)  # a resumed run counts its own steps only
    display.epoch(ROW)
    clock.seconds += 60.0  # while it compiles
    for step in range(done + 1, done + 12):
        display.step(step, 4.0, 0.1, 64.0)
        clock.seconds += 20.5 if step % 5 == 0 else 0.5
    display.step(done + 12, 4.0, 0.1, 64.0)
    display.epoch(ROW)
    display.step(1000, 4.0, 0.1, 64.0)
    display.epoch(ROW)
    left = progress.duration((988 - done) * (11 * 0.5 + 40) / 11)
    before, during, after = screen(written(console))
    assert f"eta {left}" in during and "eta" not in before and "eta" not in after


def test_one_plain_line_an_epoch_without_a_terminal(clock):
    console = make_console(terminal=False)
    display = make_display(True, console)
    play(display, clock)
    display.say("[red]" + "x" * 500)
    shared = "lr 0.154  train/loss 3.9100  val/loss 4.0000  val/top1 12.40  val/top5 30.00"
    assert [line for line in screen(written(console)) if "━" not in line] == [
        f"epoch 1/2  {shared}  images/s 1,240  time 12.3 s  eta 12s  best",
        f"epoch 2/2  {shared}  images/s 1,240  time 12.3 s",
        "[red]" + "x" * 500,
    ]


@pytest.mark.parametrize(
    "width, names",
    [
        (86, "epoch lr train/loss val/loss val/top1 val/top5 images/s time"),
        (78, "epoch lr train/loss val/loss val/top1 images/s time"),
        (40, "epoch val/loss val/top1 time"),
    ],
)
def test_only_the_table_and_the_notices_stay_on_the_screen(clock, width, names):
    console = make_console(width=width)
    display = make_display(True, console)
    display.say("before")
    play(display, clock)
    before, header, *rows = [line for line in screen(written(console)) if "━" not in line]
    assert before == "before" and header.split() == names.split(), "a narrow one has fewer columns"
    assert all(len(line) <= width for line in (header, *rows)) and "12.40" in rows[0]
    assert [row[0] for row in rows] == ["*", " "]  # the best has a star
    row = {"epoch": 3, "train/loss": 12345.6, "val/loss": math.nan, "val/iou": None, "val/iou/a": 1}
    display.epoch(row | {"images_per_second": 12.0, "seconds": 3.14})
    header, line = screen(written(console))[-2:]  # other columns bring a new header
    if width == 86:
        assert header.split() == "epoch train/loss val/loss val/iou images/s time".split()
        assert line.split() == "3/2 1.23e+04 nan - 12 3.1 s".split() and len(header) == len(line)
    assert re.search(r"\x1b\[[0-9;]*(?:3[0-7]|38;[0-9;]+)m", written(console)), "in colour"


@pytest.mark.parametrize("width", [40, 64, 200])
def test_the_bar_is_one_line_of_any_terminal(clock, width):
    console = make_console(width=width)
    display = make_display(True, console)
    display.start(20_000, 100, 200, done=100)
    for step in range(101, 1_101):
        clock.seconds += 0.02
        display.step(step, 4.0, 1.234e-5, 1600.0)
    (line,) = screen(written(console))
    assert len(line) <= width
    assert "epoch 11/200" in line and "5%" in line and "━" in line and "eta 6m18s" in line
    assert width < 64 or "loss 4.0000" in line
    assert width < 200 or "loss 4.0000  lr 1.23e-05  1,600 images/s" in line
    text = written(console)
    assert 160 <= text.count("epoch") <= 202  # ten times a second, 20 seconds
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "a kill leaves the cursor visible"
    display.evaluating(7, 7)
    assert "epoch 11/200" in screen(written(console))[0]
    assert width < 64 or "evaluating 7/7" in screen(written(console))[0]
    assert width < 200 or "evaluating 7/7  lr 1.23e-05" in screen(written(console))[0]
    display.close()


@pytest.mark.parametrize("options", [{}, {"terminal": False}, {"term": "dumb"}, {"width": 39}])
def test_the_output_chooses_the_display(clock, capfd, options):
    console = make_console(**options)
    play(make_display(True, console), clock)
    assert ("━" in written(console)) == (not options)
    play(make_display(False), clock)
    assert capfd.readouterr() == ("", "")


def test_a_pipe_is_no_terminal_whatever_force_color_says(clock, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    play(make_display(True), clock)
    assert sys.stdout.getvalue().startswith("epoch 1/2  lr 0.154")
    monkeypatch.setattr("sys.stdout", None)  # pythonw
    make_display(True).say("nobody hears")


def test_no_character_is_too_much_for_a_console():
    console = make_console(encoding="cp949")
    make_display(True, console).say("학습 시작 · café ★ 🙂 \udcff end")
    assert "학습" in written(console) and "end" in written(console)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_closed_pipe_silences_but_does_not_stop(clock, monkeypatch, tmp_path, is_terminal):
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w")
    console = Console(file=file, force_terminal=is_terminal, width=80, legacy_windows=False)
    with open(tmp_path / "stdout", "w") as stdout:  # rich turns its descriptor to /dev/null
        monkeypatch.setattr("sys.stdout", stdout)
        display = make_display(True, console)
        display.say("nobody")
        play(display, clock)
    with pytest.raises(BrokenPipeError):
        file.close()

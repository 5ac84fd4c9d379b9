import io
import os
import re
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from vision_tutorial.engine import progress
from vision_tutorial.engine.progress import Pace, make_display

ROW = {
    "epoch": 3,
    "step": 30,
    "lr": 0.154,
    "train/loss": 3.91,
    "train/loss/focal": 2.0,
    "val/loss": 4.0,
    "val/top1": 12.4,
    "val/top5": 30.0,
    "images_per_second": 1240.3,
    "seconds": 12.3,
    "seconds_data": 0.1,
}


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until a test moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def make_console(width=80, encoding="utf-8", terminal=True, **environment):
    environment.setdefault("TERM", "xterm-256color")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(
        file=stream,
        force_terminal=terminal,
        width=width,
        height=25,
        legacy_windows=False,
        _environ=environment,
    )


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


def play(display, clock, epochs=2):
    """A run of `epochs` epochs of ten steps of a second each, with two seconds between epochs."""
    display.start(10 * epochs, 10, epochs)
    for step in range(1, 10 * epochs + 1):
        clock.seconds += 1.0
        display.step(step, 4.0 if step % 5 == 1 else None, 0.1543, 64)
        if step % 10 == 0:
            for done in (1, 2):
                clock.seconds += 1.0
                display.evaluating(done, 2)
            display.epoch(ROW | {"epoch": step // 10}, best=step == 10)
    display.close()


# The estimate


@pytest.mark.parametrize("done", [0, 950])
def test_the_estimate_is_exact_at_a_steady_pace(clock, done):
    pace = Pace(total=1000, per_epoch=100, done=done)  # a resumed run counts its own steps only
    assert pace.eta() is None and pace.images_per_second() is None
    for step in range(done + 1, done + 11):
        clock.seconds += 0.5
        pace.step(step, 64)
    assert pace.eta() == pytest.approx((990 - done) * 0.5)
    assert pace.images_per_second() == pytest.approx(128)


def test_evaluations_to_come_are_in_the_estimate_but_not_in_the_images_per_second(clock):
    pace = Pace(total=400, per_epoch=100, done=0)
    for step in range(1, 202):
        clock.seconds += 0.5
        pace.step(step, 64)
        if step % 100 == 0:
            pace.pause()
            clock.seconds += 20.0
            pace.pause()
    assert pace.images_per_second() == pytest.approx(128)
    # the gap is seen at the next step, so it holds that step's half second as well
    assert pace.eta() == pytest.approx(199 * 0.5 + 2 * 20.5)


def test_the_estimate_follows_a_change_of_pace(clock):
    pace = Pace(total=10_000, per_epoch=10_000, done=0)
    for step in range(1, 1001):
        clock.seconds += 0.1 if step < 500 else 0.4
        pace.step(step, 1)
    assert pace.eta() == pytest.approx(9000 * 0.4, rel=0.01)


def test_nothing_is_left_at_the_end(clock):
    assert Pace(total=10, per_epoch=5, done=10).eta() == 0.0


# Words and columns


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.04, "0.0 s"),
        (12.34, "12.3 s"),
        (99.94, "99.9 s"),
        (99.96, "2 min"),
        (2460, "41 min"),
        (7500, "2 h 05 min"),
        (360000, "100 h 00 min"),
        (None, "?"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_durations(seconds, words):
    assert progress.duration(seconds) == words


@pytest.mark.parametrize("width", range(40, 121))
def test_the_table_fits_and_keeps_what_matters(width):
    names = "epoch lr train/loss val/loss val/top1 val/top5 images/s time".split()
    kept = progress.columns(names, width)
    assert 1 + sum(kept.values()) + 2 * (len(kept) - 1) <= width
    assert {"epoch", "val/top1"} <= set(kept)
    assert list(kept) == [name for name in names if name in kept]
    assert width < 80 or list(kept) == names


# Plain lines


def test_one_plain_line_an_epoch(clock):
    console = make_console(terminal=False)
    play(make_display(True, console), clock, epochs=2)
    shared = "lr 0.154  train/loss 3.9100  val/loss 4.0000  val/top1 12.40  val/top5 30.00"
    assert written(console).splitlines() == [
        f"epoch 1/2  {shared}  1,240 images/s  12.3 s  eta 10.0 s  best",
        f"epoch 2/2  {shared}  1,240 images/s  12.3 s",
    ]


def test_rows_with_odd_values_and_messages_that_look_like_markup():
    console = make_console(terminal=False)
    display = make_display(True, console)
    display.epoch({"epoch": 1, "lr": 1e-6, "train/loss": 12345.6, "val/loss": float("nan")})
    display.epoch({"epoch": 2, "val/top1": None, "val/iou": 40.0, "val/iou/cat": 1.0})
    display.epoch({})
    display.say("[red]" + "x" * 500)
    display.close()
    assert written(console).splitlines() == [
        "epoch 1/0  lr 1e-06  train/loss 1.23e+04  val/loss nan",
        "epoch 2/0  val/top1 -  val/iou 40.00",
        "epoch ?/0",
        "[red]" + "x" * 500,
    ]


# The bar


def test_only_the_table_and_the_notices_stay_on_the_screen(clock):
    console = make_console()
    display = make_display(True, console)
    display.say("before")
    display.start(20, 10, 2)
    display.step(1, 4.0, 0.1, 64)
    display.say("a notice")
    play(display, clock)
    display.say("after")
    shown = "0.154      3.9100    4.0000     12.40     30.00     1,240   12.3 s"
    assert screen(written(console)) == [
        "before",
        "a notice",
        "   epoch        lr  train/loss  val/loss  val/top1  val/top5  images/s     time",
        f"*    1/2     {shown}",
        f"     2/2     {shown}",
        "after",
    ]


@pytest.mark.parametrize("width", [40, 50, 64, 80, 200])
def test_the_bar_is_one_line_of_any_terminal(clock, width):
    console = make_console(width=width)
    display = make_display(True, console)
    display.start(20_000, 100, 200)
    for step in range(1, 151):
        clock.seconds += 2.0
        display.step(step, 4.0, 1.234e-5, 4096)
    (line,) = screen(written(console))
    assert len(line) <= width
    assert "epoch 2/200" in line and "1%" in line and "━" in line
    assert width < 50 or line.endswith("eta 11 h 02 min")
    assert width < 80 or "loss 4.0000" in line
    assert width < 200 or "loss 4.0000  lr 1.23e-05  2,048 images/s" in line
    display.evaluating(7, 7)
    assert width < 64 or "evaluating 7/7" in screen(written(console))[0]
    display.close()


def test_a_resumed_bar_starts_where_the_run_stands(clock):
    console = make_console()
    display = make_display(True, console)
    display.start(100, 10, 10, done_steps=50)
    assert " 50% " in screen(written(console))[0]
    clock.seconds += 1.0
    display.step(51, None, 0.1, 8)
    assert "epoch 6/10" in screen(written(console))[0]
    display.close()


def test_the_bar_is_drawn_ten_times_a_second_at_most(clock):
    console = make_console()
    display = make_display(True, console)
    display.start(10_000, 10_000, 1)
    for step in range(1, 10_001):
        clock.seconds += 0.001
        display.step(step, None, 0.1, 8)
    assert 90 <= written(console).count("epoch 1/1") <= 102
    display.close()


def test_a_new_column_brings_a_new_header(clock):
    console = make_console()
    display = make_display(True, console)
    display.start(20, 10, 2)
    display.epoch({"epoch": 1, "train/loss": 1.0})
    display.epoch({"epoch": 2, "train/loss": 1.0, "val/iou": 3.0})
    display.close()
    assert [line.split() for line in screen(written(console))] == [
        ["epoch", "train/loss"],
        ["1/2", "1.0000"],
        ["epoch", "train/loss", "val/iou"],
        ["2/2", "1.0000", "3.00"],
    ]


def test_notices_from_other_threads_come_whole():
    console = make_console()
    display = make_display(True, console)
    threads = threading.active_count()
    display.start(10_000, 10_000, 1)
    assert threading.active_count() == threads, "drawn by the training's own thread"
    speakers = [
        threading.Thread(target=lambda n=n: [display.say(f"notice {n} {i}") for i in range(50)])
        for n in range(3)
    ]
    for thread in speakers:
        thread.start()
    for step in range(1, 2001):
        display.step(step, 1.0, 0.1, 8)
    for thread in speakers:
        thread.join()
    display.close()
    said = [f"notice {n} {i}" for n in range(3) for i in range(50)]
    assert sorted(screen(written(console))) == sorted(said)


# Which display, and consoles that are in the way


def test_nothing_is_shown_where_display_is_off(clock, capfd):
    display = make_display(False)
    play(display, clock)
    display.say("hello")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "bar, options",
    [
        (True, {}),
        (False, {"terminal": False}),
        (False, {"TERM": "dumb"}),
        (False, {"width": 39}),
    ],
)
def test_the_output_chooses_the_display(clock, bar, options):
    console = make_console(**options)
    play(make_display(True, console), clock)
    assert ("━" in written(console)) == bar


def test_a_pipe_is_no_terminal_whatever_force_color_says(clock, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stdout", pipe)
    monkeypatch.setenv("FORCE_COLOR", "1")
    play(make_display(True), clock)
    assert pipe.getvalue().startswith("epoch 1/2  lr 0.154")
    monkeypatch.setattr("sys.stdout", None)  # pythonw
    make_display(True).say("nobody hears")


@pytest.mark.parametrize("colour", [True, False])
def test_no_color_is_respected(clock, colour):
    console = make_console(**({} if colour else {"NO_COLOR": "1"}))
    play(make_display(True, console), clock)
    coloured = re.findall(r"\x1b\[[0-9;]*(?:3[0-7]|38;[0-9;]+)m", written(console))
    assert bool(coloured) == colour


@pytest.mark.parametrize("encoding", ["cp949", "ascii", "cp1252"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_character_is_too_much_for_a_console(clock, encoding, is_terminal):
    console = make_console(encoding=encoding, terminal=is_terminal)
    display = make_display(True, console)
    display.say("학습 시작 · café ★ 🙂 \udcff end")
    play(display, clock)
    text = written(console)
    assert "end" in text and "12.40" in text
    assert ("학습" in text) == (encoding == "cp949")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_closed_pipe_silences_but_does_not_stop(clock, monkeypatch, tmp_path, is_terminal):
    reader, writer = os.pipe()
    os.close(reader)
    console = Console(
        file=os.fdopen(writer, "w"), force_terminal=is_terminal, width=80, legacy_windows=False
    )
    with open(tmp_path / "stdout", "w") as stdout:  # rich turns its descriptor to /dev/null
        monkeypatch.setattr("sys.stdout", stdout)
        display = make_display(True, console)
        display.say("nobody")
        play(display, clock)
    with pytest.raises(BrokenPipeError):  # it really was broken: this flush is ours
        console.file.write("x")
        console.file.flush()
    with pytest.raises(BrokenPipeError):
        console.file.close()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_closed_stream_silences_but_does_not_stop(clock, is_terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=80, legacy_windows=False)
    display = make_display(True, console)
    stream.close()
    display.say("nobody")
    play(display, clock)


def test_a_killed_run_leaves_the_cursor_visible(clock):
    console = make_console()
    display = make_display(True, console)
    display.start(10, 10, 1)
    display.step(1, 1.0, 0.1, 8)
    text = written(console)  # no close: this is what SIGKILL leaves
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    display.close()

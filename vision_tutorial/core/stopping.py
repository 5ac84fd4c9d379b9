"""Signals that ask a command to end: raised where it is, or noted where it looks for them itself.

A command that cannot hear, since it waits outside of Python, or that is asked twice, is ended.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # the last is SLURM's early warning
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# Seconds that a command has which did not hear the signal, and one that did, to be gone.
DEAF, LONG = 5.0, 30.0
AGAIN = 1.0  # seconds after which another signal counts as a second; some send it twice at once

last_words: list[Callable[[], object]] = []  # called before a process is ended from here


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__()
        self.code = 130 if number == signal.SIGINT else 143


class StopSignal:
    """Remembers the first signal that came while it was listening."""

    signal: int | None = None
    current: "StopSignal | None" = None  # who listens
    twice_is_enough = False  # whether a second signal ends the process at once, with `last_words`

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.signal = number

    def signalled(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Take signals for as long as this lasts; of one that came before, raise Stopped."""
        if _guard.heard:
            raise Stopped(_guard.heard)
        before, StopSignal.current = StopSignal.current, self
        try:
            with _handled_by(self.receive):
                yield self
        finally:
            StopSignal.current = before
            _guard.asked.clear()


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # nohup's
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


class _Guard:
    """Sees, on a thread, which signals came, and whether the process that torchrun started lost it.

    Python's own handlers run when the main thread is back in Python; this one need not wait.
    """

    def __init__(self) -> None:
        self.active, self.heard, self.asked = False, 0, list[float]()
        self.waiting = 0  # a signal that came where nothing can be raised

    def raise_once(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second signal must not interrupt the tidying up; and what is raised
        within an import, or where Python ignores it, ends as another error or as none."""
        if self.heard:
            return
        while frame and not self.waiting:
            code, frame = frame.f_code, frame.f_back
            if code.co_filename.startswith("<frozen importlib") or code.co_name == "__del__":
                self.waiting = number
                return
        self.heard = number
        raise Stopped(number)

    def watch(self, pipe: socket.socket) -> None:
        """Until the other end of `pipe`, which the system writes signals to, is closed."""
        parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        again = False  # whether one was sent once more, and is not seen yet
        while True:
            ready = select.select([pipe], [], [], 0.1 if parent or self.asked else None)[0]
            came = pipe.recv(64) if ready else b"\0"
            if not came:
                pipe.close()
                return
            now = time.monotonic()
            numbers = [number for number in came if number in SIGNALS]
            self.asked += [now for _ in numbers[again:]]
            again = again and not numbers
            if self.waiting and not again and hasattr(signal, "pthread_kill"):
                number, self.waiting, again = self.waiting, 0, True
                signal.pthread_kill(threading.main_thread().ident, number)
            if parent and os.getppid() != parent:
                parent = None
                os.kill(os.getpid(), signal.SIGTERM)
            if self.asked and self.over(now):
                end()

    def over(self, now: float) -> bool:
        """Whether the process had time enough."""
        twice, listener = self.asked[-1] - self.asked[0] > AGAIN, StopSignal.current
        if listener:
            return twice and listener.twice_is_enough
        return twice or now - self.asked[0] > (LONG if self.heard else DEAF)


_guard = _Guard()


def end() -> None:
    """End this process and what it started, with its last words."""
    import psutil

    for words in last_words:
        with suppress(Exception):
            words()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.terminate()
    os._exit(143)


@contextmanager
def stoppable() -> Iterator[None]:
    """A signal raises Stopped here, in the main thread of a command."""
    if _guard.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    _guard.__init__()
    _guard.active = True
    watcher = threading.Thread(target=_guard.watch, args=(theirs,), name="signals", daemon=True)
    watcher.start()
    try:
        with _handled_by(_guard.raise_once):
            yield
    finally:
        _guard.active = False
        signal.set_wakeup_fd(before)
        ours.close()
        watcher.join(AGAIN)  # it sees that at once, and leaves nothing open


def _forking(how: int) -> None:
    """Keep signals that come while this process forks until that is done, or take them again."""
    if _guard.active:
        signal.pthread_sigmask(how, SIGNALS)


def _forked() -> None:
    """A forked process has no thread that watches, must not wake its parent's, and ends at a signal
    as any other: its parent does the tidying up."""
    if _guard.active:
        last_words.clear()
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's
                signal.signal(number, signal.SIG_DFL)
        _forking(signal.SIG_UNBLOCK)
        _guard.active = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _forking(signal.SIG_BLOCK),
        after_in_parent=lambda: _forking(signal.SIG_UNBLOCK),
        after_in_child=_forked,
    )

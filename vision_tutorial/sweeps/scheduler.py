"""Trainings on a machine's seats, in order, each as soon as a seat is free: what a shift is."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..core.atomic import storage
from . import children
from .children import Child, Seat, Stop
from .trials import busy

TICK = 0.25  # seconds between two looks at the trainings


class Running(NamedTuple):
    """A trial that is being trained. before: how it stood when it began."""

    trial: Any
    seat: Seat
    child: Child
    began: float
    before: Any

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began


class Seated:
    """Starts trials on free seats and takes note of how they end; what a trial is, others say."""

    def __init__(self, seats: Sequence[Seat], stop: Stop):
        self.jobs, self.free, self.stop = len(seats), list(seats), stop
        self.waiting: list[Any] = []
        self.running: list[Running] = []
        self.patient = False  # we said that we wait for others

    def work(self, trials: Sequence[Any]) -> None:
        """Until every trial has ended, or nothing more is to begin and those running have."""
        self.waiting = list(trials)
        with self.none_left():
            while self.running or (self.waiting and not self.over()):
                while self.free and not self.over() and (trial := self.next()):
                    self.start(trial)
                for one in [one for one in self.running if one.child.poll() is not None]:
                    self.running.remove(one)
                    self.free.append(one.seat)
                    self.end(one)
                self.look()
                time.sleep(TICK)

    @contextmanager
    def none_left(self) -> Iterator[None]:
        """No training outlives us when we fail."""
        try:
            yield
        finally:
            for one in self.running:
                one.child.terminate()
                one.child.wait()

    def next(self) -> Any | None:
        """The first trial that waits and that no other process trains.

        Another process may: a child of a start that was killed takes a moment to save.
        """
        found = next((trial for trial in self.waiting if not busy(self.run_folder(trial))), None)
        if found:
            self.waiting.remove(found)
        elif self.waiting and not self.running and not self.patient:
            self.patient = True
            self.say_waiting()
        return found

    def seat(self, trial: Any, command: Sequence[str], log: Path, before: Any) -> None:
        """Begin its training, or go on with it, on a free seat."""
        seat = self.free.pop(0)
        with storage(log), log.open("ab") as output:
            child = children.start(command, seat, output)
        self.running.append(Running(trial, seat, child, time.monotonic(), before))
        self.stop.watch(child)

    # -- what a shift has of its own ---------------------------------------------------------------

    def over(self) -> bool:
        """Whether nothing more is to begin."""
        return self.stop.asked

    def run_folder(self, trial: Any) -> Path:
        """What its training leaves is here."""
        raise NotImplementedError

    def start(self, trial: Any) -> None:
        """`seat` it, unless there is nothing left to do."""
        raise NotImplementedError

    def end(self, one: Running) -> None:
        """Take note of how it ended."""
        raise NotImplementedError

    def look(self) -> None:
        """Several times a second."""

    def say_waiting(self) -> None:
        """That others train all that waits."""
        raise NotImplementedError

"""Who may ask a training to stop: a signal, a time limit, a step limit. Asking only sets a flag."""

import os
import time
from types import FrameType

from ..core.errors import ExitCode
from ..core.stop import StopSignal


class StopRequest(StopSignal):
    """Polled between steps. A second signal, a second or more after the first, does not wait."""

    def __init__(self, minutes: float | None = None, steps: int | None = None, start: int = 0):
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.last_step = start + steps if steps else None
        self.since = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        now = time.monotonic()
        if self.signal is not None and now - self.since > 1:  # schedulers send some twice at once
            os._exit(int(ExitCode.PREEMPTED))
        self.signal, self.since = number, now

    def asked(self, step: int) -> bool:
        """Whether the step about to be taken (counted from 0) should be the last."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        return late or self.signalled() or self.reached(step + 1)

    def reached(self, steps: int) -> bool:
        """Whether `steps` steps are as many as were asked for; the same on all processes."""
        return self.last_step is not None and steps >= self.last_step

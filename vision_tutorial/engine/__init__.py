"""The loop and what surrounds it: processes, checkpoints, tracking, display."""

from ..core.tracking import NoTracker, make_tracker
from .checkpoint import Checkpoints, NoCheckpoints, load_weights
from .crew import Crew, NoCrew, restore, summarise
from .distributed import Distributed
from .ema import Ema, NoEma, decay_at
from .fit import Plan, Progress, fit
from .infer import Evaluation, Timed, evaluate, rounds_of
from .profiling import profiled
from .signals import StopRequest
from .step import Learner, fitting_parts
from .stopwatch import BareLoop, TimedTraining, bare_forward, seen_by, settler
from .terminal import make_display
from .views import looking

__all__ = [
    "BareLoop",
    "Checkpoints",
    "Crew",
    "Distributed",
    "Ema",
    "Evaluation",
    "Learner",
    "NoCheckpoints",
    "NoCrew",
    "NoEma",
    "NoTracker",
    "Plan",
    "Progress",
    "StopRequest",
    "Timed",
    "TimedTraining",
    "bare_forward",
    "decay_at",
    "evaluate",
    "fit",
    "fitting_parts",
    "load_weights",
    "looking",
    "make_display",
    "make_tracker",
    "profiled",
    "restore",
    "rounds_of",
    "seen_by",
    "settler",
    "summarise",
]

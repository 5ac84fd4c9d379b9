"""The loop and what surrounds it: processes, checkpoints, tracking, display."""

from .checkpoint import Checkpoints, NoCheckpoints, load_weights
from .distributed import Distributed
from .ema import Ema, NoEma, decay_at
from .evaluation import Evaluation, Timed, evaluate, rounds_of
from .loop import Plan, Progress, fit
from .profiling import profiled
from .progress import make_display
from .recorder import NoRecorder, Recorder, restore, summarise
from .signals import StopRequest
from .step import TrainingState, fitting_parts
from .tta import looking

__all__ = [
    "Checkpoints",
    "Recorder",
    "Distributed",
    "Ema",
    "Evaluation",
    "TrainingState",
    "NoCheckpoints",
    "NoRecorder",
    "NoEma",
    "Plan",
    "Progress",
    "StopRequest",
    "Timed",
    "decay_at",
    "evaluate",
    "fit",
    "fitting_parts",
    "load_weights",
    "looking",
    "make_display",
    "profiled",
    "restore",
    "rounds_of",
    "summarise",
]

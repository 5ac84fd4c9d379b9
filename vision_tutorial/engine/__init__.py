"""The loop and what surrounds it: processes, checkpoints, tracking, display."""
# ruff: noqa: F401 (these names are offered, not used)

from .checkpoint import Checkpoints
from .distributed import Distributed
from .ema import Ema, decay_at
from .evaluation import Evaluation, Timed, evaluate, rounds_of
from .loop import Plan, Progress, Recorder, StopRequest, fit
from .profiling import profiled
from .progress import make_display
from .recorder import RunRecorder, restore, summarise
from .step import TrainingState, fit_accumulation_steps
from .tta import prediction_function
from .weights import load_weights, put_weights, weights_path

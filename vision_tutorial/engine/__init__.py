"""The loop and what surrounds it: processes, checkpoints, tracking, display."""
# ruff: noqa: F401 (these names are offered, not used)

from .checkpoint import Checkpoints
from .distributed import Distributed
from .evaluation import Evaluation, evaluate, evaluating
from .loop import Plan, Progress, Recorder, StopRequest, fit
from .memory import fit_memory
from .profiling import profiled
from .progress import make_display
from .recorder import RunRecorder, restore, summarise
from .step import ModelEma, TrainingState
from .tta import prediction_function
from .weights import load_weights, put_weights, weights_path

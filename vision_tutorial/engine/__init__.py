"""The loop and what surrounds it: processes, checkpoints, tracking, display."""
# ruff: noqa: F401 (these names are offered, not used)

from .checkpoint import Checkpoints, candidates, load_weights, put_weights, weights_path
from .distributed import Distributed
from .loop import Evaluation, Plan, Progress, Recorder, StopRequest, evaluate, evaluating, fit
from .profiling import fit_memory, profiled
from .progress import make_display
from .recorder import RunRecorder, restore, summarise
from .step import ModelEma, TrainingState
from .tta import prediction_function

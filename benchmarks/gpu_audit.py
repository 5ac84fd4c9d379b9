"""Does a step wait for the host? What the training loop does on a GPU, as one JSON object.

    python benchmarks/gpu_audit.py RECIPE [--seconds S] [key=value …]

first_step_s: from the start of the first step to its end, compiling included. images_s: over S
seconds. waits_a_step: by line of ours, how often the host waited where nobody asked it to.
launches_a_step and gpu_busy, the share of the time in which a kernel runs: from torch's profiler.
On a CPU it goes through the same steps, for a rehearsal; then there is nothing to count.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from vision_tutorial.benchmarking.bare_loop import ENDLESS, TimedTraining
from vision_tutorial.core.errors import run_main
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder

PROFILED = 0.5  # seconds: a trace of more takes long to read


def steps_of(timed: TimedTraining, seconds: float) -> float:
    """How many steps were counted in so many seconds of training; others warmed up."""
    return timed.run(seconds).images / timed.recipe.batch_size


def waits(timed: TimedTraining, seconds: float) -> dict[str, float]:
    """Synchronisations a step, by the line of the package that caused them."""
    found: Counter[str] = Counter()

    def see(*_: Any) -> None:
        ours = [f for f in traceback.extract_stack() if "vision_tutorial" in f.filename]
        name = ours[-1].filename.rpartition("vision_tutorial/")[2] if ours else "elsewhere"
        found[f"{name}:{ours[-1].lineno} {ours[-1].line}" if ours else name] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = see
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps = steps_of(timed, seconds)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # what the measuring itself waits for, once a run, is no part of a step
    return {line: round(n / steps, 2) for line, n in found.most_common() if n >= steps / 2}


def kernels(timed: TimedTraining) -> tuple[float, float]:
    """Launches a step, and in which share of the time from the first to the last a kernel ran."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        steps = steps_of(timed, PROFILED) + 1  # one warms up
    on_gpu = [e.time_range for e in profile.events() if e.device_type == DeviceType.CUDA]
    spans = sorted((span.start, span.end) for span in on_gpu)
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return len(spans) / steps, busy / (end - spans[0][0])


def work(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_intermixed_args(argv)
    recipe = load(args.recipe, [*args.overrides, *ENDLESS]).recipe
    with tempfile.TemporaryDirectory() as folder:
        run = run_folder.new_run(Path(folder), recipe.name)
        timed = TimedTraining(recipe, run, lambda line: print(line, file=sys.stderr))
        began = time.perf_counter()
        timed.run(0)
        first = time.perf_counter() - began
        timed.run(args.seconds / 2)
        images, seconds = timed.run(args.seconds)
        found: dict[str, Any] = {
            "recipe": [args.recipe, *args.overrides],
            "torch": torch.__version__,
            "async_steps": timed.training.async_steps,
            "first_step_s": round(first, 2),
            "images_s": round(images / seconds, 1),
        }
        if timed.place.device.type == "cuda":
            found["waits_a_step"] = waits(timed, args.seconds / 2)
            found["launches_a_step"], found["gpu_busy"] = kernels(timed)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: work(sys.argv[1:])))

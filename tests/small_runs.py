"""Small trainings in this process, and what they leave behind."""

import itertools
import math
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from forked import Ranks
from torch import nn

from vision_tutorial import train as command
from vision_tutorial.runs import run_folder

SMALL = [
    "dataset={shapes: {train: 64, test: 30, size: 16}}",
    "batch_size=16",
    "epochs=2",
    "threads=1",
]
DEBUG = ["recipes/debug.yaml", "batch_size=16", "eval_batch_size=10", "threads=1"]


def shapes(train: int = 128, test: int = 30) -> str:
    """The made-up data set of so many images of 16 x 16 pixels."""
    return f"dataset={{shapes: {{train: {train}, test: {test}, size: 16}}}}"


def train(folder: Path, *words: str, code: int = 0) -> Path:
    """Train in `folder`, or go on with the run there, as `words` say: the run folder."""
    started = [str(run) for run in folder.glob("*/run")]
    more = [word for word in words if not started or word.startswith(("--", *"0123456789"))]
    more += [] if started else ["--runs", str(folder), "--id", "run"]
    assert command.main([*started, *more, "--quiet"]) == code
    (run,) = folder.glob("*/run")
    return run


def answered(capfd: Any, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `train`, in a process of its own."""
    ranks = Ranks(1, lambda rank: command.main([str(word) for word in words]))
    (code,) = ranks.join()
    out, err = capfd.readouterr()
    return code, out, err


def one_line(err: str) -> str:
    """The single line that a person sees of an error."""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def left(run: Path) -> tuple[dict[str, bytes], list[dict], str]:
    """The last checkpoint's tensors, the rows without what is measured in time, its name."""
    last = max((run / "ckpt").glob("step-*"))
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    rows = run_folder.read_rows(run / "metrics.jsonl")
    timed = set(run_folder.TIMED)
    return files, [{k: v for k, v in row.items() if k not in timed} for row in rows], last.name


class Spoilt(nn.Module):
    """A criterion whose total is no number at some of its calls, counted from 0."""

    def __init__(self, inner: nn.Module, bad: Container[int] = range(10**6)):
        super().__init__()
        self.inner, self.bad, self.calls = inner, bad, itertools.count()
        self.begin_step = inner.begin_step

    def forward(self, *given: torch.Tensor) -> tuple:
        total, parts = self.inner(*given)
        return total * (math.nan if next(self.calls) in self.bad else 1.0), parts

"""Measurements of whole processes: from the command to the first step, and one beside two."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.atomic import read_json
from ..core.errors import UserError
from ..core.processes import Ended, last_line, run_command
from ..recipe.loading import Loaded, load
from ..runs import run_folder as runs
from .timed_pairs import Pair, Sample, Side, in_turn
from .timm_baseline import rate_of_log

_MOST_STARTS = 3  # pairs of whole processes; each takes the seconds of an import
_EPOCHS = 3  # of a scaling run; the first warms up
_SMALL_SPLIT = 200  # images that a scaling run evaluates on, so that it ends soon


@dataclass(frozen=True)
class Job:
    """What all measurements of one bench share; it travels into child processes."""

    path: str
    overrides: tuple[str, ...]
    trusted: bool
    rounds: int
    seconds: float
    folder: Path  # of run folders, gone at the end
    script: Path | None = None  # timm's train.py

    def load(self, *more: str) -> Loaded:
        """The recipe with some more values set."""
        return load(self.path, [*self.overrides, *more])

    def training(self, name: str, *more: str) -> list[str]:
        """The arguments of `python` that train the recipe in the folder `name`."""
        trust = ["--trust-imports"] if self.trusted else []
        words = ["-m", "vision_tutorial.train", self.path, *self.overrides, "wandb.mode=disabled"]
        return [*words, *more, *trust, "--quiet", "--runs", str(self.folder), "--id", name]

    def run_folder(self, name: str) -> Path:
        """The run folder of `training(name)`."""
        return self.folder / self.load().recipe.name / name

    def command(
        self, name: str, words: Sequence[str], sign: Callable[[], bool] = lambda: False
    ) -> Ended:
        """Run python on these words; UserError with the last line of its output if it fails."""
        log = self.folder / f"{name}.log"
        ended = run_command([sys.executable, *words], log, sign)
        if ended.code:
            raise UserError(f"{name} ended with code {ended.code}: {last_line(log)}")
        return ended

    def in_turn(self, what: str, sides: Sequence[Callable], rounds: int | None = None) -> list:
        """The samples of each side, measured in turn."""
        return in_turn(sides, rounds or self.rounds, lambda line: tell(f"{what}: {line}"))


def tell(line: str) -> None:
    """Progress on standard error; standard output holds only the result."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def beside_timm(
    job: Job, ours: Callable[[], Sample], words: Sequence[str], batch: int
) -> tuple[list[Sample], list[Sample]]:
    """Samples of `ours` and of timm's train.py, started by `words`, with `batch` images a step."""
    log = job.folder / "timm.log"

    def so_far() -> Sample | None:
        return rate_of_log(log.read_text(errors="replace"), batch)

    def enough() -> bool:
        return (found := so_far()) is not None and found.seconds >= job.seconds

    def theirs() -> Sample:
        ended = run_command(words, log, enough, then_stop=True)
        if (found := so_far()) is None:
            raise UserError(f"timm's train.py ended with code {ended.code}: {last_line(log)}")
        return found

    one, other = job.in_turn("timm", [ours, theirs])
    return one, other


def startup(job: Job, data_seconds: float) -> list[Pair]:
    """From the command to the first step, less reading the data; and the answer to a mistake.

    Both beside `python -c "import torch, torchvision, timm"`.

    The first step begins where the loop has its first batch: the moment when the checkpoint after
    that step begins to be written, less the seconds that the run's own state says the step took.
    """
    steps: list[float] = []

    def trained() -> float:
        name = f"start-{len(steps)}"
        saved = job.run_folder(name) / "ckpt"
        words = job.training(name, "--steps", "1")
        ended = job.command(name, words, lambda: saved.is_dir() and any(saved.iterdir()))
        (state,) = saved.glob("*/state.json")
        progress = read_json(state)["progress"]
        steps.append(progress["seconds"] - progress["seconds_data"])
        return (ended.seen or ended.seconds) - steps[-1] - data_seconds

    def imported() -> float:
        return job.command("imports", ["-c", "import torch, torchvision, timm"]).seconds

    def refused() -> float:
        words = [sys.executable, *job.training("refused", "loss=focl")]
        return run_command(words, job.folder / "refused.log").seconds

    sides = [trained, imported, refused]
    start, imports, mistake = map(tuple, job.in_turn("start", sides, min(job.rounds, _MOST_STARTS)))
    beside = Side("import torch, timm", imports)
    about = {"data_seconds": data_seconds, "first_step_seconds": statistics.median(steps)}
    return [
        Pair("to the first step", "s", Side("command, less the data", start), beside, about),
        Pair("a mistake's answer", "s", Side("command", mistake), beside),
    ]


def scaling(job: Job, images: int, rate: float, per_process: bool) -> list[Pair]:
    """Two processes beside one, by the images/s of their own metrics.jsonl.

    images: in the training set. rate: about how many a second one process trains on, which says
    how long an epoch lasts `job.seconds`. per_process: each process has a device of its own, so
    twice as much is expected; else both share the same cores.
    """
    batch = job.load().recipe.batch_size
    holdout = min(0.1, _SMALL_SPLIT / images)
    most = int((1 - holdout) * images) - 1
    steps = max(1, min(round(job.seconds * rate / batch), most // batch))
    small = [f"epochs={_EPOCHS}", f"eval_every={_EPOCHS}", "warmup={}", "cooldown={}"]
    small += [f"holdout={holdout}", f"subset={steps * batch}", "checkpoint.every_minutes=null"]
    runs_so_far: list[str] = []

    def trained(processes: int) -> Sample:
        name = f"scaling-{len(runs_so_far)}"
        runs_so_far.append(name)
        words = job.training(name, *small)
        if processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            words = [*launch, str(processes), *words]
        job.command(name, words)
        rows = runs.read_rows(job.run_folder(name) / "metrics.jsonl")[1:]
        return Sample(steps * batch * len(rows), sum(row["seconds"] for row in rows))

    one, two = job.in_turn("scaling", [lambda: trained(1), lambda: trained(2)])
    if per_process:
        two = [Sample(sample.images, sample.seconds * 2) for sample in two]
    what = "2 processes, each" if per_process else "2 processes"
    about = {"steps": steps, "batch_size": batch}
    sides = Side.rates(what, two), Side.rates("1 process", one)
    return [Pair("scaling", "images/s", *sides, about)]

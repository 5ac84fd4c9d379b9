"""Trials and how far each is, read from their run folders; for a sweep also which point is best."""

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..core.errors import StorageError, UserError, unknown
from ..recipe.notation import number
from ..runs import reader, run_folder
from ..runs.reader import Run
from ..runs.seed_statistics import Sample
from .sweep_file import Sweep, SweepPoint, points_of


@dataclass(eq=False)
class Trial:
    """One run, and how far it is. name: for people; arguments: the words after `train`.

    epochs: in all. metric: a column of metrics.jsonl; None is the recipe's headline.
    """

    name: str
    folder: Path
    log: Path
    arguments: tuple[str, ...]
    epochs: int
    metric: str | None = None
    more_is_better: bool = True
    run: Run | None = None  # as last read
    error: str = ""

    @property
    def id(self) -> str:
        """The name of its run folder."""
        return self.folder.name

    @property
    def state(self) -> Literal["new", "unfinished", "done", "failed"]:
        """How it stood when it was last read."""
        if self.error or not self.run:
            return "failed" if self.error else "new"
        return "done" if self.run.status == "done" else "unfinished"

    @property
    def epochs_done(self) -> int:
        """How many were finished when it was last read."""
        return self.run.epochs if self.run else 0

    def look(self) -> str:
        """Read how far it is; its state."""
        self.run, self.error = None, ""
        try:
            if (self.folder / "recipe.yaml").is_file():
                self.run = reader.read(self.folder)
        except UserError as error:
            self.error = f"damaged: {error}"
        if self.run and self.run.status == "failed":
            facts = run_folder.json_object(self.folder / "status.json")
            self.error = f"exit code {facts.get('exit_code')}: {facts.get('error')}"
        return self.state

    def values(self) -> tuple[float, float]:
        """The metric at its best and at its last. UserError if the run has no such metric."""
        rows, name = self.run.rows, self.metric or self.run.metric or "no metric"
        values = [value for row in rows if (value := number(row.get(name))) is not None]
        if not values:
            columns = {column for row in rows for column in row}
            raise UserError(f"{self.folder}: metric: {unknown('column', name, columns)}")
        return max(values) if self.more_is_better else min(values), values[-1]

    def __str__(self) -> str:
        if self.state == "done":
            best, last = self.values()
            return f"{self.metric or self.run.metric} {best:.2f} best, {last:.2f} last"
        return self.error or (f"stopped at epoch {self.epochs_done}" if self.run else "new")


def is_busy(folder: Path) -> bool:
    """Whether some process trains in the run folder now."""
    try:
        with run_folder.lock(folder) if folder.is_dir() else nullcontext():
            return False
    except UserError as error:
        return not isinstance(error, StorageError)  # it will say itself that it cannot write


def epochs_left(trials: Iterable[Trial]) -> int:
    """How many epochs these trials have still to go."""
    return sum(max(0, trial.epochs - trial.epochs_done) for trial in trials)


def measured_pace(trials: Iterable[Trial]) -> tuple[float, int] | None:
    """Seconds an epoch took here, and in how many runs; None before one is done."""
    runs = [t.run for t in trials if t.run and t.run.epochs and t.run.seconds]
    epochs = sum(run.epochs for run in runs)
    return (sum(run.seconds for run in runs) / epochs, len(runs)) if runs else None


class Result(NamedTuple):
    """What came of a point over the seeds that are done; `missing` seeds are not."""

    point: SweepPoint
    best: Sample
    last: Sample
    missing: int


class SweepState:
    """All that is known of a sweep: the points of the open stages, how far each trial is.

    A stage is open once those before it are settled, since it builds on their best point.
    trust: train with --trust-imports.
    """

    def __init__(self, sweep: Sweep, root: str, trust: bool = False):
        self.sweep, self.root, self.trust = sweep, root, trust
        self.folder = Path(root) / sweep.name
        self.own = self.folder / ".sweep"  # the lock and the logs; it is no run folder
        self.stage = -1
        self.points: list[SweepPoint] = []  # of the open stage
        self.every: dict[str, SweepPoint] = {}  # of all stages so far
        self.known: dict[str, Trial] = {}  # by id, as last read

    @property
    def metric(self) -> str | None:
        """What points are ranked by; None where that is only known once a run is read."""
        headlines = (trial.run.metric for trial in self.known.values() if trial.run)
        return self.sweep.metric or next(filter(None, headlines), None)

    def trials(self, points: Iterable[SweepPoint]) -> list[Trial]:
        """Every point with the first seed, then every point with the second, and so on."""
        points = list(points)
        seeds = self.sweep.seeds or (None,)
        return [self._trial(p, p.recipe.seed if s is None else s) for s in seeds for p in points]

    def _trial(self, point: SweepPoint, seed: int) -> Trial:
        id = f"{point.id}-{seed}"
        if id not in self.known:
            words = [str(self.sweep.recipe), *point.overrides, f"seed={seed}"]
            words.append(f"wandb.name={json.dumps(f'{point.words} seed {seed}')}")
            words += ["--runs", self.root, "--id", id, "--resume"]
            self.known[id] = Trial(
                f"{point.words}  seed {seed}",
                self.folder / id,
                self.own / f"{id}.log",
                (*words, *["--trust-imports"] * self.trust),
                point.recipe.total_epochs,
                self.sweep.metric,
                self.sweep.more_is_better,
            )
            self.known[id].look()
        return self.known[id]

    def advance(self) -> bool:
        """Open the next stage; False if there is none, or if this one is not settled."""
        states = {trial.state for trial in self.trials(self.points)}
        settled = not states or (states <= {"done", "failed"} and "done" in states)
        if self.stage + 1 == len(self.sweep.stages) or not settled:
            return False
        best = self.ranked(self.points)[0].point.settings if self.points else ()
        self.stage += 1
        self.points = points_of(self.sweep, self.stage, best)
        self.every |= {p.id: p for p in self.points if p.id not in self.every}
        return True

    def ranked(self, points: Iterable[SweepPoint]) -> list[Result]:
        """The points of which a seed is done, best mean first; those that lack seeds come last."""
        results = []
        for point in points:
            trials = self.trials([point])
            if done := [trial.values() for trial in trials if trial.state == "done"]:
                best, last = map(Sample, zip(*done, strict=True))
                results.append(Result(point, best, last, len(trials) - len(done)))
        sign = -1 if self.sweep.more_is_better else 1
        return sorted(results, key=lambda result: (result.missing > 0, sign * result.best.mean))

    def later(self) -> int:
        """How many trials the stages have that are not open yet."""
        stages = self.sweep.stages[self.stage + 1 :]
        return sum(len(stage.choices) for stage in stages) * max(1, len(self.sweep.seeds))

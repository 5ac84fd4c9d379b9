"""Trials and how far each is, read from their run folders; for a sweep also which point is best."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..core.atomic import read_json
from ..core.errors import StorageError, UserError, unknown
from ..recipe.loading import load
from ..recipe.notation import number
from ..runs import reader, run_folder
from ..runs.seed_statistics import Sample
from .sweep_file import Sweep, SweepPoint, points_of


@dataclass(frozen=True)
class Trial:
    """One run. name: for people; arguments: the words after `train`; epochs: in all."""

    name: str
    folder: Path
    log: Path
    arguments: tuple[str, ...]
    epochs: int

    @property
    def id(self) -> str:
        """The name of its run folder."""
        return self.folder.name


class TrialStatus(NamedTuple):
    """How far one trial is. stopped: as asked, and saved. best, last: the metric, once done."""

    state: Literal["new", "unfinished", "done", "failed"]
    epochs: int = 0
    stopped: bool = False
    seconds: float = 0.0  # of training and evaluation
    best: float | None = None
    last: float | None = None
    metric: str = ""
    error: str = ""

    def __str__(self) -> str:
        if self.state == "done":
            return f"{self.metric} {self.best:.2f} best, {self.last:.2f} last"
        return self.error or ("new" if self.state == "new" else f"stopped at epoch {self.epochs}")


class Result(NamedTuple):
    """What came of a point over the seeds that are done; `missing` seeds are not."""

    point: SweepPoint
    best: Sample
    last: Sample
    missing: int


def is_busy(folder: Path) -> bool:
    """Whether some process trains in the run folder now."""
    try:
        with run_folder.lock(folder) if folder.is_dir() else nullcontext():
            return False
    except UserError as error:
        return not isinstance(error, StorageError)  # it will say itself that it cannot write


class TrialTable:
    """How far each of some trials is. metric: a column; None is each recipe's headline."""

    def __init__(self, metric: str | None = None, more_is_better: bool = True, source: str = ""):
        """source: named in the error for an unknown metric."""
        self.metric, self.more_is_better, self.source = metric, more_is_better, source
        self.statuses: dict[Path, TrialStatus] = {}  # by run folder, as last read

    def look(self, trial: Trial) -> TrialStatus:
        """Read how far a trial is. UserError if it is done and has no such metric."""
        self.statuses[trial.folder] = self._read(trial.folder)
        return self.statuses[trial.folder]

    def _read(self, folder: Path) -> TrialStatus:
        if not (folder / "recipe.yaml").is_file():
            return TrialStatus("new")
        try:
            run = reader.read(folder)
        except UserError as error:
            return TrialStatus("failed", error=f"damaged: {error}")
        stopped = run.status in ("preempted", "paused")
        status = TrialStatus("unfinished", run.epochs, stopped, run.seconds or 0.0)
        if run.status == "failed":
            facts = read_json(folder / "status.json")
            reason = f"exit code {facts.get('exit_code')}: {facts.get('error')}"
            return status._replace(state="failed", error=reason)
        if run.status != "done":
            return status
        name = self.metric or run.metric or "no metric"
        values = [v for row in run.rows if (v := number(row.get(name))) is not None]
        if not values:
            columns = {column for row in run.rows for column in row}
            raise UserError(f"{self.source}: metric: {unknown('column', name, columns)}")
        best = max(values) if self.more_is_better else min(values)
        return status._replace(state="done", best=best, last=values[-1], metric=name)

    def epochs_left(self, trials: Iterable[Trial]) -> int:
        """How many epochs these trials have still to go."""
        new = TrialStatus("new")
        done = ((t.epochs, self.statuses.get(t.folder, new).epochs) for t in trials)
        return sum(max(0, every - so_far) for every, so_far in done)

    def measured_pace(self) -> tuple[float, int] | None:
        """Seconds an epoch took here, and in how many runs; None before one is done."""
        measured = [(s.seconds, s.epochs) for s in self.statuses.values() if s.epochs and s.seconds]
        seconds, epochs = map(sum, zip(*measured, strict=True)) if measured else (0.0, 0)
        return (seconds / epochs, len(measured)) if epochs else None


class SweepState(TrialTable):
    """All that is known of a sweep: the points of the open stages, how far each trial is.

    A stage is open once those before it are settled, since it builds on their best point.
    trust: train with --trust-imports.
    """

    def __init__(self, sweep: Sweep, root: str, trust: bool = False):
        super().__init__(sweep.metric, sweep.more_is_better, str(sweep.path))
        self.sweep, self.root, self.trust = sweep, root, trust
        self.folder = Path(root) / sweep.name
        self.own = self.folder / ".sweep"  # the lock and the logs; it is no run folder
        self.stage = -1
        self.points: list[SweepPoint] = []  # of the open stage
        self.every: dict[str, SweepPoint] = {}  # of all stages so far

    def trials(self, points: Iterable[SweepPoint]) -> list[Trial]:
        """Every point with the first seed, then every point with the second, and so on."""
        points = list(points)
        seeds = self.sweep.seeds or (None,)
        return [self._trial(p, p.recipe.seed if s is None else s) for s in seeds for p in points]

    def _trial(self, point: SweepPoint, seed: int) -> Trial:
        id = f"{point.id}-{seed}"
        words = [str(self.sweep.recipe), *point.overrides, f"seed={seed}"]
        words += ["--runs", self.root, "--id", id, "--resume", *["--trust-imports"] * self.trust]
        return Trial(
            f"{point.words}  seed {seed}",
            self.folder / id,
            self.own / f"{id}.log",
            tuple(words),
            point.recipe.total_epochs,
        )

    def advance(self) -> bool:
        """Open the next stage; False if there is none, or if this one is not settled."""
        states = {self.statuses[trial.folder].state for trial in self.trials(self.points)}
        settled = not states or (states <= {"done", "failed"} and "done" in states)
        if self.stage + 1 == len(self.sweep.stages) or not settled:
            return False
        best = self.ranked(self.points)[0].point.settings if self.points else ()
        self.stage += 1
        self.points = points_of(self.sweep, self.stage, best)
        for point in self.points:
            self.every.setdefault(point.id, point)
        for trial in self.trials(self.points):
            if trial.folder not in self.statuses:
                self.look(trial)
        return True

    def ranked(self, points: Iterable[SweepPoint]) -> list[Result]:
        """The points of which a seed is done, best mean first; those that lack seeds come last."""
        results = []
        for point in points:
            statuses = [self.statuses[trial.folder] for trial in self.trials([point])]
            if done := [(s.best, s.last) for s in statuses if s.state == "done"]:
                best, last = map(Sample, zip(*done, strict=True))
                results.append(Result(point, best, last, len(statuses) - len(done)))
        sign = -1 if self.more_is_better else 1
        return sorted(results, key=lambda result: (result.missing > 0, sign * result.best.mean))

    def later(self) -> int:
        """How many trials the stages have that are not open yet."""
        stages = self.sweep.stages[self.stage + 1 :]
        return sum(len(stage.choices) for stage in stages) * max(1, len(self.sweep.seeds))

    def pace(self) -> tuple[float, str] | None:
        """Seconds an epoch takes, and how that is known: measured, or as the recipe expects."""
        if measured := self.measured_pace():
            return measured[0], f"measured in {measured[1]} run{'s' * (measured[1] > 1)} here"
        recipe = load(self.sweep.recipe).recipe
        minutes = recipe.expects.get("minutes")
        return (60 * minutes / recipe.total_epochs, "as the recipe expects") if minutes else None

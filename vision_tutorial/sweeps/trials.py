"""Where the trials of a sweep stand, read from their run folders, and which point is best."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..core.atomic import read_json
from ..core.errors import StorageError, UserError, unknown
from ..recipe.loading import load
from ..recipe.notation import number
from ..runs import reader, run_folder
from ..runs.run import Run
from ..runs.seed_statistics import Sample
from .sweep_file import Point, Setting, Sweep, Trial, points_of, trials_of

State = Literal["new", "unfinished", "done", "failed"]


class Standing(NamedTuple):
    """How far one trial is. stopped: as asked, and saved. best, last: the metric, once done."""

    state: State
    epochs: int = 0
    stopped: bool = False
    seconds: float = 0.0  # of training and evaluation
    best: float | None = None
    last: float | None = None
    metric: str = ""
    error: str = ""


class Result(NamedTuple):
    """What came of a point over the seeds that are done; `missing` seeds are not."""

    point: Point
    best: Sample
    last: Sample
    missing: int


def standing(run: Path, sweep: Sweep) -> Standing:
    """Where a trial stands. UserError if its metrics lack the one that the sweep asks for."""
    if not (run / "recipe.yaml").is_file():
        return Standing("new")
    try:
        kept = reader.read(run)
    except UserError as error:
        return Standing("failed", error=f"damaged: {error}")
    stopped = kept.status in ("preempted", "paused")
    found = Standing("unfinished", kept.epochs, stopped, kept.seconds or 0.0)
    if kept.status == "failed":
        facts = read_json(run / "status.json")
        error = f"exit code {facts.get('exit_code')}: {facts.get('error')}"
        return found._replace(state="failed", error=error)
    return _valued(found, kept, sweep) if kept.status == "done" else found


def _valued(found: Standing, kept: Run, sweep: Sweep) -> Standing:
    name = sweep.metric or kept.metric or "no metric"
    values = [v for row in kept.rows if (v := number(row.get(name))) is not None]
    if not values:
        columns = {column for row in kept.rows for column in row}
        raise UserError(f"{sweep.path}: metric: {unknown('column', name, columns)}")
    best = max(values) if sweep.more_is_better else min(values)
    return found._replace(state="done", best=best, last=values[-1], metric=name)


def busy(run: Path) -> bool:
    """Whether some process trains in the folder now."""
    if not run.is_dir():
        return False
    try:
        with run_folder.lock(run):
            return False
    except StorageError:
        raise
    except UserError:
        return True


class Board:
    """All that is known of a sweep: the trials of the stages that are open, where each stands.

    A stage is open once those before it are settled, since it stands on their best point.
    """

    def __init__(self, sweep: Sweep, root: Path | str):
        self.sweep = sweep
        self.folder = Path(root) / sweep.name
        self.own = self.folder / ".sweep"  # the lock and the logs; nobody takes it for a run
        self.stage = -1
        self.points: list[Point] = []  # of the open stage
        self.every: dict[str, Point] = {}  # of all stages so far
        self.standings: dict[str, Standing] = {}

    def run(self, trial: Trial) -> Path:
        """Its run folder."""
        return self.folder / trial.id

    def log(self, trial: Trial) -> Path:
        """What it prints."""
        return self.own / f"{trial.id}.log"

    def advance(self) -> bool:
        """Open the next stage; False if there is none, or if this one is not settled."""
        if self.stage + 1 == len(self.sweep.stages) or not self.settled():
            return False
        best = self.ranked(self.points)[0].point.settings if self.points else ()
        self.stage += 1
        self.points = points_of(self.sweep, self.stage, best)
        for point in self.points:
            self.every.setdefault(point.id, point)
        for trial in self.trials():
            if trial.id not in self.standings:
                self.look(trial)
        return True

    def trials(self) -> list[Trial]:
        """Of the open stage."""
        return trials_of(self.sweep, self.points)

    def look(self, trial: Trial) -> Standing:
        """Read anew where a trial stands."""
        self.standings[trial.id] = standing(self.run(trial), self.sweep)
        return self.standings[trial.id]

    def settled(self) -> bool:
        """Whether every trial of the open stage is done or failed, and some point is known."""
        states = [self.standings[trial.id].state for trial in self.trials()]
        ended = all(state in ("done", "failed") for state in states)
        return ended and (not states or "done" in states)

    def ranked(self, points: Iterable[Point]) -> list[Result]:
        """The points of which a seed is done, best mean first; those that lack seeds come last."""
        results = []
        for point in points:
            own = [self.standings[trial.id] for trial in trials_of(self.sweep, [point])]
            done = [standing for standing in own if standing.state == "done"]
            if done:
                best, last = (Sample(tuple(getattr(s, x) for s in done)) for x in ("best", "last"))
                results.append(Result(point, best, last, len(own) - len(done)))
        sign = -1 if self.sweep.more_is_better else 1
        return sorted(results, key=lambda result: (result.missing > 0, sign * result.best.mean))

    def later(self) -> list[Trial]:
        """The trials of stages not open yet, as if each first choice turned out best."""
        best: tuple[Setting, ...] = self.points[0].settings if self.points else ()
        found: list[Trial] = []
        for stage in range(self.stage + 1, len(self.sweep.stages)):
            points = points_of(self.sweep, stage, best)
            found += trials_of(self.sweep, points)
            best = points[0].settings
        return found

    def epochs_left(self, trials: Sequence[Trial]) -> int:
        """How many epochs these trials have still to go."""
        known = self.standings
        done = {t.id: known[t.id].epochs if t.id in known else 0 for t in trials}
        return sum(max(0, t.point.recipe.total_epochs - done[t.id]) for t in trials)

    def seconds_an_epoch(self) -> tuple[float, str] | None:
        """What an epoch takes, and how that is known: measured here, or as the recipe expects."""
        measured = [s for s in self.standings.values() if s.epochs and s.seconds]
        if measured:
            seconds = sum(s.seconds for s in measured) / sum(s.epochs for s in measured)
            return seconds, f"measured in {len(measured)} run{'s' * (len(measured) > 1)} here"
        recipe = load(self.sweep.recipe).recipe
        minutes = recipe.expects.get("minutes")
        return (60 * minutes / recipe.total_epochs, "as the recipe expects") if minutes else None

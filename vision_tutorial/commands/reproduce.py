"""The Week-3 table once more: r0 … r5 as they stand, or scaled down to a budget; table and page."""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path

import psutil

from ..core import processes
from ..core.atomic import read_json, storage, write_json, write_text
from ..core.cli_types import UNITS, positive_count, seconds, share
from ..core.errors import ExitCode, UserError, run_main, short
from ..core.sources import data_root
from ..recipe.fields import Recipe
from ..recipe.loading import load
from ..recipe.notation import duration
from ..report import gallery_files
from ..runs import run_folder
from ..runs.reader import Run, collect
from ..sweeps import children, scale_down, scheduler
from ..sweeps.children import DeviceSlot, Stop
from ..sweeps.scale_down import NETWORKS, RULED, TABLE, Speed, TablePlan, Workload, count_images
from ..sweeps.scheduler import Scheduler
from ..sweeps.throughput import ThroughputProbe
from ..sweeps.trials import Trial, TrialTable
from ..tables import comparison, table
from ..tables.labels import LANGUAGES
from ..tables.layouts import View, week3

_NOT_ALL = 1  # the exit code where some run is not done
_OWN = ".reproduce"  # in the folder: plan, logs, lock; it is no run folder
_MARGIN = 0.9  # of the time that there is, how much is planned
_SHAPES = "shapes"
_PAGE = 8.0  # seconds that it takes at most, without galleries
_SMALL = ("thin", "resnet10")
MEMORY, LARGE_MEMORY = 2 * 2**30, 8 * 2**30  # bytes for each of several trainings on a CPU
_PROBE_SECONDS, _PROBE_PART = 6.0, 0.01  # of the short training: at least; of the budget
_VERDICTS = {"within": "within noise", "beyond": "beyond noise"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial reproduce",
        description="Train r0 … r5, then print their table and write the report page. Start it "
        "again after any end: what is done is skipped, what is unfinished goes on. Scaled down, it "
        "follows the one rule of docs/reproduce.md.",
        epilog="Exit codes: 0 all done, 1 not all done, 2 bad input, 143 stopped (start it again). "
        "The runs are ordinary ones: `compare runs/week3`.",
    )
    add, size = made.add_argument, made.add_mutually_exclusive_group()
    add("what", choices=("week3",), help="the table")
    add("overrides", nargs="*", metavar="key.sub=value", help="set one value of all recipes")
    text = "scale it down to end within 90s, 20min, 1.5h"
    size.add_argument("--budget", type=seconds, metavar="TIME", help=text)
    text = "scale it down to this share of the images seen"
    size.add_argument("--scale", type=share, metavar="S", help=text)
    add("--network", choices=NETWORKS, help="of all runs (default: by the budget, else resnet50)")
    add("--data", choices=("cifar100", _SHAPES), help="shapes: drawn by the package")
    add("--seeds", type=positive_count, default=1, metavar="N", help="runs of each recipe")
    text = "processes of a run (default: in full, one a GPU; scaled down, 1)"
    add("--nproc", type=positive_count, metavar="N", help=text)
    text = (
        "runs at a time (default: in full, 1; scaled down, one a GPU, or a core as memory allows)"
    )
    add("--jobs", type=positive_count, metavar="N", help=text)
    add("--runs", default="runs", metavar="DIR", help="where its folder goes (default: runs)")
    add("--lang", choices=LANGUAGES, default="en", help="language of table and page")
    add("--dry-run", action="store_true", help="measure, show the plan, train nothing of it")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial reproduce`."""
    args = parser().parse_intermixed_args(argv)
    return run_main(lambda: reproduce(args))


@dataclass(frozen=True)
class _Job:
    """A table to train. settings: `key=value` on its recipes; slots: of the runs at a time."""

    args: argparse.Namespace
    scaled: bool
    settings: Sequence[str]
    recipes: dict[str, Recipe]
    folder: Path
    own: Path  # for plan, logs and lock
    slots: Sequence[DeviceSlot]
    processes: int
    deadline: float  # by time.monotonic()

    @cached_property
    def work(self) -> Workload:
        """What the table is, for the rule that scales it down."""
        full, images = [r.epochs for r in self.recipes.values()], count_images(self.recipes["r0"])
        return Workload(full, *images, self.args.seeds, len(self.slots))


def reproduce(args: argparse.Namespace) -> int:
    """Plan, train what is not done, print the table and write the page."""
    job = _job(args)
    with storage(job.own):
        job.own.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(job.own), Stop().listening() as stop:
        plan = _kept_plan(job, stop)
        trials = _trials(job, plan)
        if args.dry_run:
            return ExitCode.DONE
        runner = Scheduler(TrialTable(), job.slots, job.processes, stop, job.deadline)
        runner.run([trial for trial in trials if runner.table.look(trial).state != "done"])
        code: int = _NOT_ALL if stop.asked else _finish(job, runner, trials)
    if stop.asked:
        print("stopped: the same command goes on from here")
        return ExitCode.PREEMPTED
    return code


def _job(args: argparse.Namespace) -> _Job:
    """What is asked for. UserError for an override that cannot be."""
    deadline = time.monotonic() + (args.budget or math.inf)
    scaled = bool(args.budget or args.network or args.data == _SHAPES) or args.scale is not None
    keys = [text.partition("=")[0].partition(".")[0].strip() for text in args.overrides]
    for text, key in zip(args.overrides, keys, strict=True):
        if key in (RULED if scaled else {"name", "seed"}):
            raise UserError(f"{short(text, 50)}: reproduce sets {key} itself; leave it out.")
    missing = not (data_root() / "cifar-100-python" / "train").is_file()
    if args.data is None and "dataset" not in keys and missing and scaled:
        print(f"no CIFAR-100 in {data_root()} (VISION_TUTORIAL_DATA names the folder): shapes")
        args.data = _SHAPES
    settings = [*["dataset=shapes"] * (args.data == _SHAPES), *args.overrides]
    recipes = {name: load(scale_down.path_of(name), settings).recipe for name in TABLE}
    scale = None if args.scale is None else f"{args.scale:g}"
    seeds = f"{args.seeds}seeds" if args.budget and args.seeds > 1 else None
    names = (
        args.what,
        args.budget and _spelled(args.budget),
        scale,
        args.network,
        seeds,
        args.data,
    )
    folder = Path(args.runs) / "-".join(name for name in names if name and name != "cifar100")
    slots, count = _slots(args, recipes, scaled)
    own = folder / _OWN
    return _Job(args, scaled, settings, recipes, folder, own, slots, count, deadline)


def _spelled(time: float) -> str:
    unit = next((u for u in ("h", "min") if time % UNITS[u] == 0), "s")
    return f"{time / UNITS[unit]:g}{unit}"


def _slots(
    args: argparse.Namespace, recipes: dict[str, Recipe], scaled: bool
) -> tuple[list[DeviceSlot], int]:
    """What is trained on at a time, and the processes of each run.

    In full: one run, on all GPUs that the batches divide over. Scaled down: as many runs as there
    are GPUs, or cores and memory for.
    """
    gpus, count, jobs = len(children.visible_gpus()), args.nproc or 1, args.jobs or 1
    if not scaled and not args.nproc:
        batches = [recipe.batch_size for recipe in recipes.values()]
        dividing = (n for n in range(gpus, 1, -1) if not any(b % (2 * n) for b in batches))
        count = next(dividing, 1)
    elif scaled:
        small = args.network in _SMALL or bool(args.network is None and args.budget)
        room = psutil.virtual_memory().available // (MEMORY if small else LARGE_MEMORY)
        most = gpus or min(len(processes.usable_cores()), room)
        jobs = max(1, min(args.jobs or most // count, args.seeds * len(TABLE)))
    return children.device_slots(jobs, count), count


def _kept_plan(job: _Job, stop: Stop) -> TablePlan | None:
    """How the table is scaled down, printed; None: not at all. Made once, kept for later starts."""
    kept, overrides = job.own / "plan.json", job.args.overrides
    if kept.is_file():
        facts = read_json(kept)
        if sorted(facts["overrides"]) != sorted(overrides):
            was = " ".join(facts["overrides"]) or "no overrides"
            raise UserError(f"{job.folder} was begun with {was}; give the same, or another --runs.")
        plan = facts["plan"] and TablePlan(**facts["plan"])
        speed = facts["speed"] and Speed(*facts["speed"])
    else:
        plan, speed = _new_plan(job, stop) if job.scaled else (None, None)
        facts = {"overrides": overrides, "plan": plan and asdict(plan), "speed": speed}
        write_json(kept, facts)
    for line in _description(job, plan, speed):
        print(line, flush=True)
    return plan


def _new_plan(job: _Job, stop: Stop) -> tuple[TablePlan, Speed | None]:
    """The plan by the rule; with a budget also the speed that it is based on, measured here."""
    args, work = job.args, job.work
    if not args.budget:
        share = 1.0 if args.scale is None else args.scale
        return work.plan_of_share(share, args.network or "resnet50"), None
    # a folder of its own: children of a start that was killed may still write into theirs
    own, length = job.own / f"probe-{os.getpid()}", max(_PROBE_SECONDS, _PROBE_PART * args.budget)
    images, where = work.train, (job.slots, job.processes)
    probe = ThroughputProbe(own, job.settings, images, *where, length, stop)

    def measure(network: str, batch_size: int) -> Speed:
        print(f"measuring {network} …", flush=True)
        return probe.measure(network, batch_size)

    def room() -> float:
        return job.deadline - time.monotonic() - scheduler.ASKED

    networks = [args.network] if args.network else list(NETWORKS)
    plan, speed = work.choose(networks, measure, lambda: _MARGIN * room())
    if plan is None:
        least = work.plan_of_share(0.0, networks[0])
        needed = work.total(least, speed) / _MARGIN + args.budget - room()
        raise UserError(
            f"--budget {_spelled(args.budget)}: too little for the smallest table here, which "
            f"takes {duration(needed)} (measuring, {speed.start:.0f} s a start, "
            f"{speed.rate * work.slots:,.0f} images a second). Give more."
        )
    return plan, speed


def _description(job: _Job, plan: TablePlan | None, speed: Speed | None) -> Iterator[str]:
    """What is about to be trained, a line a recipe, and how long it takes where that is known."""
    jobs, seeds = len(job.slots), job.args.seeds
    more = f", {seeds} seeds of each" * (seeds > 1) + f", {jobs} at a time" * (jobs > 1)
    fast = f", {speed.rate * jobs:,.0f} images a second here" if speed else ""
    table = f"network {plan.network}, batch {plan.batch_size}" if plan else "r0 … r5 as they stand"
    yield f"{job.folder.name}: {table}{fast}{more}"
    times = job.work.times(plan, speed) if speed else [None] * len(TABLE)
    for (name, recipe), takes in zip(job.recipes.items(), times, strict=True):
        if plan:
            about = f", about {duration(takes)}" if takes else ""
            epochs = f"{plan.total_epochs(recipe.epochs)} epochs of {plan.images:,} images"
            yield f"{name}: {epochs} (in full {recipe.total_epochs}){about}"
        else:
            minutes = recipe.expects.get("minutes")
            report = f"; the report: {minutes:g} min on two GPUs" if minutes else ""
            yield f"{name}: {recipe.total_epochs} epochs, {recipe.model.name}{report}"
    if speed:
        total = job.work.total(plan, speed)
        more = "; what does not fit waits for another start" if total > job.args.budget else ""
        yield f"in all about {duration(total)} of {_spelled(job.args.budget)}{more}"


def _trials(job: _Job, plan: TablePlan | None) -> list[Trial]:
    """All recipes with the first seed, then with the next. Writes the scaled-down recipes."""
    folder = job.folder
    if plan:
        data = _SHAPES if job.args.data == _SHAPES else None
        scale_down.write_recipes(plan, folder, data, job.work.train)

    def trial(name: str, recipe: Recipe, seed: int) -> Trial:
        path = folder / f"{name}.yaml" if plan else scale_down.path_of(name)
        words = [str(path), *job.args.overrides, f"seed={seed}", "--runs", str(folder), "--resume"]
        return Trial(
            f"{name} seed {seed}",
            folder / name / f"seed{seed}",
            job.own / f"{name}-seed{seed}.log",
            (*words, "--id", f"seed{seed}"),
            plan.total_epochs(recipe.epochs) if plan else recipe.total_epochs,
        )

    every = product(range(job.args.seeds), job.recipes.items())
    return [trial(name, recipe, recipe.seed + number) for number, (name, recipe) in every]


def _finish(job: _Job, runner: Scheduler, trials: Sequence[Trial]) -> int:
    """The table on the screen and as Markdown, the page, and what is missing; the exit code."""
    runs, _ = collect([job.folder])
    if runs:
        view = View(comparison.rows_of(runs), job.args.lang)
        week3_table = week3(view).transposed()
        table.terminal(week3_table, sys.stdout)
        write_text(job.folder / "week3.md", table.markdown(week3_table))
        print(_order(view))
        write_page(job, runs, runner.stop)
    missing = []
    for trial in trials:
        status = runner.table.statuses[trial.folder]
        if status.state != "done":
            missing.append(f"{trial.name} ({'failed' if status.state == 'failed' else status})")
    if missing:
        why = "the time was up: " if runner.late else ""
        print(f"{why}not done: {', '.join(missing)}; the same command goes on from here")
    return _NOT_ALL if missing else ExitCode.DONE


def write_page(job: _Job, runs: Sequence[Run], stop: Stop) -> None:
    """report.html, with galleries of the runs as far as there is time."""
    command, log = [sys.executable, "-m", "vision_tutorial"], job.own / "page.log"
    done = [run.folder for run in runs if run.status == "done" and run.folder]
    without = [str(run) for run in done if not gallery_files.exists(run)]

    def over(needed: float = _PAGE) -> bool:
        return job.deadline - time.monotonic() < needed or stop.asked

    if without and not over(2 * _PAGE):
        galleries = job.own / "galleries.log"
        words = [*command, "gallery", *without]
        ended = processes.run_command(words, galleries, over, then_stop=True)
        if ended.seen or ended.code:
            why = "the time was up" if ended.seen else processes.last_line(galleries)
            print(f"not all galleries are on the page: {why} (log: {galleries})")
    page = ["report", str(job.folder), "-o", str(job.folder / "report.html")]
    page += ["--title", job.folder.name, "--lang", job.args.lang]
    processes.run_command([*command, *page], log)
    print(processes.last_line(log))


def _order(view: View) -> str:
    """Whether r0 < r1 < r2 came out, and whether that is more than noise."""
    done = {row.run.name: row for row in view.rows if row.done}
    if missing := [name for name in TABLE[:3] if name not in done]:
        return f"r0 < r1 < r2: not known without {', '.join(missing)}"
    rows = [done[name] for name in TABLE[:3]]
    r0, r1, r2 = (row.best.mean for row in rows)
    steps, known = [], True
    for before, after in pairwise(rows):
        delta = view.deltas[after]
        verdict = _VERDICTS.get(delta.verdict if delta else "", "")
        steps.append(f"{after.best.mean - before.best.mean:+.2f} {verdict}".rstrip())
        known = known and bool(verdict)
    word = "came out" if r0 < r1 < r2 else "did not come out"
    more = "" if known else "; only more --seeds tell that from noise"
    return f"r0 < r1 < r2 {word}: {r0:.2f}, {r1:.2f}, {r2:.2f} ({', '.join(steps)}{more})"

"""The Week-3 table once more: r0 … r5 as they stand, or scaled down to a budget; table and page."""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise, product
from pathlib import Path

import psutil

from ..core import processes
from ..core.atomic import make_folder, read_json, write_json, write_text
from ..core.cli_types import UNITS, positive_count, seconds, share
from ..core.errors import ExitCode, UserError, counted
from ..core.folders import data_root
from ..recipe.command_line import Parser, add_overrides
from ..recipe.fields import Recipe
from ..recipe.loading import load
from ..recipe.notation import duration
from ..report import gallery_files
from ..runs import run_folder
from ..runs.reader import Run, collect
from ..sweeps import children, scale_down
from ..sweeps.children import DeviceSlot, Stop
from ..sweeps.scale_down import NETWORKS, RULED, TABLE, Speed, TablePlan, Workload
from ..sweeps.scheduler import Scheduler
from ..sweeps.trials import Trial
from ..tables import comparison, table
from ..tables.labels import LANGUAGES
from ..tables.layouts import View, week3
from . import entry_point

_NOT_ALL = 1  # the exit code where some run is not done
_MARGIN = 0.9  # of the time that there is, how much is planned
_SHAPES = "shapes"
_PAGE = 8.0  # seconds that it takes at most, without galleries
_SMALL = ("thin", "resnet10")
MEMORY, LARGE_MEMORY = 2 * 2**30, 8 * 2**30  # bytes for each of several trainings on a CPU
_PROBE_SECONDS, _PROBE_PART = 6.0, 0.01  # of the short training: at least; of the budget


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial reproduce",
        description="Train r0 … r5, then print their table and write the report page. Start it "
        "again after any end: what is done is skipped, what is unfinished goes on. --budget and "
        "--scale make a smaller table, by the one rule of docs/reproduce.md.",
        epilog="Exit codes: 0 all done, 1 not all done, 2 bad input, 143 stopped (start it again). "
        "The runs are ordinary ones: `compare runs/week3`.",
    )
    add, size = made.add_argument, made.add_mutually_exclusive_group()
    add("what", choices=("week3",), help="the table")
    add_overrides(made, "set one value of all recipes")
    size.add_argument("--budget", type=seconds, metavar="TIME", help="end within 90s, 20min, 1.5h")
    size.add_argument("--scale", type=share, metavar="S", help="this share of the images seen")
    add("--network", choices=NETWORKS, help="of all runs (default: by the budget, else resnet50)")
    add("--data", choices=("cifar100", _SHAPES), help="shapes: drawn by the package")
    add("--seeds", type=positive_count, default=1, metavar="N", help="runs of each recipe")
    text = "processes of a run (default: in full, one a GPU; scaled down, 1)"
    add("--nproc", type=positive_count, metavar="N", help=text)
    text = "runs at a time (default: in full, 1; scaled down, as GPUs, or cores and memory, allow)"
    add("--jobs", type=positive_count, metavar="N", help=text)
    add("--runs", default="runs", metavar="DIR", help="where its folder goes (default: runs)")
    add("--lang", choices=LANGUAGES, default="en", help="language of table and page")
    add("--dry-run", action="store_true", help="measure, show the plan, train nothing of it")
    return made


@dataclass(frozen=True)
class _Job:
    """A table to train. settings: `key=value` on its recipes; slots: of the runs at a time."""

    args: argparse.Namespace
    scaled: bool
    settings: Sequence[str]
    recipes: dict[str, Recipe]
    folder: Path
    slots: Sequence[DeviceSlot]
    processes: int
    deadline: float  # by time.monotonic()

    @property
    def own(self) -> Path:
        """For plan, logs and lock; it is no run folder."""
        return self.folder / ".reproduce"

    @cached_property
    def work(self) -> Workload:
        """What the table is, for the rule that scales it down."""
        full = [recipe.epochs for recipe in self.recipes.values()]
        images = scale_down.count_images(self.recipes["r0"])
        return Workload(full, *images, self.args.seeds, len(self.slots))


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Plan, train what is not done, print the table and write the page."""
    job = _job(args)
    with run_folder.lock(make_folder(job.own)), Stop().listening() as stop:
        runner = Scheduler(job.slots, job.processes, stop, job.deadline)
        trials = _trials(job, _kept_plan(job, runner))
        if args.dry_run:
            return ExitCode.DONE
        runner.run([trial for trial in trials if trial.look() != "done"], trials)
        if not stop.signalled():
            code = _finish(job, runner, trials)
    if stop.signalled():
        print("stopped: the same command goes on from here")
        return ExitCode.PREEMPTED
    return code


def _job(args: argparse.Namespace) -> _Job:
    """What is asked for. UserError for an override that cannot be."""
    deadline = time.monotonic() + (args.budget or math.inf)
    scaled = bool(args.budget or args.network or args.data == _SHAPES) or args.scale is not None
    keys = [re.split("[.=]", text)[0].strip() for text in args.overrides]
    if taken := {*keys} & (RULED if scaled else {"name", "seed"}):
        raise UserError(f"reproduce sets {', '.join(sorted(taken))} itself; leave it out.")
    missing = not (data_root() / "cifar-100-python" / "train").is_file()
    if args.data is None and "dataset" not in keys and missing and scaled:
        print(f"no CIFAR-100 in {data_root()} (VISION_TUTORIAL_DATA names the folder): shapes")
        args.data = _SHAPES
    settings = [*["dataset=shapes"] * (args.data == _SHAPES), *args.overrides]
    recipes = {name: load(scale_down.path_of(name), settings).recipe for name in TABLE}
    scale = None if args.scale is None else f"{args.scale:g}"
    seeds = f"{args.seeds}seeds" if args.budget and args.seeds > 1 else None
    names = [args.what, _spelled(args.budget), scale, args.network, seeds, args.data]
    folder = Path(args.runs) / "-".join(name for name in names if name and name != "cifar100")
    return _Job(args, scaled, settings, recipes, folder, *_slots(args, recipes, scaled), deadline)


def _spelled(time: float | None) -> str:
    unit = next((u for u in ("h", "min") if time and time % UNITS[u] == 0), "s")
    return f"{time / UNITS[unit]:g}{unit}" if time else ""


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


def _kept_plan(job: _Job, runner: Scheduler) -> TablePlan | None:
    """How the table is scaled down, printed; None: not at all. Made once, kept for later starts."""
    kept, overrides = job.own / "plan.json", job.args.overrides
    plan, speed = None, None
    if kept.is_file():
        facts = read_json(kept)
        if sorted(facts["overrides"]) != sorted(overrides):
            was = " ".join(facts["overrides"]) or "no overrides"
            raise UserError(f"{job.folder} was begun with {was}; give the same, or another --runs.")
        plan = facts["plan"] and TablePlan(**facts["plan"])
        speed = facts["speed"] and Speed(*facts["speed"][:2])
    else:
        if job.args.budget:
            plan, speed = _fitted(job, runner)
        elif job.scaled:
            share = 1 if job.args.scale is None else job.args.scale
            plan = job.work.plan(share, job.args.network or "resnet50")
        facts = {"overrides": overrides, "plan": plan and asdict(plan), "speed": speed}
        write_json(kept, facts)
    _describe(job, plan, speed)
    return plan


def _fitted(job: _Job, runner: Scheduler) -> tuple[TablePlan, Speed]:
    """The plan that fits the budget, and the speed that it is based on, measured here."""
    budget, work = job.args.budget, job.work
    measured = partial(
        scale_down.measure,
        runner=Scheduler(job.slots, job.processes, runner.stop),  # one without a deadline
        # its own: children of a start that was killed may still write into theirs
        folder=job.own / f"probe-{os.getpid()}",
        overrides=job.settings,
        images=work.train,
        seconds=max(_PROBE_SECONDS, _PROBE_PART * budget),
    )
    networks = [job.args.network] if job.args.network else list(NETWORKS)
    plan, speed = work.choose(networks, measured, lambda: _MARGIN * runner.left())
    needed = work.total(plan, speed) / _MARGIN + budget - runner.left()
    if needed > budget:
        raise UserError(
            f"--budget {_spelled(budget)}: too little for the smallest table here, which takes "
            f"{duration(needed)} (measuring, {speed.start:.0f} s a start, "
            f"{counted(round(speed.rate * work.slots), 'image')} a second). Give more."
        )
    return plan, speed


def _describe(job: _Job, plan: TablePlan | None, speed: Speed | None) -> None:
    """Print what is about to be trained, and how long it takes where that is known."""
    jobs, seeds = len(job.slots), job.args.seeds
    more = f", {counted(round(speed.rate * jobs), 'image')} a second here" if speed else ""
    more += f", {seeds} seeds of each" * (seeds > 1) + f", {jobs} at a time" * (jobs > 1)
    table = f"network {plan.network}, batch {plan.batch_size}" if plan else "r0 … r5 as they stand"
    print(f"{job.folder.name}: {table}{more}")
    times = job.work.times(plan, speed) if speed else [None] * len(TABLE)
    for (name, recipe), takes in zip(job.recipes.items(), times, strict=True):
        text = f"{counted(recipe.total_epochs, 'epoch')}, {recipe.model.name}"
        if plan:
            images = counted(plan.images, "image")
            text = f"{counted(plan.total_epochs(recipe.epochs), 'epoch')} of {images}"
            text += f" (in full {recipe.total_epochs})"
        elif minutes := recipe.expects.get("minutes"):
            text += f"; the report: {minutes:g} min on two GPUs"
        print(f"{name}: {text}" + (f", about {duration(takes)}" if takes else ""))
    if speed:
        total = job.work.total(plan, speed)
        more = "; what does not fit waits for another start" * (total > job.args.budget)
        print(f"in all about {duration(total)} of {_spelled(job.args.budget)}{more}", flush=True)


def _trials(job: _Job, plan: TablePlan | None) -> list[Trial]:
    """All recipes with the first seed, then with the next. Writes the scaled-down recipes."""
    folder, trials = job.folder, []
    if plan:
        data = _SHAPES if job.args.data == _SHAPES else None
        scale_down.write_recipes(plan, folder, data, job.work.train)
    for number, (name, recipe) in product(range(job.args.seeds), job.recipes.items()):
        id = f"seed{recipe.seed + number}"
        path = folder / f"{name}.yaml" if plan else scale_down.path_of(name)
        words = [str(path), *job.args.overrides, f"seed={recipe.seed + number}"]
        words += ["--runs", str(folder), "--resume", "--id", id]
        epochs = plan.total_epochs(recipe.epochs) if plan else recipe.total_epochs
        log = job.own / f"{name}-{id}.log"
        label = f"{name} seed {recipe.seed + number}"
        trials.append(Trial(label, folder / name / id, log, tuple(words), epochs))
    return trials


def _finish(job: _Job, runner: Scheduler, trials: Sequence[Trial]) -> int:
    """The table on the screen and as Markdown, the page, and what is missing; the exit code."""
    runs, _ = collect([job.folder])
    if runs:
        view = View(comparison.rows_of(runs), job.args.lang)
        week3_table = week3(view).transposed()
        table.terminal(week3_table, sys.stdout)
        write_text(job.folder / "week3.md", table.markdown(week3_table))
        print(_order(view))
        write_page(job, runs, runner)
    missing = [trial for trial in trials if trial.state != "done"]
    if missing:
        names = (f"{t.name} ({'failed' if t.state == 'failed' else t})" for t in missing)
        why = "the time was up: " if runner.late else ""
        print(f"{why}not done: {', '.join(names)}; the same command goes on from here")
    return _NOT_ALL if missing else ExitCode.DONE


def write_page(job: _Job, runs: Sequence[Run], runner: Scheduler) -> None:
    """report.html, with galleries of the runs as far as there is time."""
    command = [sys.executable, "-m", "vision_tutorial"]
    done = [run.folder for run in runs if run.status == "done" and run.folder]
    without = [str(run) for run in done if not gallery_files.exists(run)]

    def over(needed: float = _PAGE) -> bool:
        return runner.deadline - time.monotonic() < needed or runner.stop.signalled()

    if without and not over(2 * _PAGE):
        log = job.own / "galleries.log"
        words = [*command, "gallery", *without]
        ended = processes.run_command(words, log, over, then_stop=True)
        if ended.seen or ended.code:
            why = "the time was up" if ended.seen else processes.last_line(log)
            print(f"not all galleries are on the page: {why} (log: {log})")
    log = job.own / "page.log"
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
    means = [row.best.mean for row in rows]
    steps = []
    for row, (before, after) in zip(rows[1:], pairwise(means), strict=True):
        verdict = getattr(view.deltas[row], "verdict", None)
        known = f"{verdict} noise" if verdict in ("within", "beyond") else "without --seeds"
        steps.append(f"{after - before:+.2f} {known}")
    word = "came out" if means == sorted({*means}) else "did not come out"
    values = ", ".join(f"{mean:.2f}" for mean in means)
    return f"r0 < r1 < r2 {word}: {values} ({', '.join(steps)})"

"""Many points of a recipe, each trained once: a grid, a list, or greedy stages of them."""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..core.atomic import make_folder
from ..core.cli_types import positive_count
from ..core.errors import ExitCode, UserError, counted, unknown
from ..recipe.command_line import Parser, add_overrides
from ..recipe.loading import load
from ..recipe.notation import duration
from ..runs import run_folder
from ..runs.seed_statistics import confidence_interval, pooled
from ..sweeps import children
from ..sweeps.children import Stop
from ..sweeps.scheduler import Scheduler
from ..sweeps.sweep_file import read_sweep
from ..sweeps.trials import Result, SweepState, Trial, epochs_left, measured_pace
from ..tables.table import Column, Table, terminal
from . import entry_point

_FAILED = 1  # the exit code where some trial is not done


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial sweep",
        description="Train every point of a sweep file once. Start it again after any end: what is "
        "done is skipped, what is unfinished goes on.",
        epilog="Exit codes: 0 all done, 1 some failed, 2 bad sweep file, 143 stopped (start it "
        "again). The runs are ordinary ones: `compare runs/<sweep>`.",
    )
    add = made.add_argument
    add("sweep", help="a sweep file, such as recipes/sweeps/quickstart-sweep.yaml")
    add_overrides(made, "set one value for all points")
    add("--runs", default="runs", metavar="DIR", help="where run folders go (default: runs)")
    text = "trainings at a time (default: one a GPU, or one)"
    add("--jobs", type=positive_count, metavar="N", help=text)
    add("--nproc", type=positive_count, default=1, metavar="N", help="processes a training")
    add("--retry-failed", action="store_true", help="try those that failed again, once")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    add = made.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="show the points and their cost, start nothing")
    add("--print-commands", action="store_true", help="a shell command for each point to run")
    add("--wandb", action="store_true", help="create a wandb sweep of the points to run")
    add("--point", metavar="ID", help="train this one point, in this process")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Check every point, print what it will cost, and train what is not done."""
    state = SweepState(read_sweep(args.sweep, args.overrides), args.runs, args.trust_imports)
    if not (args.dry_run or args.print_commands or args.wandb or args.point):
        return _run(state, args)
    while state.advance():
        pass
    trials = state.trials(state.every.values())
    if args.point:
        by_id = {trial.id: trial for trial in trials}
        if args.point not in by_id:
            raise UserError(f"--point: {unknown('point', args.point, by_id)}")
        command = children.training(by_id[args.point].arguments, args.nproc)
        os.execv(command[0], command)  # the training takes the place of this process
    if args.dry_run:
        for trial in trials:
            print(f"{trial.state:<10} {trial.id}  {trial.name}")
        _print_plan(state, args, len(children.device_slots(args.jobs, args.nproc)))
        return 0
    if args.wandb:
        _create_at_wandb(state, _to_run(trials, args), args)
    else:
        words = ["vision-tutorial", "train"]
        if args.nproc > 1:
            words = ["torchrun", "--nproc", str(args.nproc), "-m", "vision_tutorial.train"]
        for trial in _to_run(trials, args):
            print(shlex.join([*words, *trial.arguments]))
    if later := state.later():
        text = "of later stages build on the best of these: ask again when these are done."
        print(f"{counted(later, 'run')} {text}", file=sys.stderr)
    return 0


def _run(state: SweepState, args: argparse.Namespace) -> int:
    """Stage after stage, each at the best of the one before; then the ranking."""
    slots = children.device_slots(args.jobs, args.nproc)
    with run_folder.lock(make_folder(state.own)), Stop().listening() as stop:
        scheduler = Scheduler(slots, args.nproc, stop)
        while not stop.signalled() and state.advance():
            _print_plan(state, args, len(slots))
            scheduler.run(_to_run(state.trials(state.points), args), state.known.values())
    _print_results(state)
    states = {trial.state for trial in state.known.values()}
    if states & {"new", "unfinished"}:
        print("not all have ended: the same command goes on from here")
    if stop.signalled():
        return ExitCode.PREEMPTED
    return ExitCode.DONE if states == {"done"} else _FAILED


def _to_run(trials: Sequence[Trial], args: argparse.Namespace) -> list[Trial]:
    skipped = ("done",) if args.retry_failed else ("done", "failed")
    return [trial for trial in trials if trial.state not in skipped]


def _create_at_wandb(state: SweepState, trials: list[Trial], args: argparse.Namespace) -> None:
    """A wandb sweep with one parameter, the point; its agents run `sweep --point=…`."""
    if not trials:
        raise UserError(f"{state.sweep.path}: nothing is left to run.")
    own = [str(state.sweep.path), *args.overrides, "--runs", args.runs, "--nproc", str(args.nproc)]
    words = ["${env}", "${interpreter}", "-m", "vision_tutorial", "sweep", *own, "${args}"]
    config: dict[str, Any] = {
        "name": state.sweep.name,
        "method": "grid",
        "parameters": {"point": {"values": [trial.id for trial in trials]}},
        "command": words + ["--trust-imports"] * args.trust_imports,
    }
    if metric := state.metric:
        goal = "maximize" if state.sweep.more_is_better else "minimize"
        config["metric"] = {"name": metric, "goal": goal}
    given = next(iter(state.every.values())).recipe.wandb
    project = given.project
    try:
        if (mode := os.environ.get("WANDB_MODE")) in ("offline", "disabled", "dryrun"):
            raise UserError(f"WANDB_MODE is {mode}, and a wandb sweep lives on the server")
        import wandb

        made = wandb.sweep(config, project=project, entity=given.entity)
    except Exception as error:  # whatever wandb raises: no key, no network, no permission
        raise UserError(
            f"--wandb: no sweep was created ({error}). `wandb login` stores a key; without a "
            "network use --print-commands."
        ) from error
    print(f"{counted(len(trials), 'point')}. On every machine that shares {args.runs}, or on one:")
    print(f"wandb agent {made if '/' in made else f'{project}/{made}'}")


def _print_plan(state: SweepState, args: argparse.Namespace, jobs: int) -> None:
    """What is about to run in the open stage, and what all that is left will cost."""
    sweep, points, later = state.sweep, state.points, state.later()
    stage = sweep.stages[state.stage]
    name = f", {stage.name}" if len(sweep.stages) > 1 else ""
    seeds = f" x {counted(len(sweep.seeds), 'seed')}" if sweep.seeds else ""
    print(f"{sweep.name}{name}: {counted(len(points), 'point')}{seeds} in {state.folder}")
    if same := len(stage.choices) - len(points):
        print(f"  left out {counted(same, 'point')} that resolve to the same recipe as another")
    trials = state.trials(points)
    states, left = Counter(trial.state for trial in trials), _to_run(trials, args)
    retry = " (--retry-failed tries again)" * bool(states["failed"] and not args.retry_failed)
    print("  now: " + ", ".join(f"{n} {state}" for state, n in states.items() if n) + retry)
    epochs = epochs_left(left) + later * points[0].recipe.total_epochs
    cost, recipe = "time unknown until an epoch is done", load(sweep.recipe).recipe
    if pace := measured_pace(state.known.values()):
        how = f"measured in {counted(pace[1], 'run')} here"
        cost = f"about {duration(epochs * pace[0] / jobs)} ({pace[0]:.2g} s an epoch, {how})"
    elif minutes := recipe.expects.get("minutes"):
        seconds = 60 * minutes / recipe.total_epochs * epochs / jobs
        cost = f"about {duration(seconds)}, as the recipe expects"
    more = f" and {later} in later stages" if later else ""
    work = f"{counted(len(left), 'run')}{more}, {counted(epochs, 'epoch')}"
    print(f"  to do: {work}, {jobs} at a time: {cost}", flush=True)


def _print_results(state: SweepState) -> None:
    """Every point with its mean and spread over seeds, best first; and how to see more."""
    for trial in state.known.values():
        if trial.state == "failed":
            print(f"failed     {trial.id}  {trial.error}  (log: {trial.log})")
    if ranked := state.ranked(state.every.values()):
        terminal(_ranking(ranked, state.metric), sys.stdout)
        print(f"vision-tutorial compare {shlex.quote(str(state.folder))}")
    if later := state.sweep.stages[state.stage + 1 :]:
        print(f"not begun: {', '.join(stage.name for stage in later)}")


def _ranking(results: Sequence[Result], metric: str | None) -> Table:
    """The points, best mean first, and how far each lies behind the first."""
    usual, first = pooled(result.best for result in results), results[0].best
    rows = []
    for place, (point, best, last, missing) in enumerate(results, start=1):
        behind = best.mean - first.mean if place > 1 else None
        widest = confidence_interval(first, best, usual)
        noise = "" if None in (behind, widest) or abs(behind) > widest else "within noise"
        lacking = f" ({counted(missing, 'seed')} missing)" if missing else ""
        rows.append((place, best, last, behind, noise, f"{point.words}{lacking}"))
    titles = {"#": "number", f"best {metric}": "number", "last": "number", "Δ": "signed"}
    columns = [Column(title, title, kind) for title, kind in titles.items()]
    columns += [Column("noise", ""), Column("point", "point")]
    notes = () if usual else ("Without seeds it is not known which differences are noise.",)
    return Table(tuple(columns), tuple(rows), notes)

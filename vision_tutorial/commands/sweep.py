"""Many points of a recipe, each trained once: a grid, a list, or greedy stages of them."""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from ..core.atomic import storage
from ..core.cli_types import positive_count
from ..core.errors import ExitCode, UserError, run_main, unknown
from ..recipe.notation import duration
from ..runs import run_folder
from ..runs.seed_statistics import margin, pooled
from ..sweeps import children
from ..sweeps.children import Stop
from ..sweeps.running import Shift
from ..sweeps.sweep_file import Trial, read_sweep, trials_of
from ..sweeps.trials import Board, Result
from ..tables.table import Column, Table, terminal

FAILED = 1  # the exit code where some trial is not done


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial sweep",
        description="Train every point of a sweep file once. Start it again after any end: what is "
        "done is skipped, what is unfinished goes on.",
        epilog="Exit codes: 0 all done, 1 some failed, 2 bad sweep file, 143 stopped (start it "
        "again). The runs are ordinary ones: `compare runs/<sweep>`.",
    )
    add = made.add_argument
    add("sweep", help="a sweep file, such as recipes/sweeps/quickstart-sweep.yaml")
    add("overrides", nargs="*", metavar="key.sub=value", help="set one value for all points")
    add("--runs", default="runs", metavar="DIR", help="where run folders go (default: runs)")
    add(
        "--jobs",
        type=positive_count,
        metavar="N",
        help="trainings at a time (default: one a GPU, or one)",
    )
    add("--nproc", type=positive_count, default=1, metavar="N", help="processes a training")
    add("--retry-failed", action="store_true", help="try those that failed again, once")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    instead = made.add_mutually_exclusive_group()
    add = instead.add_argument
    add("--dry-run", action="store_true", help="show the points and their cost, start nothing")
    add("--print-commands", action="store_true", help="a shell command for each point to run")
    add("--wandb", action="store_true", help="create a wandb sweep of the points to run")
    add("--point", metavar="ID", help="train this one point, in this process")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial sweep`."""
    args = parser().parse_intermixed_args(argv)
    return run_main(lambda: sweep(args))


def sweep(args: argparse.Namespace) -> int:
    """Check every point, say what it will cost, and train what is not done."""
    board = Board(read_sweep(args.sweep, args.overrides), args.runs)
    if not (args.dry_run or args.print_commands or args.wandb or args.point):
        return run(board, args)
    while board.advance():
        pass
    if args.point:
        become(board, args)
    elif args.print_commands:
        for trial in wanted(board, opened(board), args.retry_failed):
            print(command_line(board, trial, args))
        say_what_follows(board)
    elif args.wandb:
        create_at_wandb(board, args)
    else:
        for trial in opened(board):
            state = board.standings[trial.id].state
            print(f"{state:<10} {trial.id}  {trial.point.words}  seed {trial.seed}")
        say_plan(board, args, len(children.seats(args.jobs, args.nproc)))
    return 0


def wanted(board: Board, trials: Sequence[Trial], retry: bool) -> list[Trial]:
    """Those of the trials that are to be run."""
    skipped = ("done",) if retry else ("done", "failed")
    return [trial for trial in trials if board.standings[trial.id].state not in skipped]


def arguments(board: Board, trial: Trial, args: argparse.Namespace) -> list[str]:
    """The words after `train`: they start the trial, or continue it."""
    trust = ["--trust-imports"] * args.trust_imports
    where = ["--runs", args.runs, "--id", trial.id, "--resume"]
    return [str(board.sweep.recipe), *trial.overrides, *where, *trust]


def command(board: Board, args: argparse.Namespace, trial: Trial) -> list[str]:
    """What trains a trial, to be started here."""
    return children.training(arguments(board, trial, args), args.nproc)


def opened(board: Board) -> list[Trial]:
    """The trials of all stages that are open or settled."""
    return trials_of(board.sweep, list(board.every.values()))


# -- instead of running ----------------------------------------------------------------------------


def command_line(board: Board, trial: Trial, args: argparse.Namespace) -> str:
    """The command that trains a trial, for a shell or a scheduler's script."""
    words = ["vision-tutorial", "train"]
    if args.nproc > 1:
        words = ["torchrun", "--nproc", str(args.nproc), "-m", "vision_tutorial.train"]
    return shlex.join([*words, *arguments(board, trial, args)])


def say_what_follows(board: Board) -> None:
    """That a later stage has to wait."""
    if later := len(board.later()):
        print(
            f"{later} runs of later stages stand on the best of these: ask again when these are "
            "done.",
            file=sys.stderr,
        )


def become(board: Board, args: argparse.Namespace) -> NoReturn:
    """Train one trial in this process."""
    known = {trial.id: trial for trial in opened(board)}
    if args.point not in known:
        raise UserError(f"--point: {unknown('point', args.point, known)}")
    words = command(board, args, known[args.point])
    os.execv(words[0], words)


def create_at_wandb(board: Board, args: argparse.Namespace) -> None:
    """A wandb sweep with one parameter, the point; its agents run `sweep --point=…`."""
    trials = wanted(board, opened(board), args.retry_failed)
    if not trials:
        raise UserError(f"{board.sweep.path}: nothing is left to run.")
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        raise UserError(
            "--wandb: WANDB_MODE says offline, and a wandb sweep lives on the server. Unset it, or "
            "use --print-commands."
        )
    own = [str(board.sweep.path), *args.overrides, "--runs", args.runs, "--nproc", str(args.nproc)]
    words = ["${env}", "${interpreter}", "-m", "vision_tutorial.commands.sweep", *own, "${args}"]
    metric = next((s.metric for s in board.standings.values() if s.metric), board.sweep.metric)
    config: dict[str, Any] = {
        "name": board.sweep.name,
        "method": "grid",
        "parameters": {"point": {"values": [trial.id for trial in trials]}},
        "command": words + ["--trust-imports"] * args.trust_imports,
    }
    if metric:
        goal = "maximize" if board.sweep.more_is_better else "minimize"
        config["metric"] = {"name": metric, "goal": goal}
    project = trials[0].point.recipe.wandb.project
    try:
        import wandb

        made = wandb.sweep(config, project=project)
    except Exception as error:  # whatever wandb raises: no key, no network, no permission
        raise UserError(
            f"--wandb: no sweep was created ({error}). `wandb login` stores a key; without a "
            "network use --print-commands."
        ) from error
    print(f"{len(trials)} points. On every machine that shares {args.runs}, or on one:")
    print(f"wandb agent {made if '/' in made else f'{project}/{made}'}")
    say_what_follows(board)


# -- running ---------------------------------------------------------------------------------------


def run(board: Board, args: argparse.Namespace) -> int:
    """Stage after stage, each at the best of the one before; then the ranking."""
    seats = children.seats(args.jobs, args.nproc)
    with storage(board.own):
        board.own.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(board.own), Stop().listening() as stop:
        shift = Shift(board, seats, partial(command, board, args), stop)
        while not stop.asked and board.advance():
            say_plan(board, args, len(seats))
            shift.run(wanted(board, board.trials(), args.retry_failed))
    say_results(board)
    states = {standing.state for standing in board.standings.values()}
    if states & {"new", "unfinished"}:
        print("not all have ended: the same command goes on from here")
    if stop.asked:
        return ExitCode.PREEMPTED
    return ExitCode.DONE if states == {"done"} else FAILED


# -- what it says ----------------------------------------------------------------------------------


def say_plan(board: Board, args: argparse.Namespace, jobs: int) -> None:
    """What is about to run in the open stage, and what all that is left will cost."""
    stage, points = board.sweep.stages[board.stage], board.points
    name = f", {stage.name}" if len(board.sweep.stages) > 1 else ""
    seeds = f" x {counted(len(board.sweep.seeds), 'seed')}" if board.sweep.seeds else ""
    print(f"{board.sweep.name}{name}: {counted(len(points), 'point')}{seeds} in {board.folder}")
    if same := len(stage.choices) - len(points):
        print(f"  left out {counted(same, 'point')} that resolve to the same recipe as another")
    states = Counter(board.standings[trial.id].state for trial in board.trials())
    retry = " (--retry-failed tries again)" * bool(states["failed"] and not args.retry_failed)
    print("  now: " + ", ".join(f"{n} {state}" for state, n in states.items() if n) + retry)
    left, later = wanted(board, board.trials(), args.retry_failed), board.later()
    epochs = board.epochs_left([*left, *later])
    more = f" and {len(later)} in later stages" if later else ""
    cost = "time unknown until an epoch is done"
    if pace := board.seconds_an_epoch():
        cost = f"about {duration(epochs * pace[0] / jobs)} ({pace[0]:.2g} s an epoch, {pace[1]})"
    work = f"{counted(len(left), 'run')}{more}, {counted(epochs, 'epoch')}"
    print(f"  to do: {work}, {jobs} at a time: {cost}", flush=True)


def counted(number: int, what: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def say_results(board: Board) -> None:
    """Every point with its mean and spread over seeds, best first; and how to see more."""
    for id, standing in board.standings.items():
        if standing.state == "failed":
            print(f"failed     {id}  {standing.error}  (log: {board.own / id}.log)")
    if ranked := board.ranked(board.every.values()):
        metric = next(s.metric for s in board.standings.values() if s.metric)
        terminal(ranking(ranked, metric), sys.stdout)
        print(f"vision-tutorial compare {shlex.quote(str(board.folder))}")
    if later := board.sweep.stages[board.stage + 1 :]:
        print(f"not begun: {', '.join(stage.name for stage in later)}")


def ranking(results: Sequence[Result], metric: str) -> Table:
    """The points, best mean first, and how far each lies behind the first."""
    usual = pooled(result.best for result in results)
    first = results[0].best
    rows = []
    for place, result in enumerate(results, start=1):
        behind = result.best.mean - first.mean if place > 1 else None
        widest = margin(first, result.best, usual)
        noise = "" if place == 1 or widest is None or abs(behind) > widest else "within noise"
        lacking = f" ({counted(result.missing, 'seed')} missing)" if result.missing else ""
        words = f"{result.point.words}{lacking}"
        rows.append((place, result.best, result.last, behind, noise, words))
    columns = (
        Column("place", "#", "number"),
        Column("best", f"best {metric}", "number"),
        Column("last", "last", "number"),
        Column("behind", "Δ", "signed"),
        Column("noise", ""),
        Column("point", "point"),
    )
    notes = () if usual else ("Without seeds nobody knows which differences are noise.",)
    return Table(columns, tuple(rows), notes)


if __name__ == "__main__":
    sys.exit(main())

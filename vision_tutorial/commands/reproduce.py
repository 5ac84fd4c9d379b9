"""The Week-3 table once more: r0 … r5 as they stand, or shrunk to a budget; table and page."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core import processes
from ..core.atomic import read_json, storage, write_json, write_text
from ..core.cli_types import UNITS, positive_count, seconds, share
from ..core.errors import ExitCode, UserError, run_main, short
from ..core.processes import Ended, last_line
from ..core.sources import data_root
from ..recipe.fields import Recipe
from ..recipe.loading import load
from ..recipe.notation import duration
from ..report import gallery_files
from ..runs import run_folder
from ..runs.reader import Run, collect
from ..sweeps import children, scale_down
from ..sweeps.children import Stop
from ..sweeps.scale_down import NETWORKS, RULED, TABLE, Plan, Speed, count_images, makespan
from ..sweeps.scheduler import Deadline, Scheduler
from ..sweeps.throughput import ThroughputProbe
from ..sweeps.trials import Trial, TrialTable
from ..tables import comparison, table
from ..tables.labels import LANGUAGES
from ..tables.layouts import View, week3

_NOT_ALL = 1  # the exit code where some run is not done
_OWN = ".reproduce"  # in the folder: plan, speeds, logs, lock; it is no run folder
_MARGIN = 0.9  # of the time that there is, how much is planned
_SHAPES = "shapes"
_PAGE = 8.0  # seconds that it takes at most, without galleries
_SMALL = ("thin", "resnet10")
_PROBE_SECONDS = 6.0  # of the short training, at least
_PROBE_PART = 0.01  # of the budget, at least
_VERDICTS = {"within": "within noise", "beyond": "beyond noise"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial reproduce",
        description="Train r0 … r5, then print their table and write the "
        "report page. Start it again after any end: what is done is skipped, what is unfinished "
        "goes on. Shrunk, it follows the one rule of docs/reproduce.md.",
        epilog="Exit codes: 0 all done, 1 not all done, 2 bad input, 143 stopped (start it again). "
        "The runs are ordinary ones: `compare runs/week3`.",
    )
    add = made.add_argument
    add("what", choices=("week3",), help="the table")
    add("overrides", nargs="*", metavar="key.sub=value", help="set one value of all recipes")
    size = made.add_mutually_exclusive_group()
    size.add_argument(
        "--budget", type=seconds, metavar="TIME", help="shrink it to end within 90s, 20min, 1.5h"
    )
    size.add_argument(
        "--scale", type=share, metavar="S", help="shrink it to this share of the images seen"
    )
    add("--network", choices=NETWORKS, help="of all runs (default: by the budget, else resnet50)")
    add("--data", choices=("cifar100", _SHAPES), help="shapes: drawn by the package")
    add("--seeds", type=positive_count, default=1, metavar="N", help="runs of each recipe")
    add(
        "--nproc",
        type=positive_count,
        metavar="N",
        help="processes of a run (default: in full, one a GPU; shrunk, 1)",
    )
    add(
        "--jobs",
        type=positive_count,
        metavar="N",
        help="runs at a time (default: in full, 1; shrunk, one a GPU, or a core as memory allows)",
    )
    add("--runs", default="runs", metavar="DIR", help="where its folder goes (default: runs)")
    add("--lang", choices=LANGUAGES, default="en", help="language of table and page")
    add("--dry-run", action="store_true", help="measure, show the plan, train nothing of it")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial reproduce`."""
    args = parser().parse_intermixed_args(argv)
    return run_main(lambda: reproduce(args))


def reproduce(args: argparse.Namespace) -> int:
    """Plan, train what is not done, print the table and write the page."""
    deadline = Deadline(args.budget)
    _choose_data(args)
    recipes = _checked_recipes(args)
    own = Path(args.runs) / _folder_name(args) / _OWN
    with storage(own):
        own.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(own), Stop().listening() as stop:
        code: int = _NOT_ALL
        try:
            code = _carry_out(args, recipes, own, deadline, stop)
        except UserError:
            if not stop.asked:  # a short training that was stopped says that it failed
                raise
    if stop.asked:
        print("stopped: the same command goes on from here")
        return ExitCode.PREEMPTED
    return code


def _carry_out(
    args: argparse.Namespace, recipes: dict[str, Recipe], own: Path, deadline: Deadline, stop: Stop
) -> int:
    if _scaled_down(args):
        small = args.network in _SMALL or bool(args.network is None and args.budget)
        slots, processes = children.small_slots(
            args.seeds * len(TABLE), small, args.nproc, args.jobs
        )
    else:
        slots, processes = children.full_slots(recipes.values(), args.nproc, args.jobs)
    seconds = max(_PROBE_SECONDS, _PROBE_PART * (args.budget or 0))
    # a folder of its own: children of a start that was killed may still write into theirs
    folder = own / f"probe-{os.getpid()}"
    probe = ThroughputProbe(folder, _settings(args), slots, processes, seconds, stop)
    plan = _kept_plan(args, recipes, own, probe, deadline)
    trials = _trials(args, recipes, plan, own)
    if args.dry_run:
        return ExitCode.DONE
    table = TrialTable()
    scheduler = Scheduler(table, slots, processes, stop, deadline)
    scheduler.run([trial for trial in trials if table.look(trial).state != "done"])
    return _NOT_ALL if stop.asked else _finish(args, scheduler, trials, own)


def _scaled_down(args: argparse.Namespace) -> bool:
    return bool(args.budget or args.network or args.data == _SHAPES) or args.scale is not None


def _choose_data(args: argparse.Namespace) -> None:
    """Take shapes where CIFAR-100 is not at hand and a shrunk table is asked for."""
    mine = any(text.partition("=")[0].strip().startswith("dataset") for text in args.overrides)
    missing = not (data_root() / "cifar-100-python" / "train").is_file()
    if args.data is None and not mine and missing and _scaled_down(args):
        print(f"no CIFAR-100 in {data_root()} (VISION_TUTORIAL_DATA names the folder): shapes")
        args.data = _SHAPES


def _settings(args: argparse.Namespace) -> list[str]:
    """What is set on the recipes of the table, beside what shrinks them."""
    return [*(["dataset=shapes"] if args.data == _SHAPES else []), *args.overrides]


def _checked_recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes of the table, not shrunk yet. UserError for an override that cannot be."""
    for text in args.overrides:
        key = text.partition("=")[0].partition(".")[0].strip()
        if key in (RULED if _scaled_down(args) else {"name", "seed"}):
            raise UserError(f"{short(text, 50)}: reproduce sets {key} itself; leave it out.")
    return {name: load(scale_down.path_of(name), _settings(args)).recipe for name in TABLE}


def _folder_name(args: argparse.Namespace) -> str:
    budget = args.budget and _spelled(args.budget)
    scale = None if args.scale is None else f"{args.scale:g}"
    seeds = f"{args.seeds}seeds" if args.budget and args.seeds > 1 else None
    data = _SHAPES if args.data == _SHAPES else None
    return "-".join(filter(None, (args.what, budget, scale, args.network, seeds, data)))


def _spelled(time: float) -> str:
    unit = next((u for u in ("h", "min") if time % UNITS[u] == 0), "s")
    return f"{time / UNITS[unit]:g}{unit}"


def _kept_plan(
    args: argparse.Namespace,
    recipes: dict[str, Recipe],
    own: Path,
    probe: ThroughputProbe,
    deadline: Deadline,
) -> Plan | None:
    """How the table is scaled down; None: not at all. Made once and kept for later starts.

    The plan is printed.
    """
    kept = own / "plan.json"
    if kept.is_file():
        facts = read_json(kept)
        if sorted(facts["overrides"]) != sorted(args.overrides):
            was = " ".join(facts["overrides"]) or "no overrides"
            raise UserError(f"{own.parent} was begun with {was}; give the same, or another --runs.")
        plan = facts["plan"] and Plan(**facts["plan"])
        speed = facts["speed"] and Speed(*facts["speed"])
    else:
        plan, speed = _new_plan(args, recipes, probe, deadline)
        facts = {"overrides": args.overrides, "plan": plan and asdict(plan), "speed": speed}
        write_json(kept, facts)
    for line in _description(args, recipes, plan, speed, len(probe.slots)):
        print(line, flush=True)
    return plan


def _new_plan(
    args: argparse.Namespace, recipes: dict[str, Recipe], probe: ThroughputProbe, deadline: Deadline
) -> tuple[Plan | None, Speed | None]:
    """The plan by the rule; with a budget also the speed that it is based on, measured here."""
    if not _scaled_down(args):
        return None, None
    data = count_images(recipes["r0"])
    if not args.budget:
        epochs, images = scale_down.size_of_share(1.0 if args.scale is None else args.scale, data)
        return scale_down.plan(epochs, images, args.network or "resnet50", data), None
    full, slots = [recipe.epochs for recipe in recipes.values()], len(probe.slots)

    def make(network: str, speed: Speed) -> Plan | None:
        return scale_down.largest(
            network, speed, _MARGIN * deadline.room(), full, data, args.seeds, slots
        )

    def measure(network: str, batch_size: int) -> Speed:
        print(f"measuring {network} …", flush=True)
        return probe.measure(network, batch_size, data.train)

    networks = [args.network] if args.network else list(NETWORKS)
    plan, speed = scale_down.choose(networks, measure, make)
    if plan is None:
        least = scale_down.plan(*list(scale_down.sizes(data))[-1], networks[0], data)
        times = [least.seconds(epochs, speed, data.test) for epochs in full * args.seeds]
        needed = makespan(times, slots) / _MARGIN + args.budget - deadline.room()
        raise UserError(
            f"--budget {_spelled(args.budget)}: too little for the smallest table here, which "
            f"takes {duration(needed)} (measuring, {speed.start:.0f} s a start, "
            f"{speed.rate * slots:,.0f} images a second). Give more."
        )
    return plan, speed


def _description(
    args: argparse.Namespace,
    recipes: dict[str, Recipe],
    plan: Plan | None,
    speed: Speed | None,
    jobs: int,
) -> Iterator[str]:
    """What is about to be trained, a line a recipe, and how long it takes where that is known."""
    seeds = f", {args.seeds} seeds of each" if args.seeds > 1 else ""
    seeds += f", {jobs} at a time" if jobs > 1 else ""
    if plan is None:
        yield f"{_folder_name(args)}: r0 … r5 as they stand{seeds}"
        for name, recipe in recipes.items():
            minutes = recipe.expects.get("minutes")
            report = f"; the report: {minutes:g} min on two GPUs" if minutes else ""
            yield f"{name}: {recipe.total_epochs} epochs, {recipe.model.name}{report}"
        return
    fast = f", {speed.rate * jobs:,.0f} images a second here" if speed else ""
    yield f"{_folder_name(args)}: network {plan.network}, batch {plan.batch_size}{fast}{seeds}"
    times, test = [], count_images(recipes["r0"]).test
    for name, recipe in recipes.items():
        about = ""
        if speed:
            times.append(plan.seconds(recipe.epochs, speed, test))
            about = f", about {duration(times[-1])}"
        epochs = f"{plan.total_epochs(recipe.epochs)} epochs of {plan.images:,} images"
        yield f"{name}: {epochs} (in full {recipe.total_epochs}){about}"
    if speed:
        total = makespan(times * args.seeds, jobs)
        more = "; what does not fit waits for another start" if total > args.budget else ""
        yield f"in all about {duration(total)} of {_spelled(args.budget)}{more}"


def _trials(
    args: argparse.Namespace, recipes: dict[str, Recipe], plan: Plan | None, own: Path
) -> list[Trial]:
    """All recipes with the first seed, then with the next. Writes the scaled-down recipes."""
    folder = own.parent
    if plan:
        dataset = _SHAPES if args.data == _SHAPES else None
        scale_down.write_recipes(plan, folder, dataset, count_images(recipes["r0"]).train)
    trials = []
    for number in range(args.seeds):
        for name, recipe in recipes.items():
            seed = recipe.seed + number
            path = folder / f"{name}.yaml" if plan else scale_down.path_of(name)
            where = ("--runs", str(folder), "--id", f"seed{seed}", "--resume")
            trials.append(
                Trial(
                    f"{name} seed {seed}",
                    folder / name / f"seed{seed}",
                    own / f"{name}-seed{seed}.log",
                    (str(path), *args.overrides, f"seed={seed}", *where),
                    plan.total_epochs(recipe.epochs) if plan else recipe.total_epochs,
                )
            )
    return trials


def _finish(
    args: argparse.Namespace, scheduler: Scheduler, trials: Sequence[Trial], own: Path
) -> int:
    """The table on the screen and as Markdown, the page, and what is missing; the exit code."""
    runs, _ = collect([own.parent])
    if runs:
        view = View(comparison.rows_of(runs), args.lang)
        week3_table = week3(view).transposed()
        table.terminal(week3_table, sys.stdout)
        write_text(own.parent / "week3.md", table.markdown(week3_table))
        print(_order(view))
        write_page(args, own, runs, scheduler.deadline, scheduler.stop)
    statuses = {trial.name: scheduler.table.look(trial) for trial in trials}
    missing = [
        f"{name} ({status.state if status.state == 'failed' else status})"
        for name, status in statuses.items()
        if status.state != "done"
    ]
    if missing:
        why = "the time was up: " if scheduler.late else ""
        print(f"{why}not done: {', '.join(missing)}; the same command goes on from here")
    return _NOT_ALL if missing else ExitCode.DONE


def write_page(
    args: argparse.Namespace, own: Path, runs: Sequence[Run], deadline: Deadline, stop: Stop
) -> None:
    """report.html; once more with galleries of the runs, as far as there is time."""
    folder, log = own.parent, own / "page.log"
    page = ["report", str(folder), "-o", str(folder / "report.html")]
    page += ["--title", folder.name, "--lang", args.lang]
    done = [run.folder for run in runs if run.status == "done" and run.folder]
    without = [str(run) for run in done if not gallery_files.exists(run)]

    def command(words: list[str], log: Path, enough: Callable[[], bool]) -> Ended:
        words = [sys.executable, "-m", "vision_tutorial", *words]
        return processes.run_command(words, log, enough, then_stop=True)

    command(page, log, lambda: False)
    if without and deadline.left() > 2 * _PAGE and not stop.asked:
        galleries = own / "galleries.log"
        enough = lambda: deadline.left() < _PAGE or stop.asked  # noqa: E731
        ended = command(["gallery", *without], galleries, enough)
        if ended.seen or ended.code:
            why = "the time was up" if ended.seen else last_line(galleries)
            print(f"not all galleries are on the page: {why} (log: {galleries})")
        command(page, log, lambda: False)
    print(last_line(log))


def _order(view: View) -> str:
    """Whether r0 < r1 < r2 came out, and whether that is more than noise."""
    done = {line.run.name: line for line in view.rows if line.done}
    if missing := [name for name in TABLE[:3] if name not in done]:
        return f"r0 < r1 < r2: not known without {', '.join(missing)}"
    r0, r1, r2 = (done[name].best.mean for name in TABLE[:3])
    steps = {name: view.deltas[line] for name, line in done.items()}
    known = [_VERDICTS.get(steps[name].verdict if steps[name] else "") for name in TABLE[1:3]]
    deltas = [
        f"{after - before:+.2f} {verdict or ''}".rstrip()
        for before, after, verdict in ((r0, r1, known[0]), (r1, r2, known[1]))
    ]
    word = "came out" if r0 < r1 < r2 else "did not come out"
    more = "" if all(known) else "; only more --seeds tell that from noise"
    return f"r0 < r1 < r2 {word}: {r0:.2f}, {r1:.2f}, {r2:.2f} ({', '.join(deltas)}{more})"


if __name__ == "__main__":
    sys.exit(main())

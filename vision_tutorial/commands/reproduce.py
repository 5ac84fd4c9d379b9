"""The Week-3 table once more: r0 … r5 as they stand, or shrunk to a budget; table and page."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core import arrays, child_process
from ..core.atomic import read_json, storage, write_json, write_text
from ..core.child_process import Ended, last_line
from ..core.cli_types import UNITS, positive_count, seconds, share
from ..core.errors import ExitCode, UserError, run_main, short
from ..core.sources import data_root
from ..recipe.fields import Recipe
from ..recipe.loading import load
from ..recipe.notation import duration
from ..recipe.recipe_info import facts, used
from ..report import gallery_files
from ..runs import run_folder
from ..runs.reader import collect
from ..runs.run import Run
from ..sweeps.budget import Clock, Shift, Trial, in_full, side_by_side
from ..sweeps.children import Seat, Stop
from ..sweeps.scale_down import (
    CIFAR,
    NETWORKS,
    RULED,
    TABLE,
    Data,
    Plan,
    Speed,
    fitting,
    largest,
    makespan,
    path_of,
    plan,
    size_of_share,
    sizes,
    write_recipes,
)
from ..sweeps.throughput import PART, SECONDS, Probe
from ..tables import comparison, table
from ..tables.columns import View
from ..tables.labels import LANGUAGES
from ..tables.layouts import week3

NOT_ALL = 1  # the exit code where some run is not done
OWN = ".reproduce"  # in the folder: plan, speeds, logs, lock; nobody takes it for a run
MARGIN = 0.9  # of the time that there is, how much is planned
SHAPES = "shapes"
PAGE = 8.0  # seconds that it takes at most, without galleries
SMALL = ("thin", "resnet10")


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
    add("--data", choices=("cifar100", SHAPES), help="shapes: drawn by the package")
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
    """Plan, train what is not done, show what came of it."""
    clock = Clock(args.budget)
    choose_data(args)
    recipes = checked(args)
    own = Path(args.runs) / name_of(args) / OWN
    with storage(own):
        own.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(own), Stop().listening() as stop:
        code: int = NOT_ALL
        try:
            code = carry_out(args, recipes, own, clock, stop)
        except UserError:
            if not stop.asked:  # a short training that was stopped says that it failed
                raise
    if stop.asked:
        print("stopped: the same command goes on from here")
        return ExitCode.PREEMPTED
    return code


def carry_out(
    args: argparse.Namespace, recipes: dict[str, Recipe], own: Path, clock: Clock, stop: Stop
) -> int:
    """All of it, in the folder around `own`; the exit code."""
    seats, world = seating(args, recipes)
    longest = max(SECONDS, PART * (args.budget or 0))
    # a folder of its own: children of a start that was killed may still write into theirs
    probe = Probe(own / f"probe-{os.getpid()}", settings(args), seats, world, longest, stop)
    made = planned(args, recipes, own, probe, clock)
    trials = trials_of(args, recipes, made, own.parent)
    if args.dry_run:
        return ExitCode.DONE
    shift = Shift(trials, own.parent, own, args.overrides, seats, world, clock, stop)
    shift.run()
    return NOT_ALL if stop.asked else finish(args, shift)


def seating(args: argparse.Namespace, recipes: Mapping[str, Recipe]) -> tuple[list[Seat], int]:
    """Where runs are trained at the same time, and on how many processes each."""
    if not shrunk(args):
        return in_full(recipes.values(), args.nproc, args.jobs)
    small = args.network in SMALL or (args.network is None and args.budget)
    return side_by_side(args.seeds * len(TABLE), bool(small), args.nproc, args.jobs)


# -- what is asked for -----------------------------------------------------------------------------


def shrunk(args: argparse.Namespace) -> bool:
    """Whether it is another table than the recipes' own."""
    return bool(args.budget or args.network or args.data == SHAPES) or args.scale is not None


def choose_data(args: argparse.Namespace) -> None:
    """Take shapes where CIFAR-100 is not at hand and a shrunk table is asked for."""
    mine = any(text.partition("=")[0].strip().startswith("dataset") for text in args.overrides)
    missing = not (data_root() / "cifar-100-python" / "train").is_file()
    if args.data is None and not mine and missing and shrunk(args):
        print(f"no CIFAR-100 in {data_root()} (VISION_TUTORIAL_DATA names the folder): shapes")
        args.data = SHAPES


def settings(args: argparse.Namespace) -> list[str]:
    """What is set on the recipes of the table, beside what shrinks them."""
    return [*(["dataset=shapes"] if args.data == SHAPES else []), *args.overrides]


def checked(args: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes of the table, not shrunk yet. UserError for an override that cannot be."""
    for text in args.overrides:
        key = text.partition("=")[0].partition(".")[0].strip()
        if key in (RULED if shrunk(args) else {"name", "seed"}):
            raise UserError(f"{short(text, 50)}: reproduce sets {key} itself; leave it out.")
    return {name: load(path_of(name), settings(args)).recipe for name in TABLE}


def images(recipe: Recipe) -> Data:
    """How many a recipe trains and tests on. UserError if only its data knows."""
    name, options = recipe.dataset.name, recipe.dataset.options
    if name == "arrays":
        counted = arrays.counts(Path(options["root"]).expanduser())
        if missing := {"train", "test"} - counted.keys():
            raise UserError(f"{options['root']}: has no split '{min(missing)}'.")
        whole, test = counted["train"], counted["test"]
    else:
        whole, test = facts(recipe).whole, options.get("test", CIFAR.test)
    if whole is None:
        raise UserError(
            f"dataset {name}: nobody knows how many images it has. Leave out --budget, --scale "
            "and --network, or take cifar100, shapes, or arrays (vision-tutorial pack)."
        )
    train = used(recipe, whole)
    return Data(train, whole - train if recipe.holdout else test)


def name_of(args: argparse.Namespace) -> str:
    """Of the table's folder: other tables get other folders."""
    budget = args.budget and spelled(args.budget)
    scale = None if args.scale is None else f"{args.scale:g}"
    seeds = f"{args.seeds}seeds" if args.budget and args.seeds > 1 else None
    data = SHAPES if args.data == SHAPES else None
    return "-".join(filter(None, (args.what, budget, scale, args.network, seeds, data)))


def spelled(time: float) -> str:
    """A time in its largest whole unit: 90s, 20min, 2h."""
    unit = next((u for u in ("h", "min") if time % UNITS[u] == 0), "s")
    return f"{time / UNITS[unit]:g}{unit}"


# -- the plan --------------------------------------------------------------------------------------


def planned(
    args: argparse.Namespace, recipes: dict[str, Recipe], own: Path, probe: Probe, clock: Clock
) -> Plan | None:
    """How the table is shrunk; None: not at all. Made once and kept, so that a later start goes on.

    What is planned is said.
    """
    kept = own / "plan.json"
    if kept.is_file():
        facts = read_json(kept)
        if sorted(facts["overrides"]) != sorted(args.overrides):
            was = " ".join(facts["overrides"]) or "no overrides"
            raise UserError(f"{own.parent} was begun with {was}; give the same, or another --runs.")
        made, speed = facts["plan"] and Plan(**facts["plan"]), facts["speed"]
    else:
        made, speed = plan_anew(args, recipes, probe, clock) if shrunk(args) else (None, None)
        facts = {"overrides": args.overrides, "plan": made and asdict(made), "speed": speed}
        write_json(kept, facts)
    for line in described(args, recipes, made, speed and Speed(*speed), len(probe.seats)):
        print(line, flush=True)
    return made


def plan_anew(
    args: argparse.Namespace, recipes: dict[str, Recipe], probe: Probe, clock: Clock
) -> tuple[Plan, Speed | None]:
    """The plan by the rule; with a budget also the speed that it stands on, measured here."""
    data = images(recipes["r0"])
    if not args.budget:
        size = size_of_share(1.0 if args.scale is None else args.scale, data)
        return plan(*size, args.network or "resnet50", data), None

    full, seats = [recipe.epochs for recipe in recipes.values()], len(probe.seats)

    def make(network: str, speed: Speed) -> Plan | None:
        return largest(network, speed, MARGIN * clock.room(), full, data, args.seeds, seats)

    def measure(network: str, batch_size: int) -> Speed:
        print(f"measuring {network} …", flush=True)
        return probe(network, batch_size, data.train)

    networks = [args.network] if args.network else list(NETWORKS)
    made, speed = fitting(networks, measure, make)
    if made is None:
        least = plan(*list(sizes(data))[-1], networks[0], data)
        times = [least.seconds(epochs, speed, data.test) for epochs in full * args.seeds]
        wanted = makespan(times, seats) / MARGIN + args.budget - clock.room()
        raise UserError(
            f"--budget {spelled(args.budget)}: too little for the smallest table here, which takes "
            f"{duration(wanted)} (measuring, {speed.start:.0f} s a start, "
            f"{speed.rate * seats:,.0f} images a second). Give more."
        )
    return made, speed


def described(
    args: argparse.Namespace,
    recipes: dict[str, Recipe],
    made: Plan | None,
    speed: Speed | None,
    jobs: int,
) -> Iterator[str]:
    """What is about to be trained, a line a recipe, and how long it takes where that is known."""
    seeds = f", {args.seeds} seeds of each" if args.seeds > 1 else ""
    seeds += f", {jobs} at a time" if jobs > 1 else ""
    if made is None:
        yield f"{name_of(args)}: r0 … r5 as they stand{seeds}"
        for name, recipe in recipes.items():
            minutes = recipe.expects.get("minutes")
            told = f"; the report: {minutes:g} min on two GPUs" if minutes else ""
            yield f"{name}: {recipe.total_epochs} epochs, {recipe.model.name}{told}"
        return
    fast = f", {speed.rate * jobs:,.0f} images a second here" if speed else ""
    yield f"{name_of(args)}: network {made.network}, batch {made.batch_size}{fast}{seeds}"
    times, test = [], images(recipes["r0"]).test
    for name, recipe in recipes.items():
        about = ""
        if speed:
            times.append(made.seconds(recipe.epochs, speed, test))
            about = f", about {duration(times[-1])}"
        epochs = f"{made.total_epochs(recipe.epochs)} epochs of {made.images:,} images"
        yield f"{name}: {epochs} (in full {recipe.total_epochs}){about}"
    if speed:
        total = makespan(times * args.seeds, jobs)
        more = "; what does not fit waits for another start" if total > args.budget else ""
        yield f"in all about {duration(total)} of {spelled(args.budget)}{more}"


def trials_of(
    args: argparse.Namespace, recipes: dict[str, Recipe], made: Plan | None, folder: Path
) -> list[Trial]:
    """The runs: all recipes with the first seed, then with the next. Writes the shrunk recipes."""
    if made:
        dataset = SHAPES if args.data == SHAPES else None
        write_recipes(made, folder, dataset, images(recipes["r0"]).train)
    return [
        Trial(
            name,
            recipe.seed + number,
            folder / f"{name}.yaml" if made else path_of(name),
            made.total_epochs(recipe.epochs) if made else recipe.total_epochs,
        )
        for number in range(args.seeds)
        for name, recipe in recipes.items()
    ]


# -- what came of it -------------------------------------------------------------------------------


def finish(args: argparse.Namespace, shift: Shift) -> int:
    """The table on the screen and as Markdown, the page, and what is missing; the exit code."""
    found, _ = collect([shift.folder])
    if found:
        view = View(comparison.rows_of(found), args.lang)
        made = week3(view).transposed()
        table.terminal(made, sys.stdout)
        write_text(shift.folder / "week3.md", table.markdown(made))
        print(order(view))
        write_page(args, shift, found)
    states = {str(trial): shift.state(trial) for trial in shift.trials}
    missing = [f"{trial} ({state})" for trial, state in states.items() if state != "done"]
    if missing:
        why = "the time was up: " if shift.late else ""
        print(f"{why}not done: {', '.join(missing)}; the same command goes on from here")
    return NOT_ALL if missing else ExitCode.DONE


def write_page(args: argparse.Namespace, shift: Shift, runs: Sequence[Run]) -> None:
    """report.html; once more with galleries of the runs, as far as the time goes."""
    page = ["report", str(shift.folder), "-o", str(shift.folder / "report.html")]
    page += ["--title", shift.folder.name, "--lang", args.lang]
    bare = [run.folder for run in runs if run.status == "done" and run.folder]
    bare = [str(folder) for folder in bare if not gallery_files.exists(folder)]
    log, clock = shift.logs / "page.log", shift.clock
    command(page, log)
    if bare and clock.left() > 2 * PAGE and not shift.stop.asked:
        log = shift.logs / "galleries.log"
        made = command(["gallery", *bare], log, lambda: clock.left() < PAGE or shift.stop.asked)
        if made.seen or made.code:
            why = "the time was up" if made.seen else last_line(log)
            print(f"not all galleries are on the page: {why} (log: {log})")
        command(page, shift.logs / "page.log")
    print(last_line(shift.logs / "page.log"))


def command(words: Sequence[str], log: Path, enough: Callable[[], bool] = lambda: False) -> Ended:
    """Run a command in a process of its own, until `enough` at most."""
    command = [sys.executable, "-m", "vision_tutorial", *words]
    return child_process.run_command(command, log, enough, then_stop=True)


def order(view: View) -> str:
    """Whether r0 < r1 < r2 came out, and whether that is more than noise."""
    done = {line.run.name: line for line in view.rows if line.done}
    if missing := [name for name in TABLE[:3] if name not in done]:
        return f"r0 < r1 < r2: not known without {', '.join(missing)}"
    r0, r1, r2 = (done[name].best.mean for name in TABLE[:3])
    steps = {name: view.deltas[line] for name, line in done.items()}
    known = [VERDICTS.get(steps[name].verdict if steps[name] else "") for name in TABLE[1:3]]
    told = [
        f"{after - before:+.2f}{f' {verdict}' if verdict else ''}"
        for before, after, verdict in ((r0, r1, known[0]), (r1, r2, known[1]))
    ]
    word = "came out" if r0 < r1 < r2 else "did not come out"
    more = "" if all(known) else "; only more --seeds tell that from noise"
    return f"r0 < r1 < r2 {word}: {r0:.2f}, {r1:.2f}, {r2:.2f} ({', '.join(told)}{more})"


VERDICTS = {"within": "within noise", "beyond": "beyond noise"}


if __name__ == "__main__":
    sys.exit(main())

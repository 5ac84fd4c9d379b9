"""A run once more from its folder, and the verdict whether it came out the same."""

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.cli_types import positive, positive_count
from ..core.errors import ExitCode, UserError, run_main
from ..runs import reader
from ..runs.fingerprint import fingerprint
from ..runs.reproducibility import Verdict, differences, edited, first_difference, judge
from ..runs.run import Run
from ..sweeps import children
from ..sweeps.children import Stop

NOT_REPRODUCED = 1  # the exit code
LOOK = 0.25  # seconds between two looks at what the second run has done


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial rerun",
        description="Train a run once more from its folder, say first what differs here, and at "
        "the end whether it came out bit-identical, within noise, or was not reproduced.",
        epilog="Exit codes: 0 bit-identical or within noise, 1 not reproduced, 2 no such run, 143 "
        "stopped; what `train` exits with, where it did not begin.",
    )
    add = made.add_argument
    add("run", type=Path, help="the run folder to reproduce")
    add("--first", type=positive_count, metavar="K", help="only the first K epochs")
    add("--against", type=Path, metavar="RUN", help="train nothing: judge this second run")
    add(
        "--spread",
        type=positive,
        metavar="S",
        help="standard deviation of the headline between seeds, where no runs beside it tell",
    )
    add("--nproc", type=positive_count, metavar="N", help="processes (default: as many as it had)")
    add("--runs", metavar="DIR", help="where the second run goes (default: beside the first)")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial rerun`."""
    args = parser().parse_args(argv)
    return run_main(lambda: rerun(args))


def rerun(args: argparse.Namespace) -> int:
    """Say what differs, train again, judge."""
    there = read(args.run)
    epochs = min(args.first or len(there.rows), len(there.rows))
    if not epochs:
        raise UserError(f"{args.run}: no epoch of it is finished, so there is nothing to compare.")
    say(f"{args.run}: {there.status}; comparing {epochs} of {len(there.rows)} epochs")
    if found := edited(there):  # another recipe would be trained
        return tell(Verdict("not reproduced", found))
    told = Told(there, epochs)
    if args.against:
        here = read(args.against)
        told.surroundings(here.fingerprint)
        return tell(judge(there, here, epochs, args.spread))
    world = args.nproc or processes(there)
    told.surroundings(expected(world))
    with Stop().listening() as stop:
        folder, code = train(told, world, args, stop)
    here = read(folder) if (folder / "recipe.yaml").is_file() else None
    if stop.asked or (here and here.status == "preempted"):
        if here:
            say(f"stopped. Go on with: vision-tutorial train {folder}")
            say(f"Then: vision-tutorial rerun {args.run} --against {folder}")
        return ExitCode.PREEMPTED
    return tell(judge(there, here, epochs, args.spread)) if here else code


def say(line: str) -> None:
    """One line, at once: the training prints beside us."""
    print(line, flush=True)


def read(folder: Path) -> Run:
    """A run folder. UserError if it is none."""
    try:
        return reader.read(folder)
    except UserError as error:
        raise UserError(f"{folder}: {error}. Give a folder that `train` made.") from error


def tell(verdict: Verdict) -> int:
    """Print the verdict; the exit code."""
    say(f"{verdict.word}: {verdict.why}")
    return ExitCode.DONE if verdict.reproduced else NOT_REPRODUCED


def processes(run: Run) -> int:
    """On how many it was trained."""
    world = str((run.fingerprint.get("environment") or {}).get("WORLD_SIZE", 1))
    return int(world) if world.isdecimal() else 1


def expected(world: int) -> dict[str, Any]:
    """The fingerprint that a training here will have, as far as it is known before."""
    facts = fingerprint()
    if world > 1:
        facts["environment"] |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return facts


def train(told: "Told", world: int, args: argparse.Namespace, stop: Stop) -> tuple[Path, int]:
    """Train again, as many epochs as are compared; the run folder and the exit code."""
    there, epochs = told.there, told.epochs
    root = Path(args.runs) if args.runs else there.folder.absolute().parents[1]
    folder = fresh(root / there.name, there.id)
    words = [str(there.folder / "recipe.yaml"), "--quiet", "--runs", str(root), "--id", folder.name]
    threads = (there.fingerprint.get("torch") or {}).get("threads")
    if threads and not there.recipe["threads"]:
        words.append(f"threads={threads}")
    if epochs < len(there.rows) or there.status != "done":
        words += ["--steps", str(there.rows[epochs - 1]["step"])]
    if args.trust_imports:
        words.append("--trust-imports")
    child = children.start(children.training(words, world))
    stop.watch(child)
    while child.poll() is None:
        time.sleep(LOOK)
        told.look(folder)
    told.look(folder)
    return folder, child.returncode


def fresh(parent: Path, id: str) -> Path:
    """A name for the second run that is not taken."""
    names = itertools.chain([f"{id[:54]}-rerun"], (f"{id[:54]}-rerun-{n}" for n in range(2, 1000)))
    return next(parent / name for name in names if not (parent / name).exists())


class Told:
    """What is said of the second run while it trains: what differs around it, epoch after epoch."""

    def __init__(self, there: Run, epochs: int):
        self.there, self.epochs = there, epochs
        self.said: set[str] = set()
        self.started = False
        self.rows = 0

    def surroundings(self, fingerprint: Mapping[str, Any]) -> None:
        """Say what around the run is not as it was, and has not been said."""
        found = differences(self.there.fingerprint, fingerprint)
        for difference in found:
            if difference.fact not in self.said:
                say(f"differs    {difference}")
        self.said.update(difference.fact for difference in found)
        known = "versions, hardware, settings, code"
        known += (
            ", data, threads" if fingerprint.get("data") else "; data and threads not known yet"
        )
        if not found:
            say(f"the same   {known}")

    def look(self, folder: Path) -> None:
        """Say what is new in the second run's folder."""
        if not (folder / "fingerprint.json").is_file():
            return
        there, here = self.there, read(folder)
        if not self.started:  # only the training knows its data, threads and GPU
            self.started = True
            self.surroundings(here.fingerprint)
        for number in range(self.rows, min(len(here.rows), self.epochs)):
            value = here.rows[number].get(there.metric or "")
            differs = first_difference(there, here, number + 1) or "same bits"
            say(f"epoch {number + 1}/{self.epochs}  {there.metric} {value}  {differs}")
        self.rows = len(here.rows)


if __name__ == "__main__":
    sys.exit(main())

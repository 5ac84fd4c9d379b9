"""A run once more from its folder, and the verdict whether it came out the same."""

import argparse
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from ..core.cli_types import positive, positive_count
from ..core.errors import ExitCode, UserError, counted
from ..recipe.command_line import Parser
from ..runs import reader
from ..runs.fingerprint import fingerprint
from ..runs.reader import Run
from ..runs.reproducibility import Verdict, differences, edited, first_difference, judge
from ..sweeps import children
from ..sweeps.children import Stop
from . import entry_point

_NOT_REPRODUCED = 1  # the exit code
LOOK = 0.25  # seconds between two checks of the second run


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial rerun",
        description="Train a run once more from its folder, print first what differs here, and at "
        "the end whether it came out bit-identical, within noise, or was not reproduced.",
        epilog="Exit codes: 0 bit-identical or within noise, 1 not reproduced, 2 no such run, 143 "
        "stopped; what `train` exits with, where it did not begin.",
    )
    add = made.add_argument
    add("run", type=Path, help="the run folder to reproduce")
    add("--first", type=positive_count, metavar="K", help="only the first K epochs")
    add("--against", type=Path, metavar="RUN", help="train nothing: judge this second run")
    spread = "standard deviation of the headline between seeds, where no other runs show it"
    add("--spread", type=positive, metavar="S", help=spread)
    add("--nproc", type=positive_count, metavar="N", help="processes (default: as many as it had)")
    add("--runs", metavar="DIR", help="where the second run goes (default: beside the first)")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print what differs, train again, judge."""
    first = _read(args.run)
    epochs = min(args.first or len(first.rows), len(first.rows))
    if not epochs:
        raise UserError(f"{args.run}: no epoch of it is finished, so there is nothing to compare.")
    _print(f"{args.run}: {first.status}; comparing {epochs} of {counted(len(first.rows), 'epoch')}")
    if reason := edited(first):  # another recipe would be trained
        return _print_verdict(Verdict("not reproduced", reason))
    if args.against:
        second = _read(args.against)
        _print_differences(first.fingerprint, second.fingerprint, set())
        return _print_verdict(judge(first, second, epochs, args.spread))
    with Stop().listening() as stop:
        folder, code = _train(first, epochs, args, stop)
    second = _read(folder) if (folder / "recipe.yaml").is_file() else None
    if stop.signalled() or (second and second.status == "preempted"):
        if second:
            made = quote(str(folder))
            _print(f"stopped. Go on with: vision-tutorial train {made}")
            _print(f"Then: vision-tutorial rerun {quote(str(args.run))} --against {made}")
        return ExitCode.PREEMPTED
    return _print_verdict(judge(first, second, epochs, args.spread)) if second else code


_print = partial(print, flush=True)


def _read(folder: Path) -> Run:
    try:
        return reader.read(folder)
    except UserError as error:
        raise UserError(f"{folder}: {error}. Give a folder that `train` made.") from error


def _print_verdict(verdict: Verdict) -> int:
    _print(f"{verdict.word}: {verdict.why}")
    return _NOT_REPRODUCED if verdict.word == "not reproduced" else ExitCode.DONE


def _train(first: Run, epochs: int, args: argparse.Namespace, stop: Stop) -> tuple[Path, int]:
    """Train again, as many epochs as are compared; the run folder and the exit code."""
    world = str((first.fingerprint.get("environment") or {}).get("WORLD_SIZE", 1))
    processes = args.nproc or (int(world) if world.isdecimal() else 1)
    here = fingerprint()
    if processes > 1:
        here["environment"] |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    printed = _print_differences(first.fingerprint, here, set())
    root = Path(args.runs) if args.runs else first.folder.absolute().parents[1]
    names = (f"{first.id[:54]}-rerun{n}" for n in ("", *(f"-{n}" for n in range(2, 1000))))
    folder = next(root / first.name / n for n in names if not (root / first.name / n).exists())
    words = [str(first.folder / "recipe.yaml"), "--quiet", "--runs", str(root), "--id", folder.name]
    threads = (first.fingerprint.get("torch") or {}).get("threads")
    if threads and not first.recipe["threads"]:
        words.append(f"threads={threads}")
    if epochs < len(first.rows) or first.status != "done":
        words += ["--steps", str(first.rows[epochs - 1]["step"])]
    words += ["--trust-imports"] * args.trust_imports
    child = children.start(children.training(words, processes))
    stop.watch(child)
    rows = None  # how many of its rows are printed
    while True:
        ended = child.poll() is not None
        if (folder / "fingerprint.json").is_file():
            second = _read(folder)
            if rows is None:  # only the training knows its data, threads and GPU
                _print_differences(first.fingerprint, second.fingerprint, printed)
            for n in range(rows or 0, min(len(second.rows), epochs)):
                differs = first_difference(first, second, n + 1) or "same bits"
                value = second.rows[n].get(first.metric or "")
                _print(f"epoch {n + 1}/{epochs}  {first.metric} {value}  {differs}")
            rows = len(second.rows)
        if ended:
            return folder, child.returncode
        time.sleep(LOOK)


def _print_differences(
    there: Mapping[str, Any], here: Mapping[str, Any], printed: Collection[str]
) -> Collection[str]:
    """Print what around the second run is not as it was, and is not in `printed`; all of it."""
    found = differences(there, here)
    for fact in sorted(found.keys() - printed):
        _print(f"differs    {fact}: {found[fact]}")
    if not found:
        more = ", data, threads" if here.get("data") else "; data and threads not known yet"
        _print(f"the same   versions, hardware, settings, code{more}")
    return found

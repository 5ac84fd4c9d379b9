"""A training that only counts: the command line, folder, lock, signals and exit codes of `train`,
and numbers that depend on the recipe alone. Sweeps, reruns and tables are tested on it.

`python counting.py sweep …` is the sweep command with such children, in a process of its own.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vision_tutorial import train
from vision_tutorial.commands import reproduce, rerun, sweep
from vision_tutorial.core.atomic import write_json
from vision_tutorial.core.errors import run_main
from vision_tutorial.recipe.fields import Recipe, identity
from vision_tutorial.runs import records, run_folder
from vision_tutorial.runs.fingerprint import fingerprint
from vision_tutorial.sweeps import children

EPOCH_SECONDS = float(os.environ.get("COUNTING_SECONDS", 0.05))
start_child, prepare_child = children.start, children._prepare


def start(
    command: Sequence[str], *args: Any, command_main: Callable[[list[str]], int] | None = None
) -> Any:
    """As `children.start`, but what follows the fork is `count` (or a command), not the command.

    A fork costs a hundredth of a start.
    """

    def prepare(slot: children.DeviceSlot) -> Any:
        prepare_first = prepare_child(slot)

        def work() -> None:
            prepare_first()
            os.closerange(3, 1024)  # Popen waits until this pipe is closed
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            if "torch" in sys.modules:  # the parent's threads are not here
                sys.modules["torch"].set_num_threads(1)
            code = run_main(lambda: (command_main or count)(words))
            sys.stderr.flush()
            os._exit(code)

        return work

    words = list(command)[list(command).index("vision_tutorial.train") + 1 :]
    children._prepare = prepare
    try:
        return start_child(command, *args)
    finally:
        children._prepare = prepare_child


def real_start() -> Callable[..., Any]:
    """As `start`, with real trainings; what they would import is imported before the forks."""
    import vision_tutorial.build
    import vision_tutorial.engine  # noqa: F401
    from vision_tutorial.data.executors.cpu import has_numba

    has_numba()
    return partial(start, command_main=train.main)


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def ended(capfd: Any, main: Callable[[list[str]], int], *words: object) -> Ended:
    """A command in this process, to its end."""
    capfd.readouterr()
    code = main([str(word) for word in words])
    return Ended(code, *capfd.readouterr())


def beside(*words: object, **more: Any) -> subprocess.Popen:
    """A command with counting children in a process of its own, which can be killed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, *map(str, words)]
    return subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, "env": environment, **more})


def diary() -> list[str]:
    """What the children did, in order."""
    path = Path(os.environ["COUNTING_DIARY"])
    return path.read_text().splitlines() if path.exists() else []


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    """Until it is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def note(event: str) -> None:
    """Add a line to the diary that all children share."""
    handle = os.open(os.environ["COUNTING_DIARY"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{event}\n".encode())
    os.close(handle)


def count(words: list[str]) -> int:
    """Write the files of a training without training."""
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    args = train.parser().parse_intermixed_args(words)
    run, loaded, _ = train.find_run(args)
    run = run or records.new_run(args.runs, args.id, loaded)
    recipe = loaded.recipe
    with run_folder.lock(run):
        records.write_recipe(run, loaded)
        note(f"start {run.name} cores={len(os.sched_getaffinity(0))}")
        if not (run / "fingerprint.json").exists():
            facts = fingerprint() | {"data": "d1", "recipe": {"identity": identity(recipe)}}
            write_json(run / "fingerprint.json", facts | {"torch": {"threads": 1}})
        run_folder.set_status(run, "running", pid=os.getpid())
        rows = run_folder.read_rows(run / "metrics.jsonl")
        held = os.environ["COUNTING_DIARY"] + ".held"  # while this file is there, nobody goes on
        if recipe.batch_size == 13 and not os.environ.get("COUNTING_LUCK"):
            run_folder.set_status(run, "failed", exit_code=4, error="out of luck")
            return 4
        last = min(recipe.epochs, args.steps // 10 if args.steps else recipe.epochs)
        for epoch in range(len(rows) + 1, last + 1):
            time.sleep(EPOCH_SECONDS)
            if epoch == 3 and os.path.exists(held):
                note(f"held {run.name}")
                while os.path.exists(held) and not stopped:
                    time.sleep(EPOCH_SECONDS)
            if stopped:
                run_folder.set_status(run, "preempted", exit_code=143)
                return int(os.environ.get("COUNTING_STOPPED", 143))
            rows.append(row(recipe, epoch))
            run_folder.append_row(run / "metrics.jsonl", rows[-1])
            note(f"epoch {run.name} {epoch}")
        values = [row["val/top1"] for row in rows]
        best, end = {"epoch": 1, "value": max(values)}, {"epoch": last, "value": values[-1]}
        status = "done" if last == recipe.epochs else "paused"
        facts = {"status": status, "metric": "val/top1", "best": best, "last": end}
        write_json(run / "summary.json", facts | {"epochs": last, "wall_seconds": 0.1 * last})
        run_folder.set_status(run, status, exit_code=0)
        note(f"{status} {run.name}")
    return 0


def row(recipe: Recipe, epoch: int) -> dict[str, float]:
    """An epoch: best at lr 0.01, better with focal, a little noise by the seed."""
    (options,) = (recipe.optimizer.options,)
    value = 90 - abs(math.log10(options["lr"]) + 2) + (recipe.loss[0].name == "focal") + epoch / 10
    value += (recipe.seed * 7 % 5) / 50 + float(os.environ.get("COUNTING_DRIFT", 0))
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "val/top1": value,
        "seconds": EPOCH_SECONDS + time.time() % 0.001,
    }


if __name__ == "__main__":
    children.start = start
    commands = {"sweep": sweep, "rerun": rerun, "reproduce": reproduce}
    sys.exit(commands[sys.argv[1]].main(sys.argv[2:]))

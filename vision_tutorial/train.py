"""Train what a recipe says, on one process or many: build, then fit."""

import argparse
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .core.atomic import read_json, write_json
from .core.cli_types import loading, positive, positive_count
from .core.errors import (
    ExitCode,
    NonFiniteError,
    PeerLost,
    UserError,
    counted,
    exit_code,
    run_main,
    run_process,
)
from .core.names import restart_in_utf8
from .core.stopping import Stopped, last_words
from .recipe.command_line import Parser, add_overrides
from .recipe.fields import (
    Recipe,
    differing,
    digest,
    identities,
    other_recipe,
    to_plain,
)
from .recipe.loading import Loaded, load
from .runs import loggers, records, run_folder
from .runs.redaction import redact, refuse_secrets
from .runs.time_breakdown import in_words, shares

logger = logging.getLogger(f"{__package__}.train")

PROFILED = 10  # steps
SPEAKING = 5  # seconds that the first process has to say what it fails at


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial train",
        description="Train what a recipe says. The last line printed is `run: <folder>`.",
        epilog="Exit codes: 0 done, 2 bad recipe or checkpoint, 3 not finite, 4 out of memory, "
        "5 storage, 143 preempted (continue with the run folder).",
    )
    add, flag = made.add_argument, partial(made.add_argument, action="store_true")
    add("recipe", help="a recipe (file or name), or a run folder to continue")
    add_overrides(made)
    flag("--resume", help="continue this recipe's newest run, or with --id that one, if there is")
    add("--runs", default="runs", metavar="DIR", help="where run folders go (default: runs)")
    add("--id", help="name of the run folder (default: the time)")
    add("--minutes", type=positive, help="stop after so many minutes, saved, to be continued")
    add("--steps", type=positive_count, help="stop after so many more steps, saved")
    flag("--profile", help="after a few steps (--steps, 10) say what takes their time; stop, saved")
    flag("--trust-imports", help="run the files that the recipe imports")
    flag("--no-pretrained", help="random weights in place of pretrained ones, for a rehearsal")
    flag("--quiet", help="print no progress")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial train` and `python -m vision_tutorial.train`."""
    if argv is None:
        restart_in_utf8()
    # flags may stand between overrides
    return run_main(lambda: train(parser().parse_intermixed_args(argv))[0])


def train(args: argparse.Namespace) -> tuple[int, Path]:
    """Check the recipe, find the run folder, train in it, leave a verdict in status.json; the exit
    code and the folder."""
    first = os.environ.get("RANK", "0") == "0"  # one of several processes gives notice of things
    logging.getLogger(__package__).setLevel(logging.NOTSET if first else logging.ERROR)
    with _said_once():
        start = find_run(args)
        loaded, recipe = start.loaded, start.loaded.recipe
        if start.run is None or args.overrides:
            refuse_secrets(to_plain(recipe))
        loggers.check(recipe)
        # after the recipe is known to be good: this takes seconds
        with loading():
            from . import build, checks, engine

        build.import_files(loaded.imports, args.trust_imports)
        checks.check(recipe)
        machine = recipe.precision, recipe.threads, recipe.deterministic, recipe.shards
        distributed = engine.Distributed(*machine, recipe.ddp)
    try:
        with distributed.peers():
            # before there is a run folder: what fails here leaves none behind
            ready = _prepare(start, args, distributed)
            run = start.run or (
                records.new_run(args.runs, args.id, loaded) if distributed.main else None
            )
            run = distributed.broadcast_object(run)
            with _recorded(run, distributed.main), distributed.peers():
                code = _train_in(run, start, args, ready)
    finally:
        distributed.close()
    if distributed.main:
        print_line(f"run: {run}")
    return code, run


@contextmanager
def _said_once() -> Iterator[None]:
    """What fails before the processes know of each other is said by the first: torchrun ends the
    others, which wait for that. What only another one met, it says after the wait."""
    try:
        yield
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SPEAKING)
        raise


def print_line(line: str, note: Callable[[str], None] = lambda _: None) -> None:
    """Print; a full disk or a closed pipe behind it does not undo a training. note: prints, too."""
    note(line)
    with suppress(OSError, ValueError, AttributeError):
        print(line, flush=True)


class Start(NamedTuple):
    """The run folder to continue, or None for a new one; the checked recipe, and what the run had
    so far."""

    run: Path | None
    loaded: Loaded
    recorded: Recipe | None = None


def find_run(args: argparse.Namespace) -> Start:
    """What the command line names. UserError if it is no run of this recipe."""
    target = Path(args.recipe)
    if target.is_dir():
        return _continued(target, load(run_folder.recipe_file(target), args.overrides))
    if target.name == "recipe.yaml":  # of a run folder, maybe
        run_folder.recipe_file(target.parent)
    loaded = load(target, args.overrides)
    model = loaded.recipe.model
    if args.no_pretrained and model.options.get("pretrained"):
        blank = {model.name: {**model.options, "pretrained": False}}
        loaded = load(target, [*args.overrides, f"model={json.dumps(blank)}"])
        logger.warning("random weights in the place of pretrained ones, as asked for")
    folder, why = Path(args.runs) / loaded.recipe.name, ""
    if args.id:
        run = folder / run_folder.check_name("run", args.id)
        if args.resume and (run / "recipe.yaml").is_file():
            return _continued(run, loaded)
        run_folder.check_free(run)
    elif args.resume:
        found = folder.glob("*/recipe.yaml")
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                return _continued(path.parent, loaded)
            except UserError as error:  # of another recipe or version, or damaged
                why = why or f" ({error})"
    if args.resume:
        logger.warning("nothing to resume in %s, so a new run starts%s", folder, why)
    return Start(None, loaded)


def _continued(run: Path, loaded: Loaded) -> Start:
    recorded = load(run_folder.recipe_file(run)).recipe
    if found := differing(to_plain(recorded), to_plain(loaded.recipe)):
        raise other_recipe(run, found)
    return Start(run, loaded, recorded)


@contextmanager
def _recorded(run: Path, main: bool) -> Iterator[None]:
    """Hold the run's lock (rank 0); whatever ends the training, status.json says it.

    The process that failed first has the word, not those that only lost it; and a process other
    than rank 0 cannot know whether rank 0 was refused the folder, which is then another's.
    """
    preempted = partial(_leave_verdict, run, "preempted", exit_code=int(ExitCode.PREEMPTED))
    with run_folder.lock(run) if main else nullcontext():
        last_words.extend([preempted] * main)
        try:
            yield
        except KeyboardInterrupt as error:
            if main:
                preempted()
                print_line(f"stopped\ncontinue with: vision-tutorial train {shlex.quote(str(run))}")
            raise Stopped from error
        except BaseException as error:
            heard = isinstance(error, PeerLost) or getattr(error, "said", False)
            if main or not heard:
                facts = {"exit_code": exit_code(error), "error": redact(str(error))[:500]}
                _leave_verdict(run, "failed", **facts)
            raise
        finally:
            last_words.clear()


def _leave_verdict(run: Path, status: Any, **facts: Any) -> None:
    """How it ended, in status.json, if nothing is said there yet: of several processes, the first
    to fail has the word, and a run that this start did not get to is as it was."""
    path = run / "status.json"
    with suppress(UserError):  # that it cannot be written is not what went wrong
        found = read_json(path) if path.exists() else None
        if not isinstance(found, dict) or found.get("status") == "running":
            run_folder.set_status(run, status, **facts)


class Ready(NamedTuple):
    """What trains, tried on one batch of each split."""

    display: Any
    splits: Any
    digests: dict[str, str]
    training: Any
    plan: Any


def _prepare(start: Start, args: argparse.Namespace, distributed: Any) -> Ready:
    """Read the data, build, and try a step and an evaluation."""
    from . import build, checks, engine

    recipe = start.loaded.recipe
    display = engine.make_display(distributed.main and not args.quiet)
    both = build.data(recipe, distributed)
    seen = build.look(recipe, both, distributed)
    # on all ranks: the others would wait for rank 0's
    digests = {"data": both.train.digest(), "val_data": both.val.digest()}
    # where a checkpoint takes their place, pretrained weights may be gone
    fresh = start.run is None or not engine.candidates(start.run / "ckpt")
    training = build.training_state(recipe, both.train, distributed, weights=fresh)
    plan = build.plan(recipe, both, training, distributed)
    for line in (*_notices(both, training, plan, recipe), *seen):
        display.say(line)
    checks.try_out(recipe, both.train, training.model, _micro_batch(training, recipe))
    if notice := build.fit_memory(recipe, training, plan):
        display.say(notice)
    checks.try_evaluation(plan)
    return Ready(display, both, digests, training, plan)


def _train_in(run: Path, start: Start, args: argparse.Namespace, ready: Ready) -> int:
    from . import engine

    display, both, digests, training, plan = ready
    loaded, recipe, main = start.loaded, start.loaded.recipe, training.distributed.main
    values = to_plain(recipe)
    checkpoints = engine.Checkpoints(
        run,
        digest(values),
        recipe={key: value for key, value in values.items() if key != "wandb"},
        also=[*identities(values), *records.first_identity(run)],
        keep=recipe.checkpoint.keep,
        say=display.say,
        write=main,
    )
    progress = engine.restore(training, checkpoints) or engine.Progress()
    _check_progress(run, plan, progress)
    recorder = engine.Recorder()
    if main:
        display.keep(run)
        parts = {"train": both.train, "val": both.val}
        left_out = {name: getattr(part, "left_out", ()) for name, part in parts.items()}
        records.start(run, loaded, start.recorded, digests, left_out, progress)
        tracker = loggers.make(run, recipe, redact(values), display.say)
        for row in progress.rows:  # it sends only what it has not sent before
            tracker.log(row)
        recorder = engine.RunRecorder(
            run, training, checkpoints, recipe.checkpoint, tracker, display
        )
    training.distributed.any(False)  # who fails now finds a folder that says that it runs
    for line in _continuing(start, plan, progress) if progress.step else ():
        display.say(line)
    few = PROFILED if args.profile and not args.steps else args.steps
    stop = engine.StopRequest(args.minutes, few, progress.step)
    display.start(plan.steps, plan.steps_per_epoch, plan.epochs, progress.step)
    with closing(display), stop.listening(), closing(recorder):
        with engine.profiled(args.profile and main) as lines:
            done = engine.fit(training, plan, recorder, progress, stop)
    status = "done" if done else "preempted" if stop.signalled() else "paused"
    code = ExitCode.PREEMPTED if status == "preempted" else ExitCode.DONE
    last = progress.rows[-1].get("val/loss") if progress.rows else None
    if done and last is not None and not math.isfinite(last):
        raise NonFiniteError(
            "the network diverged: its validation loss is not finite. Lower the lr, add warm-up."
        )
    if main:
        summary = engine.summarise(plan, progress, status, recipe.expects, both.chosen_on)
        if recipe.artifacts and status != "preempted" and progress.rows:
            from . import artifacts

            artifacts.leave(run, recipe, both, training, recorder.tracker, display.say)
        with stop.listening():  # a signal comes too late now
            said = _finish_records(run, summary, recorder.tracker, progress.table, code)
            # what limits this training; of an epoch that is under way, its steps so far
            waited = progress.seconds_data
            now = {"seconds_data": waited, "seconds_device": progress.seconds - waited}
            parts = shares([*progress.rows, now])
            for line in [*said, *([in_words(parts)] if parts else []), *lines]:
                print_line(line, display.note)
    return code


def _continuing(start: Start, plan: Any, progress: Any) -> Iterator[str]:
    """What a run that goes on says first."""
    yield f"continuing at step {progress.step:,} of {plan.steps:,}"
    before, now = start.recorded, start.loaded.recipe
    if before and before.threads != now.threads:
        yield "another number of threads: last digits may differ from those of the run so far"
    if before and before.total_epochs != now.total_epochs and progress.rows:
        lr, last = plan.lr(progress.step, progress.values(plan.headline)), progress.rows[-1]["lr"]
        yield (
            f"epochs {before.total_epochs} -> {now.total_epochs}: the lr now follows the schedule "
            f"of {counted(now.total_epochs, 'epoch')} and goes from {last:.3g} to {lr:.3g}"
        )


def _check_progress(run: Path, plan: Any, progress: Any) -> None:
    if progress.step > plan.steps:
        raise UserError(
            f"{run}: step {progress.step:,} is done, and the recipe now ends after "
            f"{plan.steps:,}. Ask for more epochs, or start a new run."
        )
    rows = run / "metrics.jsonl"
    if not progress.step and rows.exists() and run_folder.read_rows(rows):
        raise UserError(
            f"{run}: there are metrics but no checkpoint to continue from. Put its `ckpt` "
            "folder back, or start a new run."
        )


def _finish_records(run: Path, summary: Any, tracker: Any, table: Any, code: int) -> list[str]:
    """summary.json and status.json, wandb's summary; the result in words."""
    status, metric, best, last = (summary[k] for k in ("status", "metric", "best", "last"))
    write_json(run / "summary.json", summary)
    if status == "done" and table:
        columns = {name: values for name, values in table.items() if name != "confusion"}
        tracker.table("classes", list(columns), list(zip(*columns.values(), strict=True)))
    flat = {key: summary[key] for key in ("status", "metric", "chosen_on")}
    flat |= {f"{k}/{name}": v for k in ("best", "last") for name, v in (summary[k] or {}).items()}
    tracker.finish(flat, code)
    run_folder.set_status(run, status, exit_code=code)
    words = f"{status} after {counted(summary['epochs'], 'epoch')}"
    if best:
        words += f": {metric} {best['value']:.2f} best (epoch {best['epoch']})"
        words += f", {last['value']:.2f} last"
    claim = summary["expects"].get(metric.removeprefix("val/"))
    if best and claim is not None and status == "done":
        words += f"; the recipe expects {claim:g}"
    more = f"continue with: vision-tutorial train {shlex.quote(str(run))}"
    return [words, *[more] * (status != "done")]


def _micro_batch(training: Any, recipe: Any) -> int:
    """How many images go forward at once."""
    return recipe.batch_size // training.distributed.world // training.accumulation_steps


def _notices(both: Any, training: Any, plan: Any, recipe: Any) -> Iterator[str]:
    distributed, steps = training.distributed, training.accumulation_steps
    if distributed.notice:
        yield distributed.notice
    micro = _micro_batch(training, recipe)
    processes = counted(distributed.world, "process")
    yield (
        f"{recipe.name}: {counted(len(both.train), 'image')} of {both.train.name}, "
        f"{counted(plan.epochs, 'epoch')} of {counted(plan.steps_per_epoch, 'step')}"
    )
    yield (
        f"batch {recipe.batch_size} = {processes} x {steps} x {counted(micro, 'image')}, "
        f"{distributed.precision} on {distributed.device}, threads each: {distributed.threads}"
    )


class _Callable(ModuleType):
    """This module, which `vision_tutorial.train(…)` calls as the function of `api.py`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from importlib import import_module

        return import_module(".api", __package__).train(*args, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    run_process(main)

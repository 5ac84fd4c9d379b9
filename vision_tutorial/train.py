"""Train what a recipe says, on one process or many: build, then fit."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .core import runs
from .core.errors import ExitCode, UserError, run_verb
from .core.loading import Loaded, load
from .core.recipe import changes, identity, to_plain, to_yaml


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial train",
        description="Train what a recipe says. The last line printed is `run: <folder>`.",
        epilog="Exit codes: 0 done, 2 bad recipe or checkpoint, 3 not finite, 4 out of memory, "
        "5 storage, 143 preempted (continue with the run folder).",
    )
    add = made.add_argument
    add("recipe", help="a recipe file, or a run folder to continue")
    add("overrides", nargs="*", metavar="key.sub=value", help="set one value of the recipe")
    add("--resume", action="store_true", help="continue this recipe's newest run, if there is one")
    add("--runs", default="runs", metavar="DIR", help="where run folders go (default: runs)")
    add("--id", help="name of the run folder (default: the time)")
    add("--minutes", type=float, help="stop after so many minutes, saved, to be continued")
    add("--steps", type=int, help="stop after so many more steps, saved, to be continued")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    add("--quiet", action="store_true", help="print no progress")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial train` and `python -m vision_tutorial.train`."""
    # parse_intermixed_args lets flags stand between overrides
    args = parser().parse_intermixed_args(argv)
    return run_verb(lambda: train(args))


def train(args: argparse.Namespace) -> int:
    """Check the recipe, find the run folder, train in it, leave a verdict in status.json."""
    run, loaded = wanted(args)
    from . import build, engine  # after the recipe is known to be good: this takes seconds

    build.import_files(loaded.imports, args.trust_imports)
    build.check(loaded.recipe)
    distributed = engine.Distributed(loaded.recipe.precision, loaded.recipe.threads)
    run = distributed.share(run or (new_run(args, loaded) if distributed.main else None))
    try:
        with recorded(run, distributed.main), distributed.peers():
            code = train_in(run, loaded, args, distributed)
    finally:
        distributed.close()
    if distributed.main:
        print(f"run: {run}", flush=True)
    return code


def wanted(args: argparse.Namespace) -> tuple[Path | None, Loaded]:
    """The run folder to continue, or None for a new one; and the checked recipe."""
    target = Path(args.recipe)
    if target.is_dir():
        return target, load(target / "recipe.yaml", args.overrides)
    loaded = load(target, args.overrides)
    if args.resume:
        return newest_run(Path(args.runs) / loaded.recipe.name, loaded), loaded
    return None, loaded


def newest_run(folder: Path, loaded: Loaded) -> Path | None:
    """The newest run of the same recipe (same but for epochs, workers, logging)."""
    for run in sorted(folder.glob("*/recipe.yaml"), reverse=True):
        try:
            if identity(load(run).recipe) == identity(loaded.recipe):
                return run.parent
        except UserError:
            continue  # another version's, or damaged: not ours to continue
    return None


def new_run(args: argparse.Namespace, loaded: Loaded) -> Path:
    """A fresh run folder that holds the resolved recipe and the files it imports."""
    run = runs.new_run(args.runs, loaded.recipe.name, args.id)
    names = [path.name for path in loaded.imports]
    if len(set(names)) < len(names):
        raise UserError(f"imports: two files of one name ({', '.join(names)}); rename one.")
    for path in loaded.imports:
        shutil.copy(path, run / path.name)
    return run


@contextmanager
def recorded(run: Path, main: bool) -> Iterator[None]:
    """Hold the run's lock; whatever ends the training, status.json says it."""
    if not main:
        yield
        return
    with runs.lock(run):
        try:
            yield
        except BaseException as error:
            code = int(getattr(error, "code", 1) or 1)
            runs.set_status(run, "failed", exit_code=code, error=str(error)[:500])
            raise


def train_in(run: Path, loaded: Loaded, args: argparse.Namespace, distributed: Any) -> int:
    """Build everything in one visible order, then loop."""
    from . import build, engine

    recipe, main = loaded.recipe, distributed.main
    display = engine.make_display(main and not args.quiet)
    both = build.data(recipe)
    learner = build.learner(recipe, both.train, distributed)
    plan = build.plan(recipe, both, learner, distributed)
    checkpoints = (
        engine.Checkpoints(run, identity(recipe), keep=recipe.checkpoint.keep, say=display.say)
        if main
        else engine.NoCheckpoints(run, identity(recipe))
    )
    progress = engine.restore(learner, distributed, checkpoints) or engine.Progress()
    crew: Any = engine.NoCrew()
    if main:
        start_records(run, loaded, both, progress)
        tracker = make_tracker(run, recipe, display.say)
        crew = engine.Crew(
            run, learner, plan, distributed, checkpoints, recipe.checkpoint, tracker, display
        )
    for line in notices(recipe, both, learner, plan, distributed, progress):
        display.say(line)
    build.fit_memory(learner, plan, distributed, display.say)
    stop = engine.StopRequest(args.minutes, args.steps, progress.step)
    display.start(plan.steps, plan.steps_per_epoch, plan.epochs, progress.step)
    try:
        with stop.listening():
            done = engine.fit(learner, plan, distributed, crew, progress, stop)
        checkpoints.finish()
    finally:
        display.close()
    status, code = verdict(done, stop.signalled())
    if main:
        finish_records(run, recipe, crew, progress, status, code)
    return code


def verdict(done: bool, signalled: bool) -> tuple[str, int]:
    """The word for status.json and the exit code."""
    if done:
        return "done", ExitCode.DONE
    if signalled:
        return "preempted", ExitCode.PREEMPTED
    return "paused", ExitCode.DONE


def start_records(run: Path, loaded: Loaded, both: Any, progress: Any) -> None:
    """recipe.yaml, fingerprint.json, status.json; metrics.jsonl as the checkpoint knows it."""
    values = to_plain(loaded.recipe) | {"imports": [path.name for path in loaded.imports]}
    runs.write_text(run / "recipe.yaml", to_yaml(runs.redact(values)))
    if not (run / "fingerprint.json").exists():
        facts = runs.fingerprint(both.train.digest())
        facts["recipe"] = {"file": loaded.path.name}
        if loaded.base:
            facts["recipe"] |= {
                "base": loaded.base_path.name,
                "changes": changes(loaded.recipe, loaded.base),
            }
        runs.write_json(run / "fingerprint.json", facts)
    runs.write_rows(run / "metrics.jsonl", progress.rows)
    runs.set_status(run, "running", pid=os.getpid())


def finish_records(
    run: Path, recipe: Any, crew: Any, progress: Any, status: str, code: int
) -> None:
    """summary.json and the last status; the tracker gets the same."""
    from . import engine

    summary = engine.summarise(crew.plan, progress, status, recipe.expects)
    runs.write_json(run / "summary.json", summary)
    classes = run / "classes.json"
    if status == "done" and classes.exists():
        table = runs.read_json(classes)
        crew.tracker.table("classes", list(table), list(zip(*table.values(), strict=True)))
    flat = {f"{k}/{name}": v for k in ("best", "last") for name, v in (summary[k] or {}).items()}
    crew.tracker.finish(flat, code)
    runs.set_status(run, status, exit_code=code)
    print(sentence(summary, run), file=sys.stdout)


def sentence(summary: dict[str, Any], run: Path) -> str:
    """What came out, in one or two lines."""
    metric, best, last = summary["metric"], summary["best"], summary["last"]
    words = f"{summary['status']} after {summary['epochs']} epochs"
    if best:
        words += f": {metric} {best['value']:.2f} best (epoch {best['epoch']})"
        words += f", {last['value']:.2f} last"
    claim = summary["expects"].get(metric.removeprefix("val/"))
    if claim is not None:
        words += f"; the recipe expects {claim:g}"
    if summary["status"] != "done":
        words += f"\ncontinue with: vision-tutorial train {run}"
    return words


def make_tracker(run: Path, recipe: Any, say: Any) -> Any:
    """wandb, as the recipe wants it; its id is the run's, so that a resume continues it."""
    from . import engine

    wandb = recipe.wandb
    return engine.make_tracker(
        wandb.mode,
        project=wandb.project,
        name=f"{recipe.name}-{run.name}",
        id=f"{recipe.name}-{run.name}",
        tags=wandb.tags,
        group=wandb.group or recipe.name,
        notes=wandb.notes,
        config=runs.redact(to_plain(recipe)),
        folder=run,
        say=say,
    )


def notices(
    recipe: Any, both: Any, learner: Any, plan: Any, distributed: Any, progress: Any
) -> Iterator[str]:
    """What a person wants to know before the first step."""
    if distributed.notice:
        yield distributed.notice
    micro = recipe.batch_size // distributed.world // learner.parts
    processes = "1 process" if distributed.world == 1 else f"{distributed.world} processes"
    yield (
        f"{recipe.name}: {len(both.train):,} pictures of {both.train.name}, {plan.epochs} epochs "
        f"of {plan.steps_per_epoch} steps"
    )
    yield (
        f"batch {recipe.batch_size} = {processes} x {learner.parts} x {micro} pictures, "
        f"{distributed.precision} on {distributed.device}, threads each: {distributed.threads}"
    )
    if progress.step:
        yield f"continuing at step {progress.step:,} of {plan.steps:,}"


if __name__ == "__main__":
    sys.exit(main())

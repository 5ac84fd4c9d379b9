"""A checkpoint's numbers on a split; several runs give mean and spread over them."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core import runs
from .core.errors import UserError, run_verb
from .core.loading import load
from .core.recipe import identity


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial evaluate",
        description="Metrics of one run's weights; of several runs (seeds), mean and spread too.",
    )
    add = made.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run folder, made by `train`")
    add("--split", choices=("val", "test", "train"), default="val", help="default: %(default)s")
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    add("--tta", choices=("none", "hflip"), default="none", help="average over mirror images too")
    add("--set", action="append", default=[], metavar="key.sub=value", help="change the recipe")
    add("--classes", action="store_true", help="print the table of classes")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial evaluate`."""
    args = parser().parse_args(argv)
    return run_verb(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate each run and print; of several, those without a checkpoint are left out."""
    paths = list({Path(run).resolve(): Path(run) for run in args.runs}.values())
    if len(paths) > 1:
        for path in [path for path in paths if not any(path.glob("ckpt/step-*"))]:
            print(f"left out {path}: it holds no checkpoint", file=sys.stderr)
            paths.remove(path)
    if not paths:
        raise UserError("none of these runs holds a checkpoint yet. Train one first.")
    found = [(path, load(recipe_of(path), args.set)) for path in paths]
    first = found[0][1].recipe
    for run, loaded in found:
        if (loaded.recipe.precision, loaded.recipe.threads) != (first.precision, first.threads):
            raise UserError(
                f"{run}: precision or threads differ from the first; evaluate it alone."
            )
    from . import engine  # after the recipes are known to be good: this takes seconds

    distributed = engine.Distributed(first.precision, first.threads)
    try:
        with distributed.peers():
            results = [evaluate_run(run, loaded, args, distributed) for run, loaded in found]
    finally:
        distributed.close()
    if distributed.main:
        alike = len({identity(x.recipe.model_copy(update={"seed": 0})) for _, x in found}) == 1
        shown = report(results, alike)
        print(json.dumps(runs.plain(shown), indent=2) if args.json else text(shown, args.classes))
    return 0


def recipe_of(run: Path) -> Path:
    """The recipe of a run folder."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(
            f"{run}: no run folder; give one that `train` made (it ends with `run: …`)."
        )
    return run / "recipe.yaml"


def evaluate_run(run: Path, loaded: Any, args: argparse.Namespace, distributed: Any) -> dict:
    """The metrics and the table of classes of one run."""
    from . import build, engine

    recipe = loaded.recipe
    build.import_files(loaded.imports, args.trust_imports)
    build.check(recipe)
    source = build.split(recipe, args.split, distributed)
    network = build.model(recipe, len(source.classes), weights=False)
    path = weights_path(run, args.weights)
    put(network, engine.load_weights(path, "ema" if recipe.ema else "model"), path)
    network = build.placed(recipe, network, distributed)
    distributed.wrap(network, replicate=False)
    task = build.task(recipe, source.classes)
    found = build.evaluation(recipe, source, network, task, distributed, args.tta)
    return {
        "run": str(run),
        "weights": str(path),
        "split": args.split,
        "tta": args.tta,
        "images": found.images,
        "metrics": found.metrics,
        "classes": found.table,
        "seconds": round(found.seconds, 3),
    }


def weights_path(run: Path, which: str) -> Path:
    """What `load_weights` is to read: the run (its best), its newest checkpoint, or a file."""
    from .engine.checkpoint import best
    from .engine.folders import candidates

    if which not in ("best", "last"):
        return Path(which)
    found = best(run) if which == "best" else next(iter(candidates(run / "ckpt")), None)
    if found is None:
        raise UserError(f"{run}: holds no checkpoint yet. Train it first, or name --weights FILE.")
    return found


def put(network: Any, tensors: dict, path: Path) -> None:
    """Load weights whose names and shapes must be the network's."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the weights of this recipe's model: {reason}") from error


def report(results: list[dict[str, Any]], alike: bool) -> dict[str, Any]:
    """All runs; over several that differ in their seed alone, mean and sample deviation too."""
    shown: dict[str, Any] = {"runs": results}
    if len(results) > 1 and alike:
        shown["over_runs"] = {
            name: {
                "n": len(results),
                "mean": statistics.fmean(r["metrics"][name] for r in results),
                "stdev": statistics.stdev(r["metrics"][name] for r in results),
            }
            for name in results[0]["metrics"]
        }
    return shown


def text(shown: dict[str, Any], classes: bool) -> str:
    """For people."""
    lines = []
    for result in shown["runs"]:
        lines.append(f"{result['run']}  {result['split']}, {result['images']:,} pictures")
        lines.append(f"  weights {result['weights']}")
        lines += [f"  {name:<16}{value:10.4f}" for name, value in result["metrics"].items()]
        if classes:
            names = list(result["classes"])
            lines.append("  " + "".join(f"{name:>16}" for name in names))
            lines += [
                "  " + "".join(f"{cell(value):>16}" for value in row)
                for row in zip(*result["classes"].values(), strict=True)
            ]
    for name, over in shown.get("over_runs", {}).items():
        lines.append(f"{name:<18}{over['mean']:.4f} ± {over['stdev']:.4f} over {over['n']} runs")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A table cell."""
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())

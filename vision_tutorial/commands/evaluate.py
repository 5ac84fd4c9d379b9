"""A checkpoint's numbers on a split; several runs give mean and spread over them."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.atomic import plain
from ..core.cli_types import add_looks
from ..core.errors import UserError, run_main
from ..recipe.fields import identity
from ..recipe.loading import Loaded, load, recipe_path
from ..runs import run_folder


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial evaluate",
        description="Metrics of one run's weights; of several runs (seeds), mean and spread too.",
    )
    add = made.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run folder (or a recipe, with --submission)")
    add("--split", choices=("val", "test", "train"), default="val", help="default: %(default)s")
    add_looks(made)
    add("--submission", metavar="FILE", help="score this CSV instead of a network: a leaderboard")
    add("--set", action="append", default=[], metavar="key.sub=value", help="change the recipe")
    add("--classes", action="store_true", help="print the table of classes")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial evaluate`."""
    args = parser().parse_args(argv)
    return run_main(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate each run, or all together, and print."""
    found = [(path, load(recipe_of(path, args), args.set)) for path in wanted(args)]
    first = found[0][1].recipe
    for run, loaded in found:
        if (loaded.recipe.precision, loaded.recipe.threads) != (first.precision, first.threads):
            raise UserError(
                f"{run}: precision or threads differ from the first; evaluate it alone."
            )
    from .. import engine  # after the recipes are known to be good: this takes seconds

    distributed = engine.Distributed(first.precision, first.threads, first.deterministic)
    try:
        with distributed.peers():
            results = results_of(found, args, distributed)
    finally:
        distributed.close()
    if distributed.main:
        alike = len({identity(x.recipe.model_copy(update={"seed": 0})) for _, x in found}) == 1
        shown = report(results, alike)
        print(json.dumps(plain(shown), indent=2) if args.json else text(shown, args.classes))
    return 0


def wanted(args: argparse.Namespace) -> list[Path]:
    """The runs, each once; of several, those without a checkpoint are left out."""
    paths = list({Path(run).resolve(): Path(run) for run in args.runs}.values())
    if args.submission:
        if len(paths) > 1:
            raise UserError("--submission is scored once; name one run, or one recipe.")
        return paths
    if len(paths) > 1:
        for path in [path for path in paths if not any(path.glob("ckpt/step-*"))]:
            print(f"left out {path}: it holds no checkpoint", file=sys.stderr)
            paths.remove(path)
    if not paths:
        raise UserError("none of these runs holds a checkpoint yet. Train one first.")
    return paths


def recipe_of(run: Path, args: argparse.Namespace) -> Path:
    """The recipe of a run folder."""
    if args.submission and recipe_path(run).is_file():
        return recipe_path(run)
    return run_folder.recipe_file(run)


def results_of(
    found: Sequence[tuple[Path, Loaded]], args: argparse.Namespace, distributed: Any
) -> list[dict[str, Any]]:
    """The numbers of each run, of all of them as one, or of a submission."""
    from .. import build

    for _, loaded in found:
        build.import_files(loaded.imports, args.trust_imports)
        build.check(loaded.recipe)
    if args.submission:
        return [score(*found[0], args, distributed)]
    groups = [found] if args.ensemble else [[one] for one in found]
    return [evaluate_runs(group, args, distributed) for group in groups]


def evaluate_runs(
    found: Sequence[tuple[Path, Loaded]], args: argparse.Namespace, distributed: Any
) -> dict[str, Any]:
    """The metrics and the table of classes of one run, or of several as an ensemble."""
    from .. import build, engine, inference

    recipe = inference.common_recipe([loaded.recipe for _, loaded in found])
    source = build.split(recipe, args.split, distributed)
    network, paths = inference.networks(found, len(source.classes), args.weights, distributed)
    task = build.task(recipe, source.classes)
    inference.check_options(task, args)
    looks = {"tta": args.tta, "window": args.window, "stride": args.stride}
    common = {
        "forward": engine.prediction_function(network, **looks, ensemble=args.ensemble or "soft")
    }
    common["size"] = args.size
    plain = build.evaluation(recipe, source, network, task, distributed, **common)
    result = {
        "run": ", ".join(str(run) for run, _ in found),
        "weights": ", ".join(map(str, paths)),
        "split": args.split,
        **looks,
        "ensemble": args.ensemble,
        "size": args.size,
        **numbers(plain),
    }
    refine = None if args.no_refine else inference.refining(recipe)
    if refine:
        timed = engine.Timed(refine)
        finer = build.evaluation(recipe, source, network, task, distributed, refine=timed, **common)
        result["refined"] = {
            "by": [choice.name for choice in recipe.refine],
            "seconds_a_image": timed.mean,
            **numbers(finer),
        }
    return result


def numbers(found: Any) -> dict[str, Any]:
    """An evaluation as plain values."""
    return {
        "images": found.images,
        "metrics": found.metrics,
        "classes": found.table,
        "seconds": round(found.seconds, 3),
    }


def score(path: Path, loaded: Loaded, args: argparse.Namespace, distributed: Any) -> dict[str, Any]:
    """The numbers of a submission's masks."""
    from .. import build, inference

    recipe, file = loaded.recipe, Path(args.submission)
    source = build.split(recipe, args.split, distributed)
    inference.check_options(build.task(recipe, source.classes), args)
    found = inference.scored(recipe, source, file, args.size, distributed)
    return {"run": str(path), "weights": str(file), "split": args.split, **numbers(found)}


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
        lines.append(f"{result['run']}  {result['split']}, {result['images']:,} images")
        lines.append(f"  weights {result['weights']}")
        finer = result.get("refined")
        if finer:
            lines.append(
                f"  refined by {', '.join(finer['by'])}: {finer['seconds_a_image']:.2f} s a "
                "image; plain, refined, difference"
            )
        for name, value in result["metrics"].items():
            lines.append(f"  {name:<16}" + beside(value, finer and finer["metrics"][name]))
        if classes:
            lines += table(result["classes"], finer and finer["classes"])
    for name, over in shown.get("over_runs", {}).items():
        lines.append(f"{name:<18}{over['mean']:.4f} ± {over['stdev']:.4f} over {over['n']} runs")
    return "\n".join(lines)


def beside(value: float, finer: float | None) -> str:
    """A number, and what refinement made of it."""
    more = "" if finer is None else f"{finer:10.4f}{finer - value:+10.4f}"
    return f"{value:10.4f}{more}"


def table(columns: dict[str, list], finer: dict[str, list] | None) -> list[str]:
    """The table of classes; with the difference that refinement made to the IoU."""
    columns = {name: cells for name, cells in columns.items() if name != "confusion"}
    if finer:
        pairs = zip(columns["iou"], finer["iou"], strict=True)
        columns["Δ iou"] = [None if None in pair else pair[1] - pair[0] for pair in pairs]
    width = max(len(str(name)) for name in columns["class"]) + 2
    first, *others = columns
    lines = [f"  {first:<{width}}" + "".join(f"{name:>14}" for name in others)]
    for name, *values in zip(*columns.values(), strict=True):
        lines.append(f"  {name:<{width}}" + "".join(f"{cell(value):>14}" for value in values))
    return lines


def cell(value: Any) -> str:
    """A table cell."""
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())

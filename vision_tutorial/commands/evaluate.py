"""A checkpoint's numbers on a split; several runs give mean and spread over them."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.atomic import plain
from ..core.cli_types import add_looks
from ..core.errors import UserError, run_main
from ..recipe.fields import identity
from ..recipe.loading import Loaded, load, recipe_path
from ..runs.run_folder import recipe_file
from ..runs.seed_statistics import Sample
from ..tables.table import Column, Table, plain_text


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
    add("--classes", action="store_true", help="print the table of classes")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial evaluate`."""
    args = parser().parse_args(argv)
    return run_main(lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> int:
    bare = args.submission and recipe_path(Path(args.runs[0])).is_file()  # a recipe, not a run
    find = recipe_path if bare else recipe_file
    found = [(path, load(find(path), args.set)) for path in _selected(args)]
    from .. import inference  # after the recipes are known to be good: this takes seconds

    with inference.opened(found, args.trust_imports, bool(args.ensemble)) as distributed:
        groups = [found] if args.ensemble else [[one] for one in found]
        evaluated = _score if args.submission else _evaluate_runs
        results = [evaluated(group, args, distributed) for group in groups]
    if not distributed.main:
        return 0
    report: dict[str, Any] = {"runs": results}
    recipes = {identity(x.recipe.model_copy(update={"seed": 0})) for _, x in found}
    if len(results) > 1 and len(recipes) == 1:
        metrics = [result["metrics"] for result in results]
        samples = {name: Sample(tuple(m[name] for m in metrics)) for name in metrics[0]}
        report["over_runs"] = {
            name: {"n": over.n, "mean": over.mean, "stdev": over.spread}
            for name, over in samples.items()
        }
    print(json.dumps(plain(report), indent=2) if args.json else _text(report, args.classes))
    return 0


def _selected(args: argparse.Namespace) -> list[Path]:
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


def _evaluate_runs(
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
    forward = engine.prediction_function(network, **looks, ensemble=args.ensemble or "soft")

    def evaluation(**refine: Any) -> dict[str, Any]:
        given = (recipe, source, network, task, distributed)
        return _numbers(build.evaluation(*given, forward=forward, size=args.size, **refine))

    result = {
        "run": ", ".join(str(run) for run, _ in found),
        "weights": ", ".join(map(str, paths)),
        "split": args.split,
        **looks,
        "ensemble": args.ensemble,
        "size": args.size,
        **evaluation(),
    }
    refine = None if args.no_refine else inference.refining(recipe)
    if refine:
        seconds = []  # of each batch

        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            made = refine(*given)
            seconds.append(time.perf_counter() - began)
            return made

        refined = evaluation(refine=timed)
        mean = sum(seconds) * distributed.world / max(refined["images"], 1)
        by = [choice.name for choice in recipe.refine]
        result["refined"] = {"by": by, "seconds_a_image": mean, **refined}
    return result


def _score(
    found: Sequence[tuple[Path, Loaded]], args: argparse.Namespace, distributed: Any
) -> dict[str, Any]:
    from .. import build, inference

    ((path, loaded),) = found
    source = build.split(loaded.recipe, args.split, distributed)
    inference.check_options(build.task(loaded.recipe, source.classes), args)
    file = Path(args.submission)
    score = inference.scored(loaded.recipe, source, file, args.size, distributed)
    return {"run": str(path), "weights": str(file), "split": args.split, **_numbers(score)}


def _numbers(found: Any) -> dict[str, Any]:
    return {
        "images": found.images,
        "metrics": found.metrics,
        "classes": found.table,
        "seconds": round(found.seconds, 3),
    }


def _text(report: dict[str, Any], classes: bool) -> str:
    lines = []
    for result in report["runs"]:
        lines.append(f"{result['run']}  {result['split']}, {result['images']:,} images")
        lines.append(f"  weights {result['weights']}")
        refined = result.get("refined")
        if refined:
            seconds = f"{refined['seconds_a_image']:.2f} s a image; plain, refined, difference"
            lines.append(f"  refined by {', '.join(refined['by'])}: {seconds}")
        for name, value in result["metrics"].items():
            line = f"  {name:<16}{value:10.4f}"
            if refined:
                finer = refined["metrics"][name]
                line += f"{finer:10.4f}{finer - value:+10.4f}"
            lines.append(line)
        if classes:
            lines.append(_class_table(result["classes"], refined and refined["classes"]))
    for name, over in report.get("over_runs", {}).items():
        lines.append(f"{name:<18}{over['mean']:.4f} ± {over['stdev']:.4f} over {over['n']} runs")
    return "\n".join(lines)


def _class_table(columns: dict[str, list], refined: dict[str, list] | None) -> str:
    columns = {name: cells for name, cells in columns.items() if name != "confusion"}
    if refined:
        pairs = zip(columns["iou"], refined["iou"], strict=True)
        columns["Δ iou"] = [None if None in pair else pair[1] - pair[0] for pair in pairs]
    kinds = {"class": "text", "Δ iou": "signed"}
    heads = tuple(Column(name, name, kinds.get(name, "number")) for name in columns)
    return plain_text(Table(heads, tuple(zip(*columns.values(), strict=True))))

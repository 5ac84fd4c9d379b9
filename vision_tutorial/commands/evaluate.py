"""Metrics of one run's weights on a split; of several runs (seeds), mean and spread too."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.atomic import plain
from ..core.cli_types import add_looks, loading
from ..core.errors import UserError, counted
from ..recipe.command_line import Parser
from ..recipe.fields import identity
from ..recipe.loading import Loaded, load, recipe_path
from ..runs.run_folder import recipe_file
from ..runs.seed_statistics import Sample
from ..tables.table import Column, Table, plain_text
from . import entry_point


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial evaluate", description=__doc__)
    add = made.add_argument
    text = "a run folder (or a recipe, with --submission); or key.sub=value, to change its recipe"
    add("runs", nargs="+", metavar="RUN", help=text)
    add("--split", choices=("val", "test", "train"), default="val", help="default: %(default)s")
    add_looks(made)
    made.takes_overrides = True  # among its runs
    add("--submission", metavar="FILE", help="score this CSV instead of a network: a leaderboard")
    add("--classes", action="store_true", help="print the table of classes")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print the metrics of each run."""
    bare = args.submission and recipe_path(Path(args.runs[0])).is_file()  # a recipe, not a run
    find = recipe_path if bare else recipe_file
    found = [(path, load(find(path), args.set)) for path in _selected(args)]
    with loading():  # after the recipes are known to be good
        from .. import inference

    with inference.opened(found, args) as distributed:
        groups = [found] if args.ensemble else [[one] for one in found]
        results = [evaluate_one(group, args, distributed) for group in groups]
    if not distributed.main:
        return 0
    report: dict[str, Any] = {"runs": results}
    seedless = {identity(x.recipe.model_copy(update={"seed": 0})) for _, x in found}
    if len(results) > 1 and len(seedless) == 1:
        report["over_runs"] = {}
        for name in results[0]["metrics"]:
            over = Sample(tuple(result["metrics"][name] for result in results))
            report["over_runs"][name] = {"n": over.n, "mean": over.mean, "stdev": over.spread}
    print(json.dumps(plain(report), indent=2) if args.json else _text(report, args.classes))
    return 0


def _selected(args: argparse.Namespace) -> list[Path]:
    """The runs, each once; of several, those without a checkpoint are left out."""
    paths = list({Path(run).resolve(): Path(run) for run in args.runs}.values())
    if args.submission and len(paths) > 1:
        raise UserError("--submission is scored once; name one run, or one recipe.")
    empty = [path for path in paths if not any(path.glob("ckpt/step-*"))] if paths[1:] else []
    for path in empty:
        print(f"left out {path}: it holds no checkpoint", file=sys.stderr)
    if len(empty) == len(paths):
        raise UserError("none of these runs holds a checkpoint yet. Train one first.")
    return [path for path in paths if path not in empty]


def evaluate_one(
    found: Sequence[tuple[Path, Loaded]], args: argparse.Namespace, distributed: Any
) -> dict[str, Any]:
    """Metrics and table of classes of a run, of several as an ensemble, or of a submission."""
    from .. import build, inference

    recipe = found[0][1].recipe
    source = build.split(recipe, args.split, distributed)
    about = {"run": ", ".join(str(run) for run, _ in found), "weights": args.submission}
    about["split"] = args.split
    if args.submission:
        return about | _numbers(inference.scored(recipe, source, args, distributed))
    predictor = inference.Predictor(found, recipe, source, args, distributed)
    about["weights"] = ", ".join(map(str, predictor.weights))
    about |= {key: getattr(args, key) for key in ("tta", "window", "stride", "ensemble", "size")}
    result = about | _numbers(predictor.evaluation(args.size))
    if predictor.refine:
        seconds = 0.0

        def timed(*given: Any) -> Any:
            nonlocal seconds
            began = time.perf_counter()
            made = predictor.refine(*given)
            seconds += time.perf_counter() - began
            return made

        refined = _numbers(predictor.evaluation(args.size, timed))
        mean = seconds * distributed.world / max(refined["images"], 1)
        by = [choice.name for choice in recipe.refine]
        result["refined"] = {"by": by, "seconds_a_image": mean, **refined}
    return result


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
        lines += [f"{result['run']}  {result['split']}, {counted(result['images'], 'image')}"]
        lines += [f"  weights {result['weights']}"]
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
        lines.append(
            f"{name:<18}{over['mean']:.4f} ± {over['stdev']:.4f} over {counted(over['n'], 'run')}"
        )
    return "\n".join(lines)


def _class_table(columns: dict[str, list], refined: dict[str, list] | None) -> str:
    columns = {name: cells for name, cells in columns.items() if name != "confusion"}
    if refined:
        pairs = zip(columns["iou"], refined["iou"], strict=True)
        columns["Δ iou"] = [None if None in pair else pair[1] - pair[0] for pair in pairs]
    kinds = {"class": "text", "Δ iou": "signed"}
    heads = tuple(Column(name, name, kinds.get(name, "number")) for name in columns)
    return plain_text(Table(heads, tuple(zip(*columns.values(), strict=True))))

"""Is our number timm's? Its train.py and ours train the same network with the same recipe, in turn.

    python benchmarks/timm_parity.py TRAIN_PY [--recipe recipes/r2.yaml] [--seeds 3] \\
        [--json FILE] [key.sub=value …]

TRAIN_PY is timm's own training script, of the installed version of timm or near it. The recipe is
cut to what a CPU does in minutes (`SHORT`), and may be changed further; its network must be timm's
as it is, and its data CIFAR. Printed: the last top-1 and the last plain cross-entropy on the test
split of each side, mean ± standard deviation over the seeds, and their difference with its 95 %
interval (Welch). Exit code 1 if an interval does not contain 0.

A seed is a number for either side; the draws differ. Both evaluate the test split after the last
epoch; nothing is chosen by it.
"""

import argparse
import csv
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import timm
import torch
import torchvision

from vision_tutorial import build
from vision_tutorial.benchmarking.bare_loop import placed
from vision_tutorial.benchmarking.timm_baseline import Untranslatable, data_words, train_words
from vision_tutorial.core.atomic import write_json
from vision_tutorial.core.errors import UserError, run_main
from vision_tutorial.data.pipeline import colours
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder
from vision_tutorial.runs.seed_statistics import Sample, confidence_interval

SHORT = ["model=test_resnet", "epochs=4", "warmup.epochs=1", "cooldown.epochs=1"]
SHORT += ["batch_size=128", "optimizer.sgd.lr=0.1", "precision=fp32", "eval_every=5"]
METRICS = {
    "top-1 (%)": ("val/top1", "eval_top1"),
    "cross-entropy": ("val/cross_entropy", "eval_loss"),
}


Values = dict[str, float]  # of a training, by the names of metrics


def ours(words: Sequence[str], seed: int, folder: Path, keys: Mapping[str, str]) -> Values:
    """Train and evaluate with this package: of the last row, `keys` by their names here."""
    command = [sys.executable, "-m", "vision_tutorial.train", *words, f"seed={seed}"]
    command += ["wandb.mode=disabled", "--runs", folder, "--id", f"seed-{seed}", "--quiet"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    (run,) = folder.glob(f"*/seed-{seed}")
    last = run_folder.read_rows(run / "metrics.jsonl")[-1]
    return {name: last[key] for name, key in keys.items()}


def theirs(script: Path, words: Sequence[str], seed: int, folder: Path) -> Values:
    """Train and evaluate with timm's script: the last line of its summary."""
    name = f"seed-{seed}"
    command = [sys.executable, script, *words, "--seed", seed, "--output", folder]
    with (folder / f"{name}.log").open("w") as log:
        command += ["--experiment", name]
        subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log)
    with (folder / name / "summary.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(last[key]) for name, (_, key) in METRICS.items()}


def their_words(recipe: Recipe, folder: Path) -> list[str]:
    """The options of timm's script that mean the recipe. UserError where it has none."""
    source, place = build.dataset(recipe, "train", None), placed(recipe)
    sizes = {choice.name: choice.options["size"] for choice in recipe.eval_augment}
    schedule, mean_std = recipe.schedule.options, colours(recipe)
    as_it_is = (None, False, 0.0, "imagenet", "timm")  # of stem and init
    given = {k: v for k, v in recipe.model.options.items() if v not in as_it_is}
    if given or sizes.keys() != {"resize", "center_crop"} or recipe.schedule.name != "cosine":
        raise UserError(f"timm's script has no words for model {given}, eval_augment or schedule.")
    try:
        words = train_words(recipe, source, place, 1, 1)
    except Untranslatable as error:
        raise UserError(f"timm's script has no words for {error}.") from error
    more = {
        "--epochs": recipe.epochs,
        "--warmup-epochs": recipe.warmup.epochs,
        "--warmup-lr": recipe.warmup.lr,
        "--cooldown-epochs": recipe.cooldown.epochs,
        "--min-lr": schedule["min_lr"],
        "--crop-pct": sizes["center_crop"] / (sizes["resize"] + 0.5),  # it rounds down
        "--interpolation": recipe.eval_augment[0].options["interpolation"],
        "--validation-batch-size": recipe.eval_batch_size,
        "--val-interval": recipe.total_epochs,
        "--log-interval": 10**6,
        "--checkpoint-hist": 1,
    }
    words += data_words(recipe, source, folder) + [str(x) for pair in more.items() for x in pair]
    return [*words, "--mean", *map(str, mean_std[0]), "--std", *map(str, mean_std[1])]


def compared(name: str, both: dict[str, list[Values]]) -> Values:
    """Print one metric of both sides, and return its numbers. both: `ours`, and another's."""
    (_, other), one, two = both, *(Sample(tuple(f[name] for f in side)) for side in both.values())
    difference, interval = one.mean - two.mean, confidence_interval(one, two) or math.nan
    texts = [f"{s.mean:.3f} ± {s.spread or 0:.3f} (n={s.n})" for s in (one, two)]
    known = f"± {interval:.3f}" if math.isfinite(interval) else "(one seed: no interval)"
    texts.append(f"difference {difference:+.3f} {known}")
    print(f"{name}: ours {texts[0]}, {other} {', '.join(texts[1:])}")
    return {"ours": one.mean, other: two.mean, "difference": difference, "interval": interval}


def in_turn(
    words: Sequence[str],
    sides: Mapping[str, Callable[[int], Values]],
    seeds: int,
    names: Iterable[str],
    file: Path | None,
) -> int:
    """Train each side with each seed; print all metrics, write them to `file`; 1 if an interval
    does not contain 0. sides: `ours`, and another's."""
    both: dict[str, list[Values]] = {name: [] for name in sides}
    for seed in range(seeds):
        for name, train in sides.items():
            both[name].append(train(seed))
        print(f"seed {seed}:", *(found[-1] for found in both.values()), file=sys.stderr)
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm)}
    print(f"{' '.join(words)}; {', '.join(f'{k} {v}' for k, v in versions.items())}")
    found = {name: compared(name, both) for name in names}
    if file:
        machine = platform.processor() or platform.machine()
        facts = {"words": words, "machine": machine, "versions": versions}
        write_json(file, {**facts, "runs": both, **found})
    return int(any(abs(one["difference"]) > one["interval"] for one in found.values()))


def work(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", metavar="TRAIN_PY", type=Path)
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--recipe", default="recipes/r2.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_intermixed_args(argv)
    words = [args.recipe, *SHORT, *args.overrides]
    keys = {name: key for name, (key, _) in METRICS.items()}
    with tempfile.TemporaryDirectory() as made:
        options = their_words(load(words[0], words[1:]).recipe, Path(made) / "images")
        sides = {
            "ours": lambda seed: ours(words, seed, Path(made), keys),
            "timm": lambda seed: theirs(args.script, options, seed, Path(made)),
        }
        return in_turn(words, sides, args.seeds, METRICS, args.json)


if __name__ == "__main__":
    sys.exit(run_main(lambda: work(sys.argv[1:])))

"""The learning-rate range test: a short training in which the lr rises from step to step; the lr
at which the loss falls fastest is a good one to begin with (Smith 2017, 1506.01186).
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...core.cli_types import loading, positive, positive_count
from ...core.errors import UserError
from ...recipe.command_line import Parser, add_overrides
from ...recipe.fields import Recipe
from ...recipe.loading import load
from .. import entry_point

_REACH = 8  # steps on either side that a mean of the losses takes
_DIVERGED = 4.0  # times the least loss, where the test ends
_FEWEST = 20  # steps that say something


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial find-lr",
        description=__doc__,
        epilog="Augmentation, mixing, batch and weight decay are the recipe's; its schedule and lr "
        "are not used. Nothing is kept but the plot.",
    )
    add = made.add_argument
    add("recipe", help="a recipe (file or name)")
    add_overrides(made)
    add("--from", type=positive, default=1e-5, dest="low", metavar="LR", help="default: 1e-5")
    add("--to", type=positive, default=10.0, dest="high", metavar="LR", help="default: 10")
    add("--steps", type=positive_count, default=100, metavar="N", help="default: 100")
    text = "the plot (default: RECIPE-lr.png)"
    add("-o", "--output", type=Path, metavar="FILE", help=text)
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Run the test; print the lr and write the plot."""
    loaded = load(args.recipe, args.overrides)
    recipe = loaded.recipe
    if args.low >= args.high or args.steps < _FEWEST:
        raise UserError(
            f"--from {args.low:g} --to {args.high:g} --steps {args.steps}: the first has to be "
            f"smaller than the second, and at least {_FEWEST} steps are needed."
        )
    with loading():  # after the recipe is known to be good
        from ... import build
        from ...report import plots

    build.import_files(loaded.imports, args.trust_imports)
    lrs, losses = _tested(recipe, args)
    smooth = smoothed(losses)
    found = steepest(lrs, smooth)
    path = args.output or Path(f"{recipe.name}-lr.png")
    plots.save(plots.lr_range(lrs, losses, smooth, found), path)
    if found is None:
        print(f"the loss falls nowhere; look at {path}, and try other --from, --to or --steps")
        return 0
    lowest = lrs[min(range(len(smooth)), key=smooth.__getitem__)]
    override = f"optimizer.{recipe.optimizer.name}.lr={found:.2g}"
    words = shlex.join([args.recipe, *args.overrides, override])
    print(f"the loss falls fastest at lr {found:.3g} and is least at {lowest:.3g}; plot: {path}")
    print(f"try: vision-tutorial train {words}")
    return 0


def _tested(recipe: Recipe, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """The lr of each step, and its loss; until it is too large."""
    from rich.console import Console
    from rich.progress import track

    from ... import build, checks, engine
    from ...engine.step import set_lr, take_step

    checks.check(recipe)
    place = engine.Distributed(
        recipe.precision, recipe.threads, recipe.deterministic, recipe.shards
    )
    try:
        if place.world > 1:
            raise UserError("find-lr runs on one process; start it without torchrun.")
        splits = build.data(recipe, place)
        training = build.training_state(recipe, splits.train, place)
        plan = build.plan(recipe, splits, training, place)
        if notice := build.fit_memory(recipe, training, plan):
            print(notice, file=sys.stderr)
        training.model.train()
        lrs, losses = [], []
        batches: Any = plan.batches(0, args.steps, training.accumulation_steps)
        console = Console(stderr=True)
        for step, parts in enumerate(track(batches, "find-lr", args.steps, console=console)):
            lr = args.low * (args.high / args.low) ** (step / (args.steps - 1))
            set_lr(training.optimizer, lr)
            loss = take_step(training, parts, step, stop=False).read().loss
            if not math.isfinite(loss):
                break
            lrs.append(lr)
            losses.append(loss)
            if smoothed(losses)[-1] > _DIVERGED * min(smoothed(losses)):
                break
    finally:
        place.close()
    return lrs, losses


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean around each step, of neighbours that count the less the farther they are. On both
    sides: a running mean would lag, and so show each fall at a greater lr than its own."""
    made, count = [], len(losses)
    for step in range(count):
        near = range(max(step - _REACH, 0), min(step + _REACH + 1, count))
        weights = [_REACH + 1 - abs(other - step) for other in near]
        total = sum(w * losses[other] for w, other in zip(weights, near, strict=True))
        made.append(total / sum(weights))
    return made


def steepest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The lr at which the losses fall fastest over its logarithm, before they are least; None where
    they fall nowhere."""
    end = min(range(len(losses)), key=losses.__getitem__, default=0) + 1
    first = min(_REACH, end // 4)  # the mean is rough at first
    pairs = list(pairwise(zip(map(math.log, lrs[first:end]), losses[first:end], strict=True)))
    falls = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs]
    if not falls or min(falls) >= 0:
        return None
    place = falls.index(min(falls))
    return math.exp((pairs[place][0][0] + pairs[place][1][0]) / 2)

"""The Week-3 table made smaller, by one rule that keeps the shape of its schedules. No torch here.

A table shows its networks a share of the images that the full one does: first it has fewer images,
and the batch and every lr shrink with them; below LEAST images it has fewer epochs. Why so:
docs/reproduce.md.
"""

import heapq
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core import arrays
from ..core.atomic import storage, write_text
from ..core.errors import ExitCode, UserError
from ..core.folders import data_folder
from ..recipe.fields import Recipe, to_yaml, written
from ..recipe.grammar import Choice
from ..recipe.loading import RECIPES, load
from ..recipe.recipe_info import recipe_info, used
from ..recipe.yaml_lines import read_document
from .scheduler import Scheduler
from .trials import Trial

TABLE = ("r0", "r1", "r2", "r3", "r4", "r5")
EPOCHS, BATCH, IMAGES = 200, 512, 50_000  # of r0 … r3, in full
FEWEST, _EPOCH_STEP = 20, 4  # E at least; what it is a multiple of
LEAST, _IMAGE_STEP = 300, 20  # images at least; what they are a multiple of
ENOUGH = 2000  # images that make a larger network worth its time
SMALLEST_BATCH = 32
PROBED = "r3"  # AutoAugment and CutMix: none of the table takes longer to augment
STEPS = 8  # of an epoch of the short training: the smallest table needs more in the time it has
ENDLESS = 1_000_000  # its epochs; the lr stays low, which cannot diverge
_EVALUATION_SPEED = 2  # times as fast as training, at least
_EVALUATION_SHARE = 1 / 6  # of the training's time at most, about, for evaluations
RULED = {"name", "expects", "seed", "model", "subset", "batch_size", "epochs", "warmup", "cooldown"}
RULED |= {"eval_every", "optimizer", "schedule"}  # no override may set them
# The key `model` of the recipes, smallest network first; None leaves theirs.
_CIFAR = {"stem": "cifar", "init": "pytorch"}
NETWORKS: dict[str, dict[str, Any] | None] = {
    "thin": {"resnet10t": {**_CIFAR, "stem_width": 8, "channels": [16, 32, 64, 128]}},
    "resnet10": {"resnet10t": {**_CIFAR, "stem_width": 16, "channels": [32, 64, 128, 256]}},
    "resnet18": {"resnet18": _CIFAR},
    "resnet50": None,
}


class Speed(NamedTuple):
    """What a short training with a network took here."""

    start: float  # seconds until its first epoch is over
    rate: float  # training images a second, in the epochs that follow


@dataclass(frozen=True)
class TablePlan:
    """A scaled-down table: what r0 … r5 share. epochs: of r0 … r3, without the cool-down."""

    network: str
    epochs: int
    images: int
    batch_size: int
    warmup: int
    cooldown: int
    eval_every: int

    def total_epochs(self, full: int) -> int:
        """Epochs of a recipe that has `full` in the original, and the cool-down."""
        return self.epochs * full // EPOCHS + self.cooldown


def count_images(recipe: Recipe) -> tuple[int, int]:
    """How many a recipe trains and tests on. UserError if only its data knows."""
    name, options = recipe.dataset.name, recipe.dataset.options
    counted = {"train": recipe_info(recipe).whole, "test": options.get("test", 10_000)}
    if name == "arrays":
        counted = arrays.counts(data_folder(options["root"], "arrays"))
    if counted.get("train") is None or "test" not in counted:
        raise UserError(
            f"dataset {name}: it is not known how many images it trains and tests on. Leave out "
            "--budget, --scale and --network, or take cifar100, shapes, or arrays with a train and "
            "a test split (vision-tutorial pack)."
        )
    train = used(recipe, counted["train"])
    return train, counted["train"] - train if recipe.holdout else counted["test"]


@dataclass(frozen=True)
class Workload:
    """A table to train. full: epochs of each recipe in the original; slots: runs at a time."""

    full: Sequence[int]
    train: int = IMAGES
    test: int = 10_000
    seeds: int = 1
    slots: int = 1

    def plan(self, share: float, network: str) -> TablePlan:
        """The rule: the table that shows networks at most `share` of what the full one does.

        A share of 0 is the smallest table of all.
        """
        most = share * EPOCHS * self.train
        images = int(most // (EPOCHS * _IMAGE_STEP)) * _IMAGE_STEP
        images = self.train if share == 1 else max(images, min(LEAST, self.train))
        epochs = int(most // (images * _EPOCH_STEP)) * _EPOCH_STEP
        epochs = min(max(epochs, FEWEST), EPOCHS)
        batch = 2 ** round(math.log2(BATCH * images / IMAGES))
        cooldown = max(1, round(10 * epochs / EPOCHS))
        total = epochs + cooldown
        one_test = self.test / _EVALUATION_SPEED  # training images that take as long
        evaluations = max(1, int(total * images * _EVALUATION_SHARE / one_test))
        return TablePlan(
            network=network,
            epochs=epochs,
            images=images,
            batch_size=min(max(batch, SMALLEST_BATCH), BATCH),
            warmup=max(1, round(5 * epochs / EPOCHS)),
            cooldown=cooldown,
            eval_every=math.ceil(total / min(evaluations, total)),
        )

    def times(self, made: TablePlan, speed: Speed) -> list[float]:
        """About how many seconds each recipe takes from its start to its end."""
        epochs = [made.total_epochs(full) for full in self.full]
        test = self.test / (_EVALUATION_SPEED * speed.rate)
        train = made.images / speed.rate
        return [speed.start + n * train + math.ceil(n / made.eval_every) * test for n in epochs]

    def total(self, made: TablePlan, speed: Speed) -> float:
        """About how many seconds all runs take, each on the first slot that is free."""
        free = [0.0] * self.slots
        for one in self.times(made, speed) * self.seeds:
            heapq.heapreplace(free, free[0] + one)
        return max(free)

    def fitted(self, network: str, speed: Speed, seconds: float) -> TablePlan:
        """The plan of the largest share that takes so long, to 1 %; the smallest if none does."""
        shares = (0.99**n for n in range(1000))
        plans = (self.plan(share, network) for share in shares)
        fitting = (made for made in plans if self.total(made, speed) <= seconds)
        return next(fitting, self.plan(0, network))

    def choose(
        self,
        networks: Sequence[str],
        measure: Callable[[str, int], Speed],
        left: Callable[[], float],
    ) -> tuple[TablePlan, Speed]:
        """The fitted plan of the largest of `networks` for which ENOUGH images fit.

        networks: smallest first, which is taken if none is fast enough. measure: how fast a network
        is here with a batch size. left: seconds.
        """
        chosen = None
        for network in networks:
            speed = measure(network, SMALLEST_BATCH)
            batch_size = self.fitted(network, speed, left()).batch_size
            if batch_size > SMALLEST_BATCH:  # larger batches are faster
                speed = measure(network, batch_size)
            enough = self.fitted(network, speed, left()).images >= ENOUGH
            if enough or not chosen:
                chosen = network, speed
            if not enough:
                break
        return self.fitted(chosen[0], chosen[1], left()), chosen[1]  # less what measuring took


class _Stopped(UserError):
    code = ExitCode.PREEMPTED


def measure(
    network: str,
    batch_size: int,
    runner: Scheduler,
    folder: Path,
    overrides: Sequence[str],
    images: int,
    seconds: float,
) -> Speed:
    """The mean speed of a network on a slot, with all slots of the runner in use as later.

    Measured once more if the training had to compile first, as a later one will not. overrides:
    of the recipe; images: as many as there are. UserError if a training fails or is stopped.
    """
    print(f"measuring {network} …", flush=True)
    subset = min(STEPS * batch_size, images)
    words = [str(path_of(PROBED)), *overrides, "name=probe", "wandb.mode=disabled"]
    words += [f"model={written(NETWORKS[network])}"] * (NETWORKS[network] is not None)
    words += [f"{key}={ENDLESS}" for key in ("epochs", "eval_every", "warmup.epochs")]
    words += [f"batch_size={batch_size}", f"subset={subset}", "--quiet", "--runs", str(folder)]
    words += ["--minutes", f"{seconds / 60:.4f}", "--id"]
    trials = [
        Trial(network, folder / "probe" / job, folder / f"{job}.log", (*words, job), ENDLESS)
        for job in map(str, range(runner.jobs))
    ]
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        with storage(folder):
            folder.mkdir(parents=True)
        began = time.monotonic()
        runner.run(trials, trials, quiet=True)
        took = time.monotonic() - began
        if runner.stop.signalled():
            raise _Stopped("stopped while it measured; the same command measures again")
        if not any("compiling" in trial.log.read_text("utf-8", "replace") for trial in trials):
            break
    if error := next((trial.error for trial in trials if trial.error), None):
        raise UserError(f"the short training failed: {error}")
    epochs = [trial.run.rows[1:] or trial.run.rows for trial in trials]
    shutil.rmtree(folder, ignore_errors=True)
    if not all(epochs):  # it is slower than this, and this is too slow for any table in time
        return Speed(took, subset / seconds)
    spent = [sum(row["seconds"] + row["seconds_overhead"] for row in rows) for rows in epochs]
    return Speed(took - min(spent), subset * sum(map(len, epochs)) / sum(spent))


def path_of(name: str) -> Path:
    """The recipe of the table as it stands."""
    return RECIPES / f"{name}.yaml"


def write_recipes(made: TablePlan, folder: Path, dataset: str | None, all_images: int) -> None:
    """r0.yaml … r5.yaml in `folder`. r0 extends the full r0; the others extend each other as ever.

    So `compare` tells the scaling once, and for the others what they change. dataset: another.
    """
    for name in TABLE:
        own = read_document(path_of(name)).values
        ruled = _by_rule(made, load(path_of(name)).recipe)
        if "extends" in own:
            values = own | {key: value for key, value in ruled.items() if key in own}
        else:
            full = os.path.relpath(path_of(name).resolve(), folder.resolve())
            more = {"dataset": dataset, "model": NETWORKS[made.network]}
            more["subset"] = made.images if made.images < all_images else None
            given = {key: value for key, value in more.items() if value is not None}
            values = {"extends": Path(full).as_posix(), **given, **ruled}
        values["expects"] = {"top1": None}
        head = f"# {name}, scaled down by `vision-tutorial reproduce` (rule: docs/reproduce.md)"
        write_text(folder / f"{name}.yaml", f"{head}\n{to_yaml(values, True)}")


def _by_rule(made: TablePlan, recipe: Recipe) -> dict[str, Any]:
    factor = made.batch_size / recipe.batch_size

    def scaled(choice: Choice, option: str) -> dict[str, Any]:
        return {choice.name: choice.options | {option: choice.options[option] * factor}}

    return {
        "epochs": made.total_epochs(recipe.epochs) - made.cooldown,
        "batch_size": made.batch_size,
        "optimizer": scaled(recipe.optimizer, "lr"),
        "schedule": scaled(recipe.schedule, "min_lr"),
        "warmup": {"epochs": made.warmup, "lr": recipe.warmup.lr * factor},
        "cooldown": {"epochs": made.cooldown},
        "eval_every": made.eval_every,
    }

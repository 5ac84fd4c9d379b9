"""The Week-3 table made smaller, by one rule that keeps the shape of its schedules. No torch here.

First the images shrink, and the batch with them, and every lr with the batch; where not even LEAST
images leave time for all epochs, then those shrink too. docs/reproduce.md has the rule, and why.
"""

import heapq
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core import arrays
from ..core.atomic import write_text
from ..core.errors import UserError
from ..recipe.fields import Recipe, to_yaml
from ..recipe.grammar import Choice
from ..recipe.loading import RECIPES, load
from ..recipe.recipe_info import recipe_info, used
from ..recipe.yaml_lines import read_document

TABLE = ("r0", "r1", "r2", "r3", "r4", "r5")
EPOCHS, BATCH, IMAGES = 200, 512, 50_000  # of r0 … r3, in full
FEWEST, _EPOCH_STEP = 20, 4  # E at least; what it is a multiple of
LEAST, _IMAGE_STEP = 300, 20  # images at least; what they are a multiple of
ENOUGH = 2000  # images that make a larger network worth its time
SMALLEST_BATCH = 32
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

    start: float  # seconds of a run in which no step is taken
    rate: float  # training images a second
    saving: float  # seconds at the end of an epoch


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


def plan(epochs: int, images: int, network: str, test: int) -> TablePlan:
    """The table of E = `epochs`, 200 in full, by the rule. images: to train on; test: to test."""
    x = epochs / EPOCHS
    batch = 2 ** round(math.log2(BATCH * images / IMAGES))
    cooldown = max(1, round(10 * x))
    total = epochs + cooldown
    evaluations = max(1, int(total * images * _EVALUATION_SHARE / (test / _EVALUATION_SPEED)))
    return TablePlan(
        network=network,
        epochs=epochs,
        images=images,
        batch_size=min(max(batch, SMALLEST_BATCH), BATCH),
        warmup=max(1, round(5 * x)),
        cooldown=cooldown,
        eval_every=math.ceil(total / min(evaluations, total)),
    )


def count_images(recipe: Recipe) -> tuple[int, int]:
    """How many a recipe trains and tests on. UserError if only its data knows."""
    name, options = recipe.dataset.name, recipe.dataset.options
    if name == "arrays":
        counted = arrays.counts(Path(options["root"]).expanduser())
        if missing := {"train", "test"} - counted.keys():
            raise UserError(f"{options['root']}: has no split '{min(missing)}'.")
        whole, test = counted["train"], counted["test"]
    else:
        whole, test = recipe_info(recipe).whole, options.get("test", 10_000)
    if whole is None:
        raise UserError(
            f"dataset {name}: it is not known how many images it has. Leave out --budget, --scale "
            "and --network, or take cifar100, shapes, or arrays (vision-tutorial pack)."
        )
    train = used(recipe, whole)
    return train, whole - train if recipe.holdout else test


def makespan(seconds: Iterable[float], slots: int) -> float:
    """When all have ended that begin in this order, each on the first slot that is free."""
    free = [0.0] * slots
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


@dataclass(frozen=True)
class Workload:
    """A table to train. full: epochs of each recipe in the original; slots: runs at a time."""

    full: Sequence[int]
    train: int = IMAGES
    test: int = 10_000
    seeds: int = 1
    slots: int = 1

    def plans(self, network: str) -> Iterator[TablePlan]:
        """All that the rule knows, from the full table down: fewer images, then fewer epochs."""
        least = min(LEAST, self.train)
        lowest = math.ceil(least / _IMAGE_STEP) * _IMAGE_STEP
        fewer = range((self.train - 1) // _IMAGE_STEP * _IMAGE_STEP, lowest - 1, -_IMAGE_STEP)
        every = [(EPOCHS, images) for images in (self.train, *fewer)]
        every += [(n, least) for n in range(EPOCHS - _EPOCH_STEP, FEWEST - 1, -_EPOCH_STEP)]
        return (plan(*size, network, self.test) for size in every)

    def plan_of_share(self, share: float, network: str) -> TablePlan:
        """The largest that shows networks at most `share` of what the full one does, or the least.

        So 0 is the smallest of all.
        """
        for made in self.plans(network):
            if made.epochs * made.images <= share * EPOCHS * self.train:
                break
        return made

    def times(self, made: TablePlan, speed: Speed) -> list[float]:
        """About how many seconds each recipe takes from its start to its end."""
        epochs = [made.total_epochs(full) for full in self.full]
        test = self.test / (_EVALUATION_SPEED * speed.rate)
        an_epoch = made.images / speed.rate + speed.saving
        return [speed.start + n * an_epoch + math.ceil(n / made.eval_every) * test for n in epochs]

    def total(self, made: TablePlan, speed: Speed) -> float:
        """About how many seconds all runs take."""
        return makespan(self.times(made, speed) * self.seeds, self.slots)

    def largest(self, network: str, speed: Speed, seconds: float) -> TablePlan | None:
        """The largest plan that takes at most so long; None if none does."""
        fits = (made for made in self.plans(network) if self.total(made, speed) <= seconds)
        return next(fits, None)

    def choose(
        self,
        networks: Sequence[str],
        measure: Callable[[str, int], Speed],
        left: Callable[[], float],
    ) -> tuple[TablePlan | None, Speed]:
        """The largest plan with the largest of `networks` for which ENOUGH images fit.

        networks: smallest first. measure: how fast a network is here with a batch size. left:
        seconds. If none is fast enough, it is the plan of the smallest, or None.
        """
        for network in networks:
            its_speed = measure(network, SMALLEST_BATCH)
            made = self.largest(network, its_speed, left())
            if made and made.batch_size > SMALLEST_BATCH:  # larger batches are faster
                its_speed = measure(network, made.batch_size)
                made = self.largest(network, its_speed, left())
            enough = made is not None and made.images >= ENOUGH
            if network == networks[0] or enough:
                chosen, speed = network, its_speed
            if not enough:
                break
        return self.largest(chosen, speed, left()), speed  # less what measuring took


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

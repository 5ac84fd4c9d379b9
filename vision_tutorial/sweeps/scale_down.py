"""The Week-3 table made smaller, by one rule that keeps the shape of its schedules. No torch here.

First the images shrink: each class keeps its share, and all epochs, warm-up and cool-down stay as
they are. Where not even LEAST images leave time for all epochs, then those shrink too, to a
multiple of four, E instead of 200. With x = E/200

- r4 and r5 get 250/200 of them;
- warm-up and cool-down get 5x and 10x epochs, to the nearest, at least one.

The batch shrinks with the images, to a power of two from 32 to 512, so that an epoch keeps its
number of steps as far as that goes, and every lr in proportion to the batch (Goyal et al. 2017).

Momentum, weight decay, augmentation, mixing and loss stay. `largest` takes the most images, then
the most epochs, that fit into a time; `choose` the largest network for which ENOUGH images and all
epochs fit. docs/reproduce.md says why.
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
_STEP = 4  # what E is a multiple of, since r4 and r5 get 5/4 of it
FEWEST = 20  # epochs
_GRAIN = 20  # what images are a multiple of
LEAST = 300  # images; fewer epochs instead
ENOUGH = 2000  # images that make a larger network worth its time
SMALLEST_BATCH = 32
_EVALUATION_SPEED = 2  # times as fast as training, at least
_EVALUATION_SHARE = 1 / 6  # of the training's time at most, about, for evaluations
RULED = {"name", "expects", "seed", "model", "subset", "batch_size", "epochs", "warmup", "cooldown"}
RULED |= {"eval_every", "optimizer", "schedule"}  # no override may set them


def _resnet10(stem_width: int, channels: list[int]) -> dict[str, Any]:
    widths = {"stem_width": stem_width, "channels": channels}
    return {"resnet10t": {"stem": "cifar", "init": "pytorch", **widths}}


# The key `model` of the recipes, smallest network first; None leaves theirs.
NETWORKS: dict[str, dict[str, Any] | None] = {
    "thin": _resnet10(8, [16, 32, 64, 128]),
    "resnet10": _resnet10(16, [32, 64, 128, 256]),
    "resnet18": {"resnet18": {"stem": "cifar", "init": "pytorch"}},
    "resnet50": None,
}


class Speed(NamedTuple):
    """What a short training with a network took here."""

    start: float  # seconds of a run in which no step is taken
    rate: float  # training images a second
    saving: float  # seconds at the end of an epoch


class Data(NamedTuple):
    """How many images the table is trained and tested on, in full."""

    train: int
    test: int


CIFAR = Data(IMAGES, 10_000)


def count_images(recipe: Recipe) -> Data:
    """How many a recipe trains and tests on. UserError if only its data knows."""
    name, options = recipe.dataset.name, recipe.dataset.options
    if name == "arrays":
        counted = arrays.counts(Path(options["root"]).expanduser())
        if missing := {"train", "test"} - counted.keys():
            raise UserError(f"{options['root']}: has no split '{min(missing)}'.")
        whole, test = counted["train"], counted["test"]
    else:
        whole, test = recipe_info(recipe).whole, options.get("test", CIFAR.test)
    if whole is None:
        raise UserError(
            f"dataset {name}: it is not known how many images it has. Leave out --budget, --scale "
            "and --network, or take cifar100, shapes, or arrays (vision-tutorial pack)."
        )
    train = used(recipe, whole)
    return Data(train, whole - train if recipe.holdout else test)


@dataclass(frozen=True)
class Plan:
    """A shrunk table: what all of r0 … r5 share. epochs: of r0 … r3."""

    network: str
    epochs: int
    images: int
    batch_size: int
    warmup: int
    cooldown: int
    eval_every: int

    def epochs_of(self, full: int) -> int:
        """Epochs of a recipe that has `full`, as it stands; the cool-down left out."""
        return self.epochs * full // EPOCHS

    def total_epochs(self, full: int) -> int:
        """With the cool-down."""
        return self.epochs_of(full) + self.cooldown

    def seconds(self, full: int, speed: Speed, test: int) -> float:
        """About how long such a recipe takes from its start to its end."""
        epochs = self.total_epochs(full)
        training = epochs * (self.images / speed.rate + speed.saving)
        evaluations = math.ceil(epochs / self.eval_every)
        return speed.start + training + evaluations * test / (_EVALUATION_SPEED * speed.rate)


def plan(epochs: int, images: int, network: str, data: Data = CIFAR) -> Plan:
    """The table of E = `epochs`, 200 in full, on so many images, by the rule."""
    x = epochs / EPOCHS
    batch = 2 ** round(math.log2(BATCH * images / IMAGES))
    cooldown = max(1, round(10 * x))
    total = epochs + cooldown
    evaluations = max(1, int(total * images * _EVALUATION_SHARE / (data.test / _EVALUATION_SPEED)))
    return Plan(
        network=network,
        epochs=epochs,
        images=images,
        batch_size=min(max(batch, SMALLEST_BATCH), BATCH),
        warmup=max(1, round(5 * x)),
        cooldown=cooldown,
        eval_every=math.ceil(total / min(evaluations, total)),
    )


def sizes(data: Data) -> Iterator[tuple[int, int]]:
    """(E, images) of all tables that the rule knows, from the full one down."""
    least = min(LEAST, data.train)
    yield EPOCHS, data.train
    for grains in range((data.train - 1) // _GRAIN, math.ceil(least / _GRAIN) - 1, -1):
        yield EPOCHS, grains * _GRAIN
    for epochs in range(EPOCHS - _STEP, FEWEST - 1, -_STEP):
        yield epochs, least


def size_of_share(share: float, data: Data) -> tuple[int, int]:
    """E and images of the table that shows networks at most `share` of what the full one does."""
    most, every = share * EPOCHS * data.train, list(sizes(data))
    return next((size for size in every if size[0] * size[1] <= most), every[-1])


def makespan(seconds: Iterable[float], slots: int) -> float:
    """When all have ended that begin in this order, each on the first slot that is free."""
    free = [0.0] * slots
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def largest(
    network: str,
    speed: Speed,
    seconds: float,
    full: Sequence[int],
    data: Data,
    seeds: int = 1,
    slots: int = 1,
) -> Plan | None:
    """The largest plan that takes at most so long on so many slots; None if none does.

    full: the epochs of each recipe of the table, as it stands. speed: on one of the slots.
    """
    for epochs, images in sizes(data):
        made = plan(epochs, images, network, data)
        if makespan([made.seconds(n, speed, data.test) for n in [*full] * seeds], slots) <= seconds:
            return made
    return None


def choose(
    networks: Sequence[str],
    measure: Callable[[str, int], Speed],
    make: Callable[[str, Speed], Plan | None],
) -> tuple[Plan | None, Speed]:
    """The plan with the largest of `networks`, smallest first, for which ENOUGH images fit.

    measure: how fast a network is with a batch size. make: the largest plan at that speed. If no
    network is fast enough, it is the plan of the smallest, or None.
    """
    chosen, speed = None, Speed(0.0, 1.0, 0.0)
    for network in networks:
        its_speed = measure(network, SMALLEST_BATCH)
        its_plan = make(network, its_speed)
        if its_plan and its_plan.batch_size > SMALLEST_BATCH:  # larger batches are faster
            its_speed = measure(network, its_plan.batch_size)
            its_plan = make(network, its_speed)
        enough = its_plan is not None and its_plan.images >= ENOUGH
        if network == networks[0] or enough:
            chosen, speed = its_plan, its_speed
        if not enough:
            break
    # once more: measuring took its time
    return chosen and make(chosen.network, speed), speed


def path_of(name: str) -> Path:
    """The recipe of the table as it stands."""
    return RECIPES / f"{name}.yaml"


def write_recipes(made: Plan, folder: Path, dataset: str | None, all_images: int) -> None:
    """r0.yaml … r5.yaml in `folder`. r0 extends the full r0; the others extend each other as ever.

    So `compare` tells the shrinking once, and for the others what they change. dataset: another.
    """
    for name in TABLE:
        own = read_document(path_of(name)).values
        ruled = _by_rule(made, load(path_of(name)).recipe, dataset, all_images)
        values = {"extends": own.pop("extends", None), "expects": {"top1": None}}
        if values["extends"] is None:
            values["extends"] = Path(
                os.path.relpath(path_of(name).resolve(), folder.resolve())
            ).as_posix()
            values |= ruled
        else:
            values |= {key: value for key, value in own.items() if key != "expects"}
            values |= {key: value for key, value in ruled.items() if key in own}
        head = "made by `vision-tutorial reproduce`; the rule is in docs/reproduce.md"
        write_text(folder / f"{name}.yaml", f"# {name}, shrunk: {head}\n{to_yaml(values, True)}")


def _by_rule(made: Plan, recipe: Recipe, dataset: str | None, all_images: int) -> dict[str, Any]:
    model = NETWORKS[made.network]
    slower = made.batch_size / recipe.batch_size
    return {
        **({"dataset": dataset} if dataset else {}),
        **({"subset": made.images} if made.images < all_images else {}),
        **({"model": model} if model else {}),
        "epochs": made.epochs_of(recipe.epochs),
        "batch_size": made.batch_size,
        "optimizer": _scaled(recipe.optimizer, "lr", slower),
        "schedule": _scaled(recipe.schedule, "min_lr", slower),
        "warmup": {"epochs": made.warmup, "lr": recipe.warmup.lr * slower},
        "cooldown": {"epochs": made.cooldown},
        "eval_every": made.eval_every,
    }


def _scaled(choice: Choice, option: str, factor: float) -> dict[str, Any]:
    return {choice.name: {**choice.options, option: choice.options[option] * factor}}

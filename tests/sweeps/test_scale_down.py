"""The rule that shrinks the Week-3 table: it keeps the schedules' shape, and fits its time."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from run_folders import make_run

from vision_tutorial import build
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs.reader import collect
from vision_tutorial.sweeps import scale_down
from vision_tutorial.sweeps.scale_down import (
    CIFAR,
    NETWORKS,
    TABLE,
    Data,
    Plan,
    Speed,
    choose,
    largest,
    makespan,
    path_of,
    plan,
    size_of_share,
    sizes,
    write_recipes,
)
from vision_tutorial.tables.comparison import rows_of
from vision_tutorial.tables.layouts import View

FULL = {name: load(path_of(name)).recipe for name in TABLE}
SOME = ((20, 300), (48, 300), (200, 2100))


def shrunk(made: Plan, folder: Path) -> dict[str, Recipe]:
    """The recipes of a plan, read back from their files."""
    write_recipes(made, folder, None, CIFAR.train)
    return {name: load(folder / f"{name}.yaml").recipe for name in TABLE}


# -- the rule --------------------------------------------------------------------------------------


def test_at_200_epochs_nothing_is_shrunk(tmp_path: Path) -> None:
    made = plan(200, 50_000, "resnet50")
    assert made == Plan("resnet50", 200, 50_000, 512, warmup=5, cooldown=10, eval_every=1)
    for name, recipe in shrunk(made, tmp_path).items():
        assert recipe.model_copy(update={"expects": FULL[name].expects}) == FULL[name]


@pytest.mark.parametrize("size", SOME)
def test_the_proportions_of_the_table_are_kept(size: tuple[int, int], tmp_path: Path) -> None:
    epochs, made = size[0], plan(*size, "thin")
    steps = made.images / made.batch_size
    least = 0 if made.batch_size == scale_down.SMALLEST_BATCH else 97.7 / math.sqrt(2)
    assert least <= steps <= 97.7 * math.sqrt(2), "50,000 / 512, as far as that goes"
    assert math.log2(made.batch_size).is_integer() and 32 <= made.batch_size <= 512
    for name, recipe in shrunk(made, tmp_path).items():
        full = FULL[name]
        assert recipe.epochs * 200 == full.epochs * epochs, "250/200, exactly"
        assert (recipe.subset or 50_000) == made.images
        for now, was in ((recipe.warmup, full.warmup), (recipe.cooldown, full.cooldown)):
            assert now.epochs >= 1
            assert abs(now.epochs - was.epochs * epochs / 200) <= 0.5 or now.epochs == 1
        for key in ("augment", "eval_augment", "mix", "loss", "seed", "precision", "dataset"):
            assert getattr(recipe, key) == getattr(full, key)
        for option in ("momentum", "weight_decay"):
            assert recipe.optimizer.options[option] == full.optimizer.options[option]
        lr = recipe.optimizer.options["lr"]
        assert lr / made.batch_size == pytest.approx({"r0": 0.1}.get(name, 0.25) / 512)
        assert recipe.warmup.lr / made.batch_size == pytest.approx(0.01 / 512)


def curve(recipe: Recipe) -> list[float]:
    """The lr of each epoch, of the recipe's peak."""
    at = build.learning_rates(recipe, 1)
    return [at(step, []) / recipe.optimizer.options["lr"] for step in range(recipe.total_epochs)]


@pytest.mark.parametrize("size", SOME)
def test_at_equal_parts_of_the_training_the_lr_is_equally_far(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """Within 1 % of what the full curve takes on in the time of one and a half shrunk epochs."""
    for name, recipe in shrunk(plan(*size, "thin"), tmp_path).items():
        small, full = curve(recipe), curve(FULL[name])
        for epoch, lr in enumerate(small):
            near = (epoch + 0.5) / len(small) * len(full), 1.5 * len(full) / len(small)
            around = full[max(0, int(near[0] - near[1])) : math.ceil(near[0] + near[1])]
            assert min(around) - 0.01 <= lr <= max(around) + 0.01, f"{name}, epoch {epoch + 1}"
        assert small[-1] == pytest.approx(full[-1]), "it cools down at the end"
        assert small[0] == pytest.approx(full[0]), "it warms up at the start"
        assert max(small) > 0.95 * max(full)


# -- the time --------------------------------------------------------------------------------------

EPOCHS = [recipe.epochs for recipe in FULL.values()]


def test_the_time_of_a_run_is_the_sum_of_its_parts() -> None:
    made = Plan("thin", 40, 2000, 32, warmup=1, cooldown=2, eval_every=15)
    speed = Speed(start=5.0, rate=1000.0, saving=0.5)
    # 42 epochs of 2 s and 0.5 s; evaluations after 15, 30, 42 epochs, each 10,000/2 images
    assert made.seconds(200, speed, 10_000) == pytest.approx(5 + 42 * 2.5 + 3 * 5)
    assert made.seconds(250, speed, 10_000) == pytest.approx(5 + 52 * 2.5 + 4 * 5)


@pytest.mark.parametrize(
    ("seconds", "seeds", "slots"), [(240, 1, 1), (600, 1, 2), (3600, 3, 2), (10**7, 2, 8)]
)
def test_the_largest_table_that_fits(seconds: float, seeds: int, slots: int) -> None:
    speed = Speed(2.0, 1500.0, 0.01)

    def total(size: tuple[int, int]) -> float:
        made = plan(*size, "thin")
        times = [made.seconds(n, speed, CIFAR.test) for n in EPOCHS] * seeds
        return makespan(times, slots)

    made = largest("thin", speed, seconds, EPOCHS, CIFAR, seeds, slots)
    every = list(sizes(CIFAR))
    place = every.index((made.epochs, made.images))
    assert total(every[place]) <= seconds and (place == 0 or total(every[place - 1]) > seconds)
    assert largest("thin", Speed(0.1, 1500.0, 0.1), 15, EPOCHS, CIFAR) is None, "not one fits"


def test_runs_begin_in_order_on_the_first_slot_that_is_free() -> None:
    assert makespan([4, 4, 4, 4, 5, 5], 1) == 26
    assert makespan([4, 4, 4, 4, 5, 5], 4) == 9
    assert makespan([5, 1, 1, 1, 3], 2) == 6


def test_tables_shrink_step_by_step() -> None:
    """Images first, then epochs."""
    every = list(sizes(CIFAR))
    assert every[0] == (200, 50_000) and every[-1] == (20, 300)
    assert all(epochs == 200 or images == 300 for epochs, images in every)
    shown = [epochs * images for epochs, images in every]
    assert shown == sorted(set(shown), reverse=True)
    assert max(more / fewer for more, fewer in pairwise(shown)) < 1.21
    assert list(sizes(Data(250, 50)))[:2] == [(200, 250), (196, 250)]
    assert size_of_share(0.0, CIFAR) == (20, 300)
    for share in (0.001, 0.1, 1.0):
        epochs, images = size_of_share(share, CIFAR)
        assert share >= epochs * images / 10**7 == pytest.approx(share, rel=0.05)


# -- the network -----------------------------------------------------------------------------------


# multiply-adds of an image
WORK = dict(zip(NETWORKS, (17.5e6, 69.8e6, 555.5e6, 1298e6), strict=True))


class Machine:
    """A simulated one: multiply-adds a second, and images a second at most."""

    def __init__(self, work: float, most: float, seconds: float):
        self.work, self.most, self.seconds = work, most, seconds
        self.measured: list[tuple[str, int]] = []

    def measure(self, network: str, batch_size: int) -> Speed:
        self.measured.append((network, batch_size))
        return Speed(6.0, min(self.work / WORK[network], self.most), 0.1)

    def choose(self, networks: list[str]) -> Plan | None:
        made, speed = choose(
            networks,
            self.measure,
            lambda network, speed: largest(network, speed, self.seconds, EPOCHS, CIFAR),
        )
        assert made is None or speed == self.measure(made.network, made.batch_size)
        return made


@pytest.mark.parametrize("seconds", (400, 1600, 6400))
def test_the_largest_network_with_enough_images_is_taken(seconds: float) -> None:
    networks, machine = list(NETWORKS), Machine(work=35e9, most=1e9, seconds=seconds)
    made = machine.choose(networks)
    assert made.network == "thin" or made.images >= scale_down.ENOUGH
    larger = networks.index(made.network) + 1
    next_one = Machine(35e9, 1e9, seconds).choose([networks[larger]])
    assert next_one is None or next_one.images < scale_down.ENOUGH
    measured = [network for network, _ in machine.measured]
    assert set(measured) <= set(networks[: larger + 1])
    assert len(measured) <= 2 * len(set(measured)) + 1, "twice at most, and once in this test"


def test_from_a_gpu_to_a_machine_too_slow_for_anything() -> None:
    made = Machine(work=5e12, most=30_000, seconds=1100).choose(list(NETWORKS))
    assert made.network == "resnet50" and made.images >= scale_down.ENOUGH
    assert Machine(1e9, 1e9, 60).choose(list(NETWORKS)) is None


# -- the recipes -----------------------------------------------------------------------------------


def test_compare_tells_the_shrinking_once_and_then_what_each_recipe_changes(tmp_path: Path) -> None:
    write_recipes(plan(48, 300, "thin"), tmp_path, "shapes", 4000)
    for name in TABLE:
        assert load(tmp_path / f"{name}.yaml").recipe.expects == {"top1": None}
        make_run(tmp_path / "runs", tmp_path / f"{name}.yaml")
    found, complaints = collect([tmp_path / "runs"])
    assert not complaints
    view = View(rows_of(found))
    steps = {line.run.name: view.deltas[line] for line in view.rows}
    assert [steps[name].parent and steps[name].parent.label for name in TABLE] == [
        None, "r0", "r1", "r2", "r3", "r4",
    ]  # fmt: skip
    assert "dataset" in steps["r0"].words and "epochs 200 → 48" in steps["r0"].words
    assert "optimizer.momentum 0.4 → 0.9" in steps["r1"].words
    assert steps["r2"].words == "− color_jitter, + auto_augment"
    assert steps["r4"].words == "epochs 48 → 60"


def test_seeds_of_a_shrunk_recipe_are_one_line(tmp_path: Path) -> None:
    """Though each trains on a part of the data of its own."""
    write_recipes(plan(48, 300, "thin"), tmp_path, None, CIFAR.train)
    for seed in (42, 43, 44):
        recipe = tmp_path / "r0.yaml"
        make_run(tmp_path / "runs", recipe, f"seed={seed}", id=str(seed), data=f"d{seed}")
    (line,) = rows_of(collect([tmp_path / "runs"])[0])
    assert line.best.n == 3

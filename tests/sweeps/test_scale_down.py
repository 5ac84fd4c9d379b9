"""The rule that scales the Week-3 table down: it keeps the schedules' shape, and fits its time."""

import math
from pathlib import Path

import pytest
from run_folders import make_run

from vision_tutorial import build
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs.reader import collect
from vision_tutorial.sweeps.scale_down import (
    ENOUGH,
    NETWORKS,
    TABLE,
    Speed,
    TablePlan,
    Workload,
    makespan,
    path_of,
    plan,
    write_recipes,
)
from vision_tutorial.tables.comparison import rows_of
from vision_tutorial.tables.layouts import View

FULL = {name: load(path_of(name)).recipe for name in TABLE}
EPOCHS = [recipe.epochs for recipe in FULL.values()]
SOME = ((20, 300), (48, 300), (200, 6400))


def scaled(made: TablePlan, folder: Path) -> dict[str, Recipe]:
    """The recipes of a plan, read back from their files."""
    write_recipes(made, folder, None, 50_000)
    return {name: load(folder / f"{name}.yaml").recipe for name in TABLE}


# -- the rule --------------------------------------------------------------------------------------


def test_at_200_epochs_nothing_is_changed(tmp_path: Path) -> None:
    made = plan(200, 50_000, "resnet50", 10_000)
    assert made == TablePlan("resnet50", 200, 50_000, 512, warmup=5, cooldown=10, eval_every=1)
    for name, recipe in scaled(made, tmp_path).items():
        assert recipe.model_copy(update={"expects": FULL[name].expects}) == FULL[name]


def curve(recipe: Recipe) -> list[float]:
    """The lr of each epoch, of the recipe's peak."""
    at = build.learning_rates(recipe, 1)
    return [at(step, []) / recipe.optimizer.options["lr"] for step in range(recipe.total_epochs)]


@pytest.mark.parametrize("size", SOME)
def test_the_proportions_of_the_table_are_kept(size: tuple[int, int], tmp_path: Path) -> None:
    """The lr: within 1 % of what the full curve takes on in the time of 1.5 of the fewer epochs."""
    epochs, made = size[0], plan(*size, "thin", 10_000)
    steps = made.images / made.batch_size
    least = 0 if made.batch_size == 32 else 97.7 / math.sqrt(2)
    assert least <= steps <= 97.7 * math.sqrt(2), "50,000 / 512, as far as that goes"
    assert math.log2(made.batch_size).is_integer() and 32 <= made.batch_size <= 512
    for name, recipe in scaled(made, tmp_path).items():
        full = FULL[name]
        assert recipe.epochs * 200 == full.epochs * epochs, "250/200, exactly"
        assert (recipe.subset or 50_000) == made.images
        for now, was in ((recipe.warmup, full.warmup), (recipe.cooldown, full.cooldown)):
            assert abs(now.epochs - was.epochs * epochs / 200) <= 0.5 or now.epochs == 1
        for key in ("augment", "eval_augment", "mix", "loss", "seed", "precision", "dataset"):
            assert getattr(recipe, key) == getattr(full, key)
        for option in ("momentum", "weight_decay"):
            assert recipe.optimizer.options[option] == full.optimizer.options[option]
        lr = recipe.optimizer.options["lr"]
        assert lr / made.batch_size == pytest.approx({"r0": 0.1}.get(name, 0.25) / 512)
        assert recipe.warmup.lr / made.batch_size == pytest.approx(0.01 / 512)
        small, large = curve(recipe), curve(full)
        for epoch, lr in enumerate(small):
            near = (epoch + 0.5) / len(small) * len(large), 1.5 * len(large) / len(small)
            around = large[max(0, int(near[0] - near[1])) : math.ceil(near[0] + near[1])]
            assert min(around) - 0.01 <= lr <= max(around) + 0.01, f"{name}, epoch {epoch + 1}"
        assert (small[0], small[-1]) == pytest.approx((large[0], large[-1]))


# -- the time --------------------------------------------------------------------------------------


def test_the_time_of_a_table() -> None:
    """The sum of its parts; runs begin in order on the first slot that is free."""
    made = TablePlan("thin", 40, 2000, 32, warmup=1, cooldown=2, eval_every=15)
    speed = Speed(start=5.0, rate=1000.0, saving=0.5)
    # 42 epochs of 2 s and 0.5 s; evaluations after 15, 30, 42 epochs, each 10,000/2 images
    expected = [5 + 42 * 2.5 + 3 * 5, 5 + 52 * 2.5 + 4 * 5]
    assert Workload([200, 250]).times(made, speed) == pytest.approx(expected)
    assert Workload([200, 250], seeds=2).total(made, speed) == pytest.approx(2 * sum(expected))
    assert makespan([4, 4, 4, 4, 5, 5], 4) == 9
    assert makespan([5, 1, 1, 1, 3], 2) == 6


@pytest.mark.parametrize(("seconds", "seeds", "slots"), [(240, 1, 1), (3600, 3, 2), (10**7, 2, 8)])
def test_the_largest_table_that_fits(seconds: float, seeds: int, slots: int) -> None:
    work, speed = Workload(EPOCHS, seeds=seeds, slots=slots), Speed(2.0, 1500.0, 0.01)
    made, every = work.largest("thin", speed, seconds), list(work.plans("thin"))
    place = every.index(made)
    assert work.total(made, speed) <= seconds
    assert place == 0 or work.total(every[place - 1], speed) > seconds
    assert work.largest("thin", Speed(0.1, 1500.0, 0.1), 15) is None, "not one fits"


def test_images_shrink_before_epochs() -> None:
    work = Workload(EPOCHS)
    every = [(made.epochs, made.images) for made in work.plans("thin")]
    assert every[0] == (200, 50_000) and every[-1] == (20, 300)
    assert all(epochs == 200 or images == 300 for epochs, images in every)
    seen = [epochs * images for epochs, images in every]
    assert seen == sorted(set(seen), reverse=True)
    few = [(made.epochs, made.images) for made in Workload(EPOCHS, 250, 50).plans("thin")]
    assert few[:2] == [(200, 250), (196, 250)]
    assert work.plan_of_share(0.0, "thin") == plan(20, 300, "thin", 10_000)
    for share in (0.001, 0.1, 1.0):
        made = work.plan_of_share(share, "thin")
        assert share >= made.epochs * made.images / 10**7 == pytest.approx(share, rel=0.05)


RATES = {"thin": 2000.0, "resnet10": 500.0, "resnet18": 63.0, "resnet50": 27.0}


@pytest.mark.parametrize("faster, seconds", [(1, 60), (1, 3000), (5, 3000), (200, 3000)])
def test_the_largest_network_with_enough_images_is_taken(faster: int, seconds: float) -> None:
    work, measured = Workload(EPOCHS), []

    def speed(network: str, batch_size: int) -> Speed:
        measured.append(network)
        return Speed(6.0, RATES[network] * faster, 0.1)

    fitting = {name: work.largest(name, speed(name, 32), seconds) for name in NETWORKS}
    enough = [name for name, made in fitting.items() if made and made.images >= ENOUGH]
    measured.clear()
    made, _ = work.choose(list(NETWORKS), speed, lambda: seconds)
    assert made == fitting[enough[-1] if enough else "thin"]
    assert set(measured) == set(list(NETWORKS)[: len(enough) + 1])
    assert len(measured) <= 2 * len(set(measured)), "twice at most"


# -- the recipes -----------------------------------------------------------------------------------


def test_compare_tells_the_scaling_once_and_then_what_each_recipe_changes(tmp_path: Path) -> None:
    """Seeds are one line, though each trains on a part of the data of its own."""
    write_recipes(plan(48, 300, "thin", 100), tmp_path, "shapes", 4000)
    for name in TABLE:
        assert load(tmp_path / f"{name}.yaml").recipe.expects == {"top1": None}
        for seed in (42, 43) if name == "r0" else (42,):
            words = {"id": str(seed), "data": f"d{seed}"}
            make_run(tmp_path / "runs", tmp_path / f"{name}.yaml", f"seed={seed}", **words)
    found, complaints = collect([tmp_path / "runs"])
    assert not complaints
    view = View(rows_of(found))
    steps = {line.run.name: view.deltas[line] for line in view.rows}
    assert len(view.rows) == 6 and view.rows[0].best.n == 2
    assert [steps[name].parent and steps[name].parent.label for name in TABLE] == [
        None, "r0", "r1", "r2", "r3", "r4",
    ]  # fmt: skip
    assert "dataset" in steps["r0"].words and "epochs 200 → 48" in steps["r0"].words
    assert "optimizer.momentum 0.4 → 0.9" in steps["r1"].words
    assert steps["r2"].words == "− color_jitter, + auto_augment"
    assert steps["r4"].words == "epochs 48 → 60"

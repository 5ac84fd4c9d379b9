"""The rule that scales the Week-3 table down: it keeps the schedules' shape, and fits its time."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import counting
import pytest
from run_folders import make_run

from vision_tutorial import build
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder
from vision_tutorial.runs.reader import collect
from vision_tutorial.sweeps import children, scale_down, scheduler
from vision_tutorial.sweeps.children import DeviceSlot, Stop
from vision_tutorial.sweeps.scale_down import TABLE, Speed, TablePlan, Workload, path_of
from vision_tutorial.sweeps.scheduler import Scheduler
from vision_tutorial.tables.comparison import rows_of
from vision_tutorial.tables.layouts import View

FULL = {name: load(path_of(name)).recipe for name in TABLE}
EPOCHS = [recipe.epochs for recipe in FULL.values()]
WHOLE = Workload(EPOCHS)


def scaled(made: TablePlan, folder: Path) -> dict[str, Recipe]:
    """The recipes of a plan, read back from their files."""
    scale_down.write_recipes(made, folder, None, 50_000)
    return {name: load(folder / f"{name}.yaml").recipe for name in TABLE}


def test_the_whole_share_changes_nothing(tmp_path: Path) -> None:
    made = WHOLE.plan(1, "resnet50")
    assert made == TablePlan("resnet50", 200, 50_000, 512, warmup=5, cooldown=10, eval_every=1)
    for name, recipe in scaled(made, tmp_path).items():
        assert recipe.model_copy(update={"expects": FULL[name].expects}) == FULL[name]


def test_images_shrink_before_epochs() -> None:
    for share in (0.99**n for n in range(0, 800, 7)):
        made = WHOLE.plan(share, "thin")
        assert made.epochs == 200 or made.images == 300
        seen = made.epochs * made.images / 10**7
        assert share >= seen > share - 4001 / 10**7 or made == WHOLE.plan(0, "thin")
    assert (made.epochs, made.images) == (20, 300)
    few = Workload(EPOCHS, 250, 50)
    sizes = [(few.plan(x, "thin").epochs, few.plan(x, "thin").images) for x in (1, 0.985, 0)]
    assert sizes == [(200, 250), (196, 250), (20, 250)]


def curve(recipe: Recipe) -> list[float]:
    """The lr of each epoch, of the recipe's peak."""
    at = build.learning_rates(recipe, 1)
    return [at(step, []) / recipe.optimizer.options["lr"] for step in range(recipe.total_epochs)]


@pytest.mark.parametrize("epochs, images", [(20, 300), (48, 300), (200, 6400)])
def test_the_proportions_of_the_table_are_kept(epochs: int, images: int, tmp_path: Path) -> None:
    """The lr: within 1 % of what the full curve takes on in the time of 1.5 of the fewer epochs."""
    made = WHOLE.plan((epochs * images + 1) / 10**7, "thin")
    steps = made.images / made.batch_size
    assert (made.epochs, made.images) == (epochs, images)
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


def test_the_time_of_a_table() -> None:
    """The sum of its parts; runs begin in order on the first slot that is free."""
    made = TablePlan("thin", 40, 2000, 32, warmup=1, cooldown=2, eval_every=15)
    speed = Speed(start=5.0, rate=1000.0)
    # 42 epochs of 2 s; evaluations after 15, 30, 42 epochs, each 10,000/2 images
    one, two = 5 + 42 * 2 + 3 * 5, 5 + 52 * 2 + 4 * 5
    assert Workload([200, 250]).times(made, speed) == pytest.approx([one, two])
    assert Workload([200, 250], seeds=2).total(made, speed) == pytest.approx(2 * (one + two))
    several = Workload([250, 200, 200, 200], slots=2)
    assert several.total(made, speed) == pytest.approx(two + one)


RATES = {"thin": 2000.0, "resnet10": 500.0, "resnet18": 63.0, "resnet50": 27.0}


@pytest.mark.parametrize("faster, seconds", [(1, 60), (1, 3000), (5, 3000), (200, 3000)])
def test_the_largest_network_with_enough_images_is_taken(faster: int, seconds: float) -> None:
    measured = []

    def speed(network: str, batch_size: int) -> Speed:
        measured.append((network, batch_size))
        return Speed(6.0, RATES[network] * faster)

    fitting = {name: WHOLE.fitted(name, speed(name, 32), seconds) for name in scale_down.NETWORKS}
    for name, made in fitting.items():
        assert made == WHOLE.plan(0, name) or WHOLE.total(made, speed(name, 32)) <= seconds
        larger = WHOLE.plan(min(1, (1.01 * made.epochs * made.images + 4001) / 10**7), name)
        assert made == WHOLE.plan(1, name) or WHOLE.total(larger, speed(name, 32)) > seconds
    enough = [name for name, made in fitting.items() if made.images >= scale_down.ENOUGH]
    measured.clear()
    made, _ = WHOLE.choose(list(scale_down.NETWORKS), speed, lambda: seconds)
    assert made == fitting[enough[-1] if enough else "thin"]
    tried = list(scale_down.NETWORKS)[: len(enough) + 1]
    sizes = {(name, size) for name in tried for size in (32, fitting[name].batch_size)}
    assert set(measured) == sizes and len(measured) == len(sizes)


WORDS = ["dataset={shapes: {train: 300, test: 20, size: 32}}", "threads=1", "workers=0"]
WORDS += ["data.path=timm"]  # nothing is compiled


@pytest.fixture
def speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Speed]:
    """A measurement of a few steps in a folder of its own."""
    monkeypatch.setattr(scheduler, "TICK", 0.02)

    def speed(name: str, size: int, words: Any = WORDS, slots: int = 1, stop: Any = None) -> Speed:
        runner = Scheduler([DeviceSlot()] * slots, 1, stop or Stop())
        return scale_down.measure(name, size, runner, tmp_path / "probe", words, 300, 2.0)

    return speed


@pytest.mark.parametrize("network, epochs, rate", [("thin", 3, 2 * 128 / 5), ("resnet50", 1, 16)])
def test_what_is_trained_and_what_is_read_off(
    network: str, epochs: int, rate: float, speed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], slot: DeviceSlot, output: Any) -> Any:
        started.append(command[command.index("vision_tutorial.train") + 1 :])
        if len(started) == 1:
            output.write(b"compiling the augmentations for this machine, once")
        run = Path(output.name).parent / "probe" / "0"
        run.mkdir(parents=True)
        seconds = [(7, 1), (2, 0.5), (2, 0.5)][:epochs]  # and saving; the first starts slowly
        rows = [{"seconds": one, "seconds_overhead": two} for one, two in seconds]
        run_folder.write_rows(run / "metrics.jsonl", rows)
        (run / "recipe.yaml").write_text("name: probe")
        run_folder.set_status(run, "paused")
        return SimpleNamespace(poll=lambda: 0, terminate=lambda: None, returncode=0)

    monkeypatch.setattr(children, "start", start)
    assert speed(network, 16, []).rate == rate
    words, again = started
    assert words == again, "once more, since the first had to compile"
    recipe = load(words[0], [word for word in words[1:] if "=" in word]).recipe
    full = load(path_of(scale_down.PROBED)).recipe
    assert (recipe.batch_size, recipe.subset, recipe.name) == (16, scale_down.STEPS * 16, "probe")
    model = scale_down.NETWORKS[network]
    assert recipe.model.name == (next(iter(model)) if model else full.model.name)
    for key in ("augment", "mix", "loss", "normalize", "precision", "dataset"):
        assert getattr(recipe, key) == getattr(full, key)
    assert recipe.warmup.epochs == recipe.epochs == recipe.eval_every == scale_down.ENDLESS, (
        "lr stays low"
    )
    epochs = 0
    assert speed(network, 16, []).rate == 128 / 2, "so fast at most"


def test_a_real_network_on_all_slots_at_once(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", counting.real_start())
    found = speed("thin", 8, slots=2)
    assert found.rate > 1 and found.start > 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="short training failed: ended with code 2: .*than the 300"):
        speed("thin", 512)
    stop = Stop()
    stop.signal = 15
    with pytest.raises(UserError, match="stopped while it measured") as caught:
        speed("thin", 8, stop=stop)
    assert caught.value.code == 143


def test_compare_tells_the_scaling_once_and_then_what_each_recipe_changes(tmp_path: Path) -> None:
    """Seeds are one line, though each trains on a part of the data of its own."""
    made = WHOLE.plan(48 * 301 / 10**7, "thin")
    scale_down.write_recipes(made, tmp_path, "shapes", 4000)
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
    parents = [steps[name].parent and steps[name].parent.label for name in TABLE]
    assert parents == [None, "r0", "r1", "r2", "r3", "r4"]
    assert "dataset" in steps["r0"].words and "epochs 200 → 48" in steps["r0"].words
    assert "optimizer.momentum 0.4 → 0.9" in steps["r1"].words
    assert steps["r2"].words == "− color_jitter, + auto_augment"
    assert steps["r4"].words == "epochs 48 → 60"

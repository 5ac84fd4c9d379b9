"""Sweep files: the points they mean, and what is said of a wrong one."""

import re
import shutil
from pathlib import Path

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.sweeps.sweep_file import Sweep, points_of, read_sweep
from vision_tutorial.sweeps.trials import SweepState

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for sweep files, beside a recipe of its own."""
    (tmp_path / "base.yaml").write_text((ROOT / "recipes" / "debug.yaml").read_text())
    return tmp_path


def read(place: Path, text: str) -> Sweep:
    """A sweep of base.yaml; `text` begins on line 2."""
    path = place / "s.yaml"
    path.write_text(f"recipe: base.yaml\n{text}\n")
    return read_sweep(path)


def test_a_grid_is_every_combination_and_each_point_comes_before_the_next_seed(place: Path) -> None:
    found = read(place, "grid: {loss: [focal, cross_entropy], epochs: [1, 2]}\nseeds: [7, 8]")
    points = points_of(found, 0)
    assert [(p.recipe.loss[0].name, p.recipe.epochs) for p in points] == [
        (loss, epochs) for loss in ("focal", "cross_entropy") for epochs in (1, 2)
    ]
    assert points[0].words == "loss=focal epochs=1"
    assert {p.recipe.name for p in points} == {"s"} and not points[0].recipe.expects
    trials = SweepState(found, "runs").trials(points)
    assert [trial.name for trial in trials][3:5] == [
        "loss=cross_entropy epochs=2  seed 7",
        "loss=focal epochs=1  seed 8",
    ]
    assert len({t.id for t in trials}) == 8 and trials[0].id[:-1] == trials[4].id[:-1]
    (point,) = points_of(read(place, "points: [{optimizer: {adamw: {lr: 1.0e-4}}, mix: null}]"), 0)
    assert point.recipe.optimizer.options["lr"] == 1e-4 and point.recipe.mix is None


def test_an_id_is_what_the_recipe_resolves_to(place: Path) -> None:
    def ids(text: str) -> list[str]:
        return [p.id for p in points_of(read(place, text), 0)]

    (one,) = ids("points: [{loss: {focal: {gamma: 2.0}}}]")
    assert ids("points: [{loss: focal, workers: 2, threads: 1}]") == [one]  # the same numbers
    assert ids("points: [{loss: focal}, {loss: {focal: 1}}]") == [one]  # one point, said twice
    assert ids("points: [{loss: focal, epochs: 3}]") != [one]
    assert ids("grid: {seed: [1, 2], loss: [focal]}") == [one]
    base = place / "base.yaml"
    base.write_text(base.read_text().replace("batch_size: 32", "batch_size: 16"))
    assert ids("points: [{loss: focal}]") != [one], "results of another recipe are not its own"
    (place / "mine.py").write_text("x = 1")
    base.write_text(base.read_text() + "imports: [mine.py]\n")
    (mine,) = ids("points: [{loss: focal}]")
    (place / "mine.py").write_text("x = 2")
    assert ids("points: [{loss: focal}]") != [mine]


@pytest.mark.parametrize(
    "text, said",
    [
        ("grid:\n  loss:\n  - focal\n  - focl", "s.yaml:5 (loss=focl): loss.focl: no loss called"),
        ("points:\n- {epochs: 1}\n- {epochs: x}", "s.yaml:4 (epochs=x): epochs: given"),
        ("set:\n  epoch: 2\npoints: [{loss: focal}]", "s.yaml:3 (epoch=2): no key called 'epoch'"),
        ("grid: {loss: []}", "s.yaml:2: grid.loss: given []; expected: List should have at least"),
        ("points: [focal]", 's.yaml:2: points.0: given "focal"; expected: {name: value, …}'),
        ("stages: [{name: a}]", "s.yaml:2: stages.0: exactly one of grid, points is needed"),
        ("stages: [{grids: {}, points: [{}]}]", "s.yaml:2: stages.0.grids: no option"),
        ("gird: {loss: [focal]}", "no key called 'gird'; did you mean 'grid'?"),
        ("points: [{}]\ngrid: {epochs: [1]}", "exactly one of grid, points, stages is needed"),
        ("points: [{}]\nseeds: [1, 1]", "s.yaml:3: seeds: a seed is set twice"),
        ("points: [{}]\nseeds: [-1]", "s.yaml:3 (seed=-1): seed: given"),
        ("points: [{}]\nseeds: [1]\nset: {seed: 2}", "a seed is set for all points too"),
        (f"grid: {{a: {list(range(1001))}}}", "1,001 points; at most 1,000"),
        (
            "stages:\n  - grid: {optimizer: [{sgd: {lr: 0.1}}, {adamw: {lr: 0.1}}]}\n"
            "  - grid: {optimizer.sgd.momentum: [0.5]}",
            "s.yaml:4 (optimizer.sgd.momentum=0.5): optimizer is 'adamw' here",
        ),
        (
            "set: {dataset: {image_folder: {root: 'https://me:hunter22@host/data'}}}\npoints: [{}]",
            "s.yaml: dataset.image_folder.root: it seems to hold a password",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str, place: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(place, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_needs_a_good_recipe(place: Path) -> None:
    (place / "bad.yaml").write_text("epoch: 3\n")
    for text, said in (
        ("", "needs a value for 'recipe'"),
        ("recipe: r9.yaml\ngrid: {epochs: [1]}", "s.yaml:1: recipe: "),
        ("recipe: bad.yaml\ngrid: {epochs: [1]}", "bad.yaml:1: epoch: no key called"),
    ):
        (place / "s.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_sweep(place / "s.yaml")
    with pytest.raises(UserError, match="no such sweep"):
        read_sweep(place / "nowhere.yaml")


def test_overrides_hold_for_all_points_and_come_last(place: Path) -> None:
    own = read(place, "set: {epochs: 3}\ngrid: {epochs: [1, 2], loss: [focal, bce]}")
    assert [p.recipe.epochs for p in points_of(own, 0)] == [1, 1, 2, 2]
    path = own.path
    found = read_sweep(path, ["epochs=5"])
    assert [p.recipe.epochs for p in points_of(found, 0)] == [5, 5]
    with pytest.raises(UserError, match=r"command line \(epoch=5\): no key"):
        read_sweep(path, ["epoch=5"])
    for text, more in (("metric: val/loss", False), ("metric: val/top5", True)):
        assert read(place, f"points: [{{}}]\n{text}").more_is_better is more


def test_the_file_in_the_docs_loads_and_so_does_every_sweep_of_ours(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "sweep.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shutil.copy(ROOT / "recipes" / "quickstart.yaml", tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "s.yaml").write_text(block)
    found = read_sweep(tmp_path / "sweeps" / "s.yaml")
    assert len(SweepState(found, "runs").trials(points_of(found, 0))) == 8
    named = set(re.findall(r"`([a-z0-9-]+)`", text[text.index("| file |") :]))
    for path in (ROOT / "recipes" / "sweeps").glob("*.yaml"):
        assert path.stem in named and all(stage.choices for stage in read_sweep(path).stages)

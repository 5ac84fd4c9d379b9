"""Sweeps: what a file means, that every point runs once whatever happens, what is said of them."""

import os
import shlex
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import counting
import pytest

from vision_tutorial import sweep as verb
from vision_tutorial import train
from vision_tutorial.core import children, running, runs
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.loading import load
from vision_tutorial.core.sweeping import Sweep, points_of, read_sweep, trials_of

ROOT = Path(__file__).parent.parent
COUNTING = str(Path(__file__).parent / "counting.py")
LRS = "optimizer.sgd.lr: [0.1, 0.01, 0.001, 0.3]"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for sweep files, beside a recipe of its own; children count, and keep a diary."""
    (tmp_path / "base.yaml").write_text((ROOT / "recipes" / "debug.yaml").read_text())
    monkeypatch.setenv("COUNTING_DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(running, "TICK", 0.02)
    monkeypatch.setattr(children, "start", counting.start)
    return tmp_path


def write(place: Path, text: str, name: str = "s.yaml") -> Path:
    """A sweep file of base.yaml."""
    path = place / name
    path.write_text(f"recipe: base.yaml\n{text}\n")
    return path


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def swept(place: Path, capfd: Any) -> Callable[..., Ended]:
    """The sweep verb on a file, to its end, in this process."""

    def sweep(file: Path, *words: str) -> Ended:
        capfd.readouterr()
        code = verb.main([str(file), "--runs", str(place / "runs"), *words])
        return Ended(code, *capfd.readouterr())

    return sweep


def beside(place: Path, file: Path, *words: str, **more: Any) -> subprocess.Popen:
    """The sweep verb in a process of its own, which can be killed."""
    words = [sys.executable, COUNTING, "sweep", str(file), "--runs", str(place / "runs"), *words]
    return subprocess.Popen(words, **{"stdout": subprocess.DEVNULL, **more})


def diary(place: Path) -> list[str]:
    """What the children did, in order."""
    path = place / "diary"
    return path.read_text().splitlines() if path.exists() else []


def done(place: Path) -> Counter:
    """How often each run was brought to its end."""
    return Counter(line.split()[1] for line in diary(place) if line.startswith("done "))


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    """Until it is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


# -- what a file means -----------------------------------------------------------------------------


def read(place: Path, text: str) -> Sweep:
    return read_sweep(write(place, text))


def test_a_grid_is_every_combination(place: Path) -> None:
    found = read(place, "grid: {loss: [focal, cross_entropy], epochs: [1, 2, 3]}")
    points = points_of(found, 0)
    assert [(p.recipe.loss[0].name, p.recipe.epochs) for p in points] == [
        (loss, epochs) for loss in ("focal", "cross_entropy") for epochs in (1, 2, 3)
    ]
    assert points[0].words == "loss=focal epochs=1"
    assert {p.recipe.name for p in points} == {"s"} and not points[0].recipe.expects


def test_whole_values_of_any_kind_come_through(place: Path) -> None:
    text = """
set: {warmup: {epochs: 0}, seed: 5}
points:
  - optimizer: {adamw: {lr: 1.0e-4, weight_decay: 1.0e-2}}
    mix: null
  - {loss: {focal: {weight: 0.75, gamma: 0.5}, cross_entropy: 0.25}, augment: [hflip]}
"""
    one, two = points_of(read(place, text), 0)
    assert one.recipe.optimizer.options["lr"] == 1e-4 and one.recipe.mix is None
    assert one.recipe.warmup.epochs == two.recipe.warmup.epochs == 0
    assert [(t.name, t.weight) for t in two.recipe.loss] == [
        ("focal", 0.75),
        ("cross_entropy", 0.25),
    ]
    assert two.recipe.loss[0].options["gamma"] == 0.5 and two.recipe.augment[0].name == "hflip"


def test_trials_go_through_all_points_before_the_next_seed(place: Path) -> None:
    found = read(place, "grid: {loss: [focal, cross_entropy]}\nseeds: [7, 8]")
    trials = trials_of(found, points_of(found, 0))
    assert [(t.seed, t.point.recipe.loss[0].name) for t in trials] == [
        (7, "focal"),
        (7, "cross_entropy"),
        (8, "focal"),
        (8, "cross_entropy"),
    ]
    assert len({t.id for t in trials}) == 4 and trials[0].id[:-1] == trials[2].id[:-1]


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
        ("grid: {loss: [focal, focl]}", "s.yaml:2 (loss=focl): loss.focl: no loss called 'focl'"),
        ("grid:\n  epochs: [1]\n  los: [focal]", "s.yaml:4 (los=focal): no key called 'los'"),
        ("points:\n- {epochs: 1}\n- {epochs: x}", "s.yaml:4 (epochs=x): epochs: given"),
        ("set: {epoch: 2}\npoints: [{loss: focal}]", "s.yaml:2 (epoch=2): no key called 'epoch'"),
        ("grid: {loss: focal}", "s.yaml:2: grid.loss: given"),
        ("grid: {loss: []}", "s.yaml:2: grid.loss: given"),
        ("grid: []", "s.yaml:2: grid: given"),
        ("points: {loss: focal}", "s.yaml:2: points: given"),
        ("points: [focal]", "s.yaml:2: points.0: given"),
        ("stages: []", "s.yaml:2: stages: given"),
        ("stages: [{name: a}]", "s.yaml:2: stages.0: given"),
        ("stages: [{grids: {}, points: [{}]}]", "no key of a stage called 'grids'"),
        ("stages: [{name: [a], points: [{}]}]", "s.yaml:2: stages.0.name: given"),
        ("gird: {loss: [focal]}", "no key of a sweep called 'gird'; did you mean 'grid'?"),
        ("", "exactly one of grid, points, stages is needed; none is given"),
        ("grid: {epochs: [1]}\npoints: [{}]", "grid, points are given"),
        ("points: [{}]\nseeds: [1, 1]", "s.yaml:3: seeds: given"),
        ("points: [{}]\nseeds: 3", "s.yaml:3: seeds: given"),
        ("points: [{}]\nseeds: []", "s.yaml:3: seeds: given"),
        ("points: [{}]\nseeds: [-1]", "s.yaml:3 (seed=-1): seed: given"),
        ("points: [{}]\nseeds: [1]\nset: {seed: 2}", "a seed is set for all points too"),
        ("points: [{}]\ndirection: up", "s.yaml:3: direction: given"),
        ("points: [{}]\nmetric: 3", "s.yaml:3: metric: given"),
        (f"grid: {{a: {list(range(1001))}}}", "1,001 points; at most 1,000"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str, place: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(place, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("grid: {epochs: [1]}", "the key 'recipe' is needed"),
        ("recipe: r9.yaml\ngrid: {epochs: [1]}", "s.yaml:1: recipe: "),
        ("recipe: [base.yaml]\ngrid: {epochs: [1]}", "s.yaml:1: recipe: given"),
        ("recipe: bad.yaml\ngrid: {epochs: [1]}", "bad.yaml:1: epoch: no key called"),
    ],
)
def test_a_sweep_needs_a_good_recipe(text: str, said: str, place: Path) -> None:
    (place / "bad.yaml").write_text("epoch: 3\n")
    (place / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        read_sweep(place / "s.yaml")
    with pytest.raises(UserError, match="no such sweep"):
        read_sweep(place / "nowhere.yaml")


def test_a_later_stage_is_checked_on_every_choice_of_those_before(place: Path) -> None:
    text = """
stages:
  - grid: {optimizer: [{sgd: {lr: 0.1}}, {adamw: {lr: 0.1}}]}
  - grid: {optimizer.sgd.momentum: [0.5]}
"""
    with pytest.raises(UserError, match=r"s.yaml:5 \(optimizer.sgd.momentum=0.5\).*'adamw' here"):
        read(place, text)


def test_overrides_hold_for_all_points_and_come_last(place: Path) -> None:
    path = write(place, "grid: {epochs: [1, 2], loss: [focal, cross_entropy]}")
    found = read_sweep(path, ["epochs=5"])
    assert [p.recipe.epochs for p in points_of(found, 0)] == [5, 5]
    with pytest.raises(UserError, match=r"command line \(epoch=5\): no key"):
        read_sweep(path, ["epoch=5"])


# -- running ---------------------------------------------------------------------------------------


def test_killed_twice_every_point_runs_once(place: Path, swept: Any) -> None:
    """Twelve trials, two at a time; SIGKILL twice, in the midst of some."""
    file = write(place, f"grid:\n  {LRS}\n  loss: [focal, cross_entropy, bce]\nset: {{epochs: 6}}")
    for enough in (2, 6):
        sweep = beside(place, file, "--jobs", "2")
        wait_for(lambda: len(done(place)) >= enough and diary(place)[-1].endswith(" 3"))  # noqa: B023
        assert sweep.poll() is None
        sweep.kill()
        assert sweep.wait() == -signal.SIGKILL
    ended = swept(file, "--jobs", "2")
    assert ended.code == 0, ended.out + ended.err
    folders = list((place / "runs" / "s").glob("*/recipe.yaml"))
    assert len(folders) == 12 and done(place) == {path.parent.name: 1 for path in folders}
    epochs = Counter(line for line in diary(place) if line.startswith("epoch "))
    assert len(epochs) == 72 and set(epochs.values()) == {1}, "an epoch was lost or done twice"
    for path in folders:
        rows = runs.read_rows(path.parent / "metrics.jsonl")
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(Counter(x for x in diary(place) if x.startswith("start")).values()) > 1, "none cut"
    again = len(diary(place))
    assert swept(file).code == 0 and len(diary(place)) == again, "all is done"


def test_children_of_a_killed_sweep_end_with_it(place: Path) -> None:
    file = write(place, "points: [{epochs: 1000}]")
    sweep = beside(place, file)
    wait_for(lambda: any(line.startswith("epoch") for line in diary(place)))
    (status,) = (place / "runs" / "s").glob("*/status.json")
    sweep.kill()
    wait_for(lambda: runs.read_json(status)["status"] == "preempted")
    assert sweep.wait() == -signal.SIGKILL


def test_a_point_that_another_process_trains_is_waited_for(place: Path, swept: Any) -> None:
    file = write(place, "points: [{epochs: 10}]")
    words = shlex.split(swept(file, "--print-commands").out)[2:]
    other = counting.start(children.training(words))
    wait_for(lambda: any(line.startswith("epoch") for line in diary(place)))
    assert swept(file).code == 0
    assert other.wait() == 0 and list(done(place).values()) == [1]
    assert len([line for line in diary(place) if line.startswith("start")]) == 1


def test_a_second_sweep_is_refused_and_a_signal_can_be_resumed(place: Path, swept: Any) -> None:
    file = write(place, "points: [{epochs: 1000}, {epochs: 2}]")
    sweep = beside(place, file, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: any(line.startswith("epoch") for line in diary(place)))
    second = swept(file)
    assert second.code == 2 and "is in use by process" in second.err
    sweep.send_signal(signal.SIGINT)
    assert "the same command goes on" in sweep.communicate()[0] and sweep.returncode == 143
    (status,) = (place / "runs" / "s").glob("*/status.json")
    assert runs.read_json(status)["status"] == "preempted", "it was asked, and could save"
    assert [line[:5] for line in diary(place)].count("start") == 1, "no other was begun"


def test_a_failure_does_not_stop_the_others_and_is_tried_again_on_request(
    place: Path, swept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(place, "grid: {batch_size: [13, 32]}")
    first = swept(file)
    assert first.code == 1 and "exit code 4: out of luck" in first.out
    assert len(done(place)) == 1
    second = swept(file)
    assert second.code == 1 and "1 failed, 1 done (--retry-failed tries again)" in second.out
    assert [line[:5] for line in diary(place)].count("start") == 2
    monkeypatch.setenv("COUNTING_LUCK", "1")
    third = swept(file, "--retry-failed")
    assert third.code == 0 and list(done(place).values()) == [1, 1]


def test_a_child_that_ends_without_a_word_in_its_folder_is_heard(place: Path, swept: Any) -> None:
    base = place / "base.yaml"
    base.write_text(base.read_text() + "imports: [mine.py]\n")
    (place / "mine.py").write_text("x = 1")
    file = write(place, "points: [{epochs: 1}]")
    (one,) = trials_of(read_sweep(file), points_of(read_sweep(file), 0))
    run = place / "runs" / "s" / one.id
    run.parent.mkdir(parents=True)
    run.write_text("in the way")
    found = swept(file)
    assert found.code == 1 and "ended with code 5: error: cannot write" in found.out
    run.unlink()
    run.mkdir()  # of one that was killed before it had written anything
    assert swept(file).code == 0 and done(place) == {one.id: 1}
    assert (run / "mine.py").read_text() == "x = 1"


GREEDY = f"""
set: {{epochs: 2}}
stages:
  - {{name: lr, grid: {{{LRS}}}}}
  - name: loss
    points: [{{loss: focal}}, {{loss: cross_entropy}}, {{optimizer.sgd.lr: 0.1, loss: BASE}}]
seeds: [1, 2]
"""


def test_a_greedy_stage_stands_on_the_best_of_the_one_before(place: Path, swept: Any) -> None:
    blend = "{cross_entropy: {weight: 1, label_smoothing: 0.1}, focal: 0.5}"  # as the recipe has it
    file = write(place, GREEDY.replace("BASE", blend))
    before = swept(file, "--dry-run")
    assert "s, lr: 4 points x 2 seeds" in before.out and not diary(place)
    assert "8 runs and 6 in later stages, 28 epochs" in before.out
    ended = swept(file, "--jobs", "4")
    assert ended.code == 0, ended.out + ended.err
    assert len(done(place)) == 12 and set(done(place).values()) == {1}, "2 of 14 are the same"
    table = ended.out[ended.out.index("best val/top1") :].splitlines()
    assert "optimizer.sgd.lr=0.01 loss=focal" in table[2] and " ± " in table[2]
    assert table[-1] == f"vision-tutorial compare {place / 'runs' / 's'}"
    recipes = [load(path).recipe for path in (place / "runs" / "s").glob("*/recipe.yaml")]
    at = Counter((r.loss[0].name, len(r.loss), r.optimizer.options["lr"]) for r in recipes)
    assert at["focal", 1, 0.01] == at["cross_entropy", 1, 0.01] == at["cross_entropy", 2, 0.1] == 2


def test_a_metric_may_be_chosen_and_a_wrong_one_is_answered(place: Path, swept: Any) -> None:
    points = f"grid: {{{LRS}}}\nset: {{epochs: 1}}\n"
    ended = swept(write(place, points + "metric: val/top1\ndirection: min"), "--jobs", "4")
    first = ended.out[ended.out.index("best val/top1") :].splitlines()[2]
    assert "optimizer.sgd.lr=0.3" in first, "the worst by top-1"
    ended = swept(write(place, points + "metric: val/top"))
    assert ended.code == 2 and "did you mean 'val/top1'?" in ended.err
    assert read(place, "points: [{}]\nmetric: val/loss").more_is_better is False


def test_cores_are_dealt_to_jobs(place: Path, swept: Any) -> None:
    cores = len(os.sched_getaffinity(0))
    swept(write(place, "points: [{epochs: 1}]"), "--jobs", "1")
    swept(write(place, "points: [{epochs: 2}]"), "--jobs", str(cores))
    assert [line.split()[2] for line in diary(place) if line.startswith("start")] == [
        f"cores={cores}",
        "cores=1",
    ]


def test_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "usable_cores", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(children, "gpu_names", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert children.seats(None) == [children.Seat((), (0, 1, 2, 3, 4))]
    assert [seat.cores for seat in children.seats(2)] == [(0, 1), (2, 3, 4)]
    assert len(children.seats(7)) == 7 and all(seat.cores for seat in children.seats(7))
    monkeypatch.setattr(children, "gpu_names", lambda: ["H100"] * 4)
    assert [seat.gpus for seat in children.seats(None)] == [("0",), ("1",), ("2",), ("3",)]
    assert [seat.gpus for seat in children.seats(None, 2)] == [("0", "1"), ("2", "3")]
    assert [seat.gpus for seat in children.seats(6)][4:] == [("0",), ("1",)]
    with pytest.raises(UserError, match="there are 4 GPUs"):
        children.seats(None, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-77")
    assert [seat.gpus for seat in children.seats(None)] == [("3",), ("GPU-77",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [seat.gpus for seat in children.seats(None)] == [()]


# -- instead of running ----------------------------------------------------------------------------


def test_the_printed_commands_train_the_points_and_can_be_repeated(place: Path, swept: Any) -> None:
    file = write(place, "grid: {optimizer: [{adamw: {lr: 0.001}}], epochs: [1]}\nseeds: [1, 2]")
    lines = swept(file, "--print-commands").out.splitlines()
    assert len(lines) == 2 and not diary(place)
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["vision-tutorial", "train"]
        for _ in range(2):  # a scheduler may send a job again
            assert counting.start(children.training(words[2:])).wait() == 0
    found = [load(path).recipe for path in (place / "runs" / "s").glob("*/recipe.yaml")]
    assert sorted(recipe.seed for recipe in found) == [1, 2]
    assert swept(file, "--print-commands").out == "", "all is done"
    many = swept(write(place, "points: [{epochs: 3}]"), "--print-commands", "--nproc", "2")
    assert many.out.startswith("torchrun --nproc 2 -m vision_tutorial.train ")


def test_one_point_by_its_id(place: Path, swept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(place, "grid: {epochs: [1, 2]}")
    (one, _) = trials_of(read_sweep(file), points_of(read_sweep(file), 0))
    monkeypatch.setattr(os, "execv", lambda _, words: counting.start(words).wait())
    assert swept(file, "--point", one.id).code == 0
    assert list(done(place)) == [one.id]
    wrong = swept(file, "--point", one.id[:-1] + "9")
    assert wrong.code == 2 and f"did you mean '{one.id}'?" in wrong.err


def test_a_sweep_at_wandb(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made: list[Any] = []

    def create(config: dict[str, Any], project: str) -> str:
        made.append((config, project))
        return "abc123"

    fake = types.ModuleType("wandb")
    fake.sweep = create
    monkeypatch.setitem(sys.modules, "wandb", fake)
    file = write(place, "grid: {epochs: [1, 2]}\nseeds: [4]")
    words = [str(file), "--wandb", "--runs", str(place / "runs")]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert verb.main(words) == 0
    assert "wandb agent vision-tutorial/abc123" in capsys.readouterr().out
    ((config, project),) = made
    ids = [trial.id for trial in trials_of(read_sweep(file), points_of(read_sweep(file), 0))]
    assert config["parameters"] == {"point": {"values": ids}} and config["method"] == "grid"
    assert project == "vision-tutorial"
    # what an agent makes of the command runs the point
    start = config["command"].index("${interpreter}") + 1
    assert config["command"][start : start + 2] == ["-m", "vision_tutorial.sweep"]
    given = [f"--point={ids[1]}" if w == "${args}" else w for w in config["command"][start + 2 :]]
    assert verb.parser().parse_intermixed_args(given).point == ids[1]

    def refuse(config: dict[str, Any], project: str) -> str:
        raise ConnectionError("no\nnetwork")

    fake.sweep = refuse
    assert verb.main(words) == 2
    err = capsys.readouterr().err
    assert "no sweep was created (no network)" in err and err.count("\n") == 1
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert verb.main(words) == 2 and "lives on the server" in capsys.readouterr().err


def test_it_starts_without_torch(place: Path) -> None:
    file = write(place, "grid: {epochs: [1, 2]}")
    script = (
        "import sys; from vision_tutorial import sweep; code = sweep.main(sys.argv[1:]); "
        "assert not {'torch', 'timm', 'numpy', 'wandb'} & sys.modules.keys(); sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", script, str(file), "--dry-run"], check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "sweeps").glob("*.yaml")), ids=str)
def test_every_sweep_of_ours_loads(path: Path) -> None:
    found = read_sweep(path)
    assert all(stage.choices for stage in found.stages)


def test_train_continues_the_run_of_an_id(place: Path) -> None:
    words = [str(place / "base.yaml"), "--runs", str(place), "--id", "x", "--resume"]
    args = train.parser().parse_args(words)
    assert train.wanted(args)[0] is None
    run, loaded = train.new_run(args, load(words[0])), load(words[0])
    assert train.wanted(args) == (run, loaded)
    (run / "recipe.yaml").unlink()  # killed before it was written
    assert train.wanted(args) == (run, loaded)
    with pytest.raises(UserError, match="cannot be the name"):
        train.wanted(train.parser().parse_args([*words[:-2], "..", "--resume"]))

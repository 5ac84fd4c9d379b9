"""The sweep command: every point runs once whatever happens, and what is said of them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counting
import pytest
from counting import Ended, beside, diary, ended, wait_for

from vision_tutorial.commands import sweep as command
from vision_tutorial.core.atomic import read_json
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder
from vision_tutorial.sweeps import children, scheduler
from vision_tutorial.sweeps.sweep_file import read_sweep
from vision_tutorial.sweeps.trials import SweepState

ROOT = Path(__file__).parents[2]
LRS = "optimizer.sgd.lr: [0.1, 0.01, 0.001, 0.3]"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for sweep files, beside a recipe of its own; children count and keep a diary."""
    (tmp_path / "base.yaml").write_text((ROOT / "recipes" / "debug.yaml").read_text())
    monkeypatch.setenv("COUNTING_DIARY", str(tmp_path / "diary"))
    monkeypatch.setattr(scheduler, "TICK", 0.02)
    monkeypatch.setattr(children, "start", counting.start)
    return tmp_path


def write(place: Path, text: str) -> Path:
    """A sweep file of base.yaml."""
    path = place / "s.yaml"
    path.write_text(f"recipe: base.yaml\n{text}\n")
    return path


@pytest.fixture
def swept(place: Path, capfd: Any) -> Callable[..., Ended]:
    """The sweep command on a file, to its end, in this process."""
    return lambda *words: ended(capfd, command.main, *words, "--runs", place / "runs")


def sweep_beside(place: Path, *words: object, **more: Any) -> subprocess.Popen:
    """The sweep command in a process of its own."""
    return beside("sweep", *words, "--runs", place / "runs", **more)


def done() -> Counter:
    """How often each run was brought to its end."""
    return Counter(line.split()[1] for line in diary() if line.startswith("done "))


def is_training() -> bool:
    """Whether some child has finished an epoch."""
    return any(line.startswith("epoch") for line in diary())


def trials_of(file: Path) -> list[Any]:
    """The trials of a sweep with one stage."""
    state = SweepState(read_sweep(file), "runs")
    state.advance()
    return state.trials(state.points)


def test_killed_twice_every_point_runs_once(place: Path, swept: Any) -> None:
    """Twelve trials, two at a time; SIGKILL twice, in the midst of some."""
    file = write(place, f"grid:\n  {LRS}\n  loss: [focal, cross_entropy, bce]\nset: {{epochs: 6}}")
    held = place / "diary.held"
    for enough in (2, 6):
        sweep = sweep_beside(place, file, "--jobs", "2")
        wait_for(lambda: len(done()) >= enough)  # noqa: B023
        held.touch()
        wait_for(lambda: diary()[-1].startswith("held"))
        sweep.kill()
        assert sweep.wait() == -signal.SIGKILL
        states = (place / "runs" / "s").glob("*/status.json")
        for path in states:  # its children end with it, and save
            wait_for(lambda: read_json(path)["status"] != "running")  # noqa: B023
        held.unlink()
    found = swept(file, "--jobs", "2")
    assert found.code == 0, found.out + found.err
    folders = list((place / "runs" / "s").glob("*/recipe.yaml"))
    assert len(folders) == 12 and done() == {path.parent.name: 1 for path in folders}
    epochs = Counter(line for line in diary() if line.startswith("epoch "))
    assert len(epochs) == 72 and set(epochs.values()) == {1}, "an epoch was lost or done twice"
    for path in folders:
        rows = run_folder.read_rows(path.parent / "metrics.jsonl")
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    begun = Counter(line.split()[1] for line in diary() if line.startswith("start"))
    assert max(begun.values()) > 1, "some were cut, and went on"
    again = len(diary())
    assert swept(file).code == 0 and len(diary()) == again, "all is done"


def test_a_point_that_another_process_trains_is_waited_for(place: Path, swept: Any) -> None:
    file = write(place, "points: [{epochs: 10}]")
    words = shlex.split(swept(file, "--print-commands").out)[2:]
    other = counting.start(children.training(words))
    wait_for(is_training)
    found = swept(file)
    assert found.code == 0 and "other processes train" in found.out
    assert other.wait() == 0 and list(done().values()) == [1]
    assert len([line for line in diary() if line.startswith("start")]) == 1


def test_a_second_sweep_is_refused_and_a_signal_can_be_resumed(
    place: Path, swept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTING_STOPPED", "1")  # torchrun's, whatever its processes say
    file = write(place, "points: [{epochs: 100000}, {epochs: 2}]")
    sweep = sweep_beside(place, file, stdout=subprocess.PIPE, text=True)
    wait_for(is_training)
    second = swept(file)
    assert second.code == 2 and "is in use by process" in second.err
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate()
    assert "the same command goes on" in out and "failed" not in out and sweep.returncode == 143
    (status,) = (place / "runs" / "s").glob("*/status.json")
    assert read_json(status)["status"] == "preempted", "it was asked, and could save"
    assert [line[:5] for line in diary()].count("start") == 1, "no other was begun"


def test_a_failure_does_not_stop_the_others_and_is_tried_again_on_request(
    place: Path, swept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(place, "grid: {batch_size: [13, 32]}")
    first = swept(file)
    assert first.code == 1 and "exit code 4: out of luck" in first.out and len(done()) == 1
    second = swept(file)
    assert second.code == 1 and "1 failed, 1 done (--retry-failed tries again)" in second.out
    assert "(0.1 s an epoch, measured in 1 run here)" in second.out
    assert [line[:5] for line in diary()].count("start") == 2
    monkeypatch.setenv("COUNTING_LUCK", "1")
    third = swept(file, "--retry-failed")
    assert third.code == 0 and list(done().values()) == [1, 1]


def test_a_child_that_ends_without_a_word_in_its_folder_is_heard(place: Path, swept: Any) -> None:
    base = place / "base.yaml"
    base.write_text(base.read_text() + "imports: [mine.py]\n")
    (place / "mine.py").write_text("x = 1")
    file = write(place, "points: [{epochs: 1}]")
    (one,) = trials_of(file)
    run = place / "runs" / "s" / one.id
    run.parent.mkdir(parents=True)
    run.write_text("in the way")
    found = swept(file)
    assert found.code == 1 and "ended with code 2: error: " in found.out
    run.unlink()
    run.mkdir()  # of one that was killed before it had written anything
    assert swept(file).code == 0 and done() == {one.id: 1}
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
    text = GREEDY.replace("BASE", blend)
    file = write(place, text)
    before = swept(file, "--dry-run")
    assert "s, lr: 4 points x 2 seeds" in before.out and not diary()
    assert "8 runs and 6 in later stages, 28 epochs" in before.out
    found = swept(file, "--jobs", len(os.sched_getaffinity(0)))
    assert found.code == 0, found.out + found.err
    assert len(done()) == 12 and set(done().values()) == {1}, "2 of 14 are the same"
    assert re.search(r"val/top1 (\S+) best, \1 last", found.out), "the last epoch is the best"
    assert {line.split()[2] for line in diary() if line.startswith("start")} == {"cores=1"}
    table = found.out[found.out.index("best val/top1") :].splitlines()
    assert "optimizer.sgd.lr=0.01 loss=focal" in table[2] and " ± " in table[2]
    assert table[-1] == f"vision-tutorial compare {place / 'runs' / 's'}"
    recipes = [load(path).recipe for path in (place / "runs" / "s").glob("*/recipe.yaml")]
    at = Counter((r.loss[0].name, len(r.loss), r.optimizer.options["lr"]) for r in recipes)
    assert at["focal", 1, 0.01] == at["cross_entropy", 1, 0.01] == at["cross_entropy", 2, 0.1] == 2
    worst = swept(write(place, text + "metric: val/top1\ndirection: min"))
    first = worst.out[worst.out.index("best val/top1") :].splitlines()[2]
    assert "optimizer.sgd.lr=0.3" in first, "the worst by top-1"
    wrong = swept(write(place, text + "metric: val/top"))
    assert wrong.code == 2 and "did you mean 'val/top1'?" in wrong.err


def test_the_printed_commands_train_the_points_and_can_be_repeated(place: Path, swept: Any) -> None:
    file = write(place, "grid: {optimizer: [{adamw: {lr: 0.001}}], epochs: [1]}\nseeds: [1, 2]")
    lines = swept(file, "--print-commands").out.splitlines()
    assert len(lines) == 2 and not diary()
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
    (one, _) = trials_of(file)
    monkeypatch.setattr(os, "execv", lambda _, words: counting.start(words).wait())
    assert swept(file, "--point", one.id).code == 0 and list(done()) == [one.id]
    wrong = swept(file, "--point", one.id[:-1] + "9")
    assert wrong.code == 2 and f"did you mean '{one.id}'?" in wrong.err


def test_a_sweep_at_wandb(place: Path, swept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def create(config: dict[str, Any], project: str, entity: str | None) -> str:
        assert (project, entity) == ("vision-tutorial", "class")
        if made:
            raise ConnectionError("no\nnetwork")
        made.append(config)
        return "abc123"

    fake = types.ModuleType("wandb")
    fake.sweep = create
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    file = write(place, "grid: {epochs: [1, 2]}\nseeds: [4]\nset: {wandb.entity: class}")
    assert "wandb agent vision-tutorial/abc123" in swept(file, "--wandb").out
    ids = [trial.id for trial in trials_of(file)]
    assert made[0]["parameters"] == {"point": {"values": ids}} and made[0]["method"] == "grid"
    # what an agent makes of the command runs the point
    words = made[0]["command"][made[0]["command"].index("${interpreter}") + 1 :]
    assert words[:3] == ["-m", "vision_tutorial", "sweep"] and words[-1] == "${args}"
    given = [*words[3:-1], f"--point={ids[1]}"]
    assert command.parser().parse_intermixed_args(given).point == ids[1]
    refused = swept(file, "--wandb")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "no sweep was created (no network)" in refused.err
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "lives on the server" in swept(file, "--wandb").err


def test_it_starts_without_torch(place: Path) -> None:
    file = write(place, "grid: {epochs: [1, 2]}")
    script = (
        "import sys; from vision_tutorial.commands import sweep; code = sweep.main(sys.argv[1:]); "
        "assert not {'torch', 'timm', 'numpy', 'wandb'} & sys.modules.keys(); "
        "from vision_tutorial.commands import reproduce, rerun; "
        "assert not {'torch', 'timm', 'wandb'} & sys.modules.keys(); sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", script, str(file), "--dry-run"], check=True)

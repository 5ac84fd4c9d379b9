"""The reproduce command: its runs, whatever happens to it; its plan, its table and what it says."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import counting
import pytest
from run_folders import make_run

from vision_tutorial import train
from vision_tutorial.commands import pack
from vision_tutorial.commands import reproduce as command
from vision_tutorial.core import processes
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.loading import load
from vision_tutorial.report import gallery_files
from vision_tutorial.runs import run_folder
from vision_tutorial.runs.reader import collect
from vision_tutorial.sweeps import children, scale_down, scheduler
from vision_tutorial.sweeps.scale_down import TABLE, Speed, count_images
from vision_tutorial.sweeps.scheduler import Scheduler
from vision_tutorial.sweeps.throughput import ThroughputProbe
from vision_tutorial.tables.columns import View
from vision_tutorial.tables.comparison import rows_of

ROOT = Path(__file__).parents[2]
REAL_START, REAL_PAGE = children.start, command.write_page
COUNTING = str(Path(__file__).parents[1] / "counting.py")
SMALL = ["--scale", "0"]  # the smallest that the rule knows
ONE = ["--jobs", "1"]  # at a time, on however many cores; --jobs behind it overrides


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs; children count and keep a diary; CIFAR-100 seems to be there."""
    monkeypatch.setenv("COUNTING_DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    (tmp_path / "data" / "cifar-100-python" / "train").touch()
    monkeypatch.setattr(scheduler, "TICK", 0.02)
    monkeypatch.setattr(counting, "EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(children, "start", counting.start)
    monkeypatch.setattr(command, "write_page", lambda *_: None)  # a process of its own
    return tmp_path


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def reproduce(place: Path, capfd: Any) -> Callable[..., Ended]:
    """The command on the table of Week 3, to its end, in this process."""

    def run(*words: str) -> Ended:
        capfd.readouterr()
        code = command.main(["week3", "--runs", str(place / "runs"), *ONE, *words])
        return Ended(code, *capfd.readouterr())

    return run


def beside(place: Path, *words: str, **more: Any) -> subprocess.Popen:
    """The command in a process of its own, which can be killed."""
    command = [sys.executable, COUNTING, "reproduce", "week3", "--runs", str(place / "runs"), *ONE]
    return subprocess.Popen([*command, *words], **{"stdout": subprocess.DEVNULL, **more})


def diary(place: Path) -> list[str]:
    """What the children did, in order."""
    path = place / "diary"
    return path.read_text().splitlines() if path.exists() else []


def states(place: Path, folder: str) -> dict[str, str]:
    """Each run of a table and its status."""
    found, _ = collect([place / "runs" / folder])
    return {f"{run.name}/{run.id}": run.status for run in found}


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    """Until it is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def fast(self: ThroughputProbe, network: str, batch_size: int, images: int) -> Speed:
    """A machine on which everything fits."""
    return Speed(start=0.01, rate=1e9, saving=0.0)


# -- running ---------------------------------------------------------------------------------------


def test_all_recipes_with_the_first_seed_then_with_the_next(place: Path, reproduce: Any) -> None:
    ended = reproduce(*SMALL, "--seeds", "2")
    assert ended.code == 0, ended.out + ended.err
    started = [line for line in ended.out.splitlines() if line.startswith("started")]
    order = [f"started    seed{n}  {name} seed {n}" for n in (42, 43) for name in TABLE]
    assert started == order
    assert set(states(place, "week3-0").values()) == {"done"}
    assert len(states(place, "week3-0")) == 12
    again = len(diary(place))
    second = reproduce(*SMALL, "--seeds", "2")
    assert second.code == 0 and len(diary(place)) == again, "all is done"
    third = reproduce(*SMALL, "--seeds", "3")
    assert third.code == 0 and len(states(place, "week3-0")) == 18, "one more seed of each"


def test_killed_twice_every_epoch_is_trained_once(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTING_SECONDS", "0.03")
    for enough in (1, 3):
        command_beside = beside(place, *SMALL)
        wait_for(lambda: sum(line[:4] == "done" for line in diary(place)) >= enough)  # noqa: B023
        wait_for(lambda: diary(place)[-1].endswith(" 3"))
        assert command_beside.poll() is None
        command_beside.kill()
        assert command_beside.wait() == -signal.SIGKILL
    ended = reproduce(*SMALL)
    assert ended.code == 0, ended.out + ended.err
    assert "at epoch" in ended.out
    told = Counter(line for line in diary(place) if line.startswith("epoch "))
    for name in TABLE:
        rows = run_folder.read_rows(place / "runs" / "week3-0" / name / "seed42" / "metrics.jsonl")
        epochs = load(place / "runs" / "week3-0" / f"{name}.yaml").recipe.epochs
        assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
        told.subtract(f"epoch seed42 {epoch}" for epoch in range(1, epochs + 1))
    assert not any(told.values()), "an epoch was lost or trained twice"


def test_a_signal_stops_it_saved_and_a_second_start_is_refused(place: Path, reproduce: Any) -> None:
    first = beside(place, *SMALL, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: any(line.startswith("epoch") for line in diary(place)))
    second = reproduce(*SMALL)
    assert second.code == 2 and "is in use by process" in second.err
    first.send_signal(signal.SIGINT)
    assert "the same command goes on from here" in first.communicate()[0]
    assert first.returncode == 143 and states(place, "week3-0") == {"r0/seed42": "preempted"}


def test_a_run_that_fails_does_not_stop_the_others(place: Path, reproduce: Any) -> None:
    """Those of other recipes; here all have the batch size that the pretended training refuses."""
    ended = reproduce("batch_size=13", "epochs=1")
    assert ended.code == 1
    assert ended.out.count("exit code 4: out of luck") == 6 and "log: " in ended.out
    assert "not done: r0 seed 42 (failed), r1 seed 42 (failed)" in ended.out


def test_stopped_while_it_measures_it_keeps_no_plan(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: ThroughputProbe, *given: Any) -> Speed:
        self.stop.receive(signal.SIGINT, None)
        raise UserError("the short training was stopped")

    monkeypatch.setattr(ThroughputProbe, "measure", stopped)
    ended = reproduce("--budget", "5min")
    assert ended.code == 143 and "the same command goes on from here" in ended.out
    assert not ended.err and not list(place.rglob("plan.json"))


def test_a_runs_folder_behind_a_link(place: Path, reproduce: Any) -> None:
    """The shrunk r0 extends the full one by a path that holds wherever the folder really lies."""
    (place / "far" / "away").mkdir(parents=True)
    (place / "runs").symlink_to(place / "far" / "away")
    ended = reproduce(*SMALL)
    assert ended.code == 0, ended.out + ended.err


def test_what_another_process_trains_is_waited_for(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def is_busy(run: Path) -> bool:
        return run.parent.name == "r5" and not any(line.startswith("waiting") for line in said)

    monkeypatch.setattr(scheduler, "is_busy", is_busy)
    monkeypatch.setattr(Scheduler, "_say", lambda self, line: said.append(line))
    assert reproduce(*SMALL).code == 0
    assert "waiting    other processes train r5 seed 42" in said


# -- the budget ------------------------------------------------------------------------------------


def test_at_the_end_of_the_budget_it_stops_with_what_is_there(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ASKED", 1.0)
    monkeypatch.setattr(scheduler, "KILLED", 0.3)
    monkeypatch.setattr(counting, "EPOCH_SECONDS", 0.02)  # 200 of them: 4 s
    monkeypatch.setattr(ThroughputProbe, "measure", fast)
    began = time.monotonic()
    ended = reproduce("--budget", "3s")
    assert time.monotonic() - began < 4 and ended.code == 1
    assert states(place, "week3-3s") == {"r0/seed42": "preempted"}
    assert "the time was up: not done: r0 seed 42 (stopped at epoch" in ended.out
    assert "r1 seed 42 (new)" in ended.out and "r0 < r1 < r2: not known without r0" in ended.out
    monkeypatch.setattr(
        ThroughputProbe, "measure", None
    )  # the plan is kept: nothing is measured again
    monkeypatch.setattr(counting, "EPOCH_SECONDS", 0.0)
    second = reproduce("--budget", "3s", "--dry-run")
    assert second.code == 0 and "r0: 210 epochs of 50,000 images" in second.out


def test_several_at_a_time_each_on_its_own_cores(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "EPOCH_SECONDS", 0.02)
    jobs = min(2, len(os.sched_getaffinity(0)))
    ended = reproduce(*SMALL, "--jobs", str(jobs))
    assert ended.code == 0, ended.out + ended.err
    found = states(place, "week3-0")
    assert set(found.values()) == {"done"} and len(found) == 6
    running, most, cores = 0, 0, len(os.sched_getaffinity(0)) // jobs
    for line in diary(place):
        running += line.startswith("start ") - line.startswith("done ")
        most = max(most, running)
        assert not line.startswith("start ") or line.endswith(f" cores={cores}")
    assert most == jobs and (f"{jobs} at a time" in ended.out or jobs == 1)


def test_by_default_one_a_core_if_it_is_scaled_down(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, int]] = []

    def slots(jobs: int | None, processes: int) -> list[children.DeviceSlot]:
        used.append((jobs, processes))
        return [children.DeviceSlot()] * jobs

    def used_by(*words: str) -> tuple[int, int]:
        code = command.main(["week3", "--dry-run", "--runs", str(place / "runs"), *words])
        assert code == 0
        return used[-1]

    monkeypatch.setattr(children, "device_slots", slots)
    monkeypatch.setattr(children, "usable_cores", lambda: list(range(40)))
    monkeypatch.setattr(children, "MEMORY", 1)
    small = [*SMALL, "--network", "thin"]
    assert used_by() == (1, 1), "in full"
    assert used_by(*small) == (6, 1) and used_by(*small, "--seeds", "3") == (18, 1)
    assert used_by(*small, "--nproc", "20") == (2, 20)
    assert used_by(*small, "--jobs", "3") == (3, 1) and used_by("--jobs", "3") == (3, 1)
    monkeypatch.setattr(children, "LARGE_MEMORY", 2**60)
    assert used_by(*SMALL) == (1, 1), "there is no memory for two of ResNet-50"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert used_by(*small) == (4, 1) and used_by() == (1, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert used_by() == (1, 2), "512 does not divide over three"


def test_a_training_that_does_not_listen_is_killed(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ASKED", 1.5)
    monkeypatch.setattr(scheduler, "KILLED", 1.0)
    monkeypatch.setattr(ThroughputProbe, "measure", fast)
    deaf = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
    ]
    start = partial(REAL_START, deaf)
    monkeypatch.setattr(children, "start", lambda command, *args: start(*args))
    began = time.monotonic()
    ended = reproduce("--budget", "3s")
    assert 1 < time.monotonic() - began < 10 and ended.code == 1


def test_too_small_a_budget_is_told(reproduce: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThroughputProbe, "measure", lambda *_: Speed(6.0, 1500.0, 0.1))
    ended = reproduce("--budget", "1min")
    assert ended.code == 2 and "--budget 1min: too little" in ended.err
    needed = re.search(r"which takes (\d+)m(\d+)s \(measuring, 6 s a start", ended.err)
    more = 60 * int(needed[1]) + int(needed[2]) + 5
    assert reproduce("--budget", f"{more}s", "--dry-run").code == 0, "so much is enough"
    assert reproduce("--budget", f"{more - 15}s", "--dry-run").code == 2, "and little less is not"


# -- the plan --------------------------------------------------------------------------------------


def test_dry_run_says_what_would_be_and_how_long_it_takes(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThroughputProbe, "measure", lambda *_: Speed(6.0, 1500.0, 0.1))
    ended = reproduce("--budget", "10min", "--network", "thin", "--dry-run")
    assert ended.code == 0 and not diary(place)
    head, *rows, total = [line for line in ended.out.splitlines() if "measuring" not in line]
    assert head.startswith("week3-10min-thin: network thin, batch ")
    assert "1,500 images a second" in head
    assert [row.partition(":")[0] for row in rows] == list(TABLE)
    assert all("(in full 210), about 1m" in row for row in rows[:4])
    minutes = int(total.removeprefix("in all about ").partition("m")[0])
    assert minutes in (7, 8) and total.endswith(" of 10min")


def test_in_full_the_recipes_are_taken_as_they_stand(place: Path, reproduce: Any) -> None:
    ended = reproduce("--dry-run")
    assert ended.code == 0 and not diary(place)
    assert "r4: 260 epochs, resnet50; the report: 61 min on two GPUs" in ended.out
    assert not list((place / "runs" / "week3").glob("*.yaml"))


def test_a_plan_is_kept_with_its_overrides(reproduce: Any) -> None:
    assert reproduce(*SMALL, "--dry-run", "precision=fp32").code == 0
    ended = reproduce(*SMALL, "precision=bf16")
    assert ended.code == 2 and "was begun with precision=fp32" in ended.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--scale", "0.1", "epochs=3"], "epochs=3: reproduce sets epochs itself"),
        (["--scale", "0.1", "optimizer.sgd.lr=3"], "reproduce sets optimizer itself"),
        (["seed=3"], "reproduce sets seed itself"),
        (["precison=fp32"], "did you mean 'precision'?"),
        (["--scale", "0.1", "dataset={image_folder: {root: x}}"], "nobody knows how many images"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], told: str, reproduce: Any) -> None:
    ended = reproduce(*words, "--dry-run")
    assert ended.code == 2 and told in ended.err and ended.err.count("\n") == 1


def test_a_packed_folder_says_how_many_it_has(tmp_path: Path) -> None:
    assert pack.main(["arrays", "recipes/debug.yaml", str(tmp_path / "set")]) == 0
    words = [f"dataset={{arrays: {{root: '{tmp_path}/set'}}}}"]
    assert count_images(load("recipes/debug.yaml", words).recipe) == (320, 100)
    assert count_images(load("recipes/debug.yaml", [*words, "holdout=0.1"]).recipe) == (288, 32)
    assert count_images(load("recipes/debug.yaml", [*words, "subset=50"]).recipe) == (50, 100)


@pytest.mark.parametrize("text", ("20", "0min", "ten", "-5min", "1d"))
def test_a_time_has_a_unit(text: str, capfd: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(["week3", f"--budget={text}"])
    assert refused.value.code == 2 and "write a time such as 90s, 20min" in capfd.readouterr().err


def test_without_cifar_a_shrunk_table_is_of_shapes_and_says_so(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(place / "nowhere"))
    ended = reproduce("--scale", "0.01", "--dry-run")
    assert ended.code == 0 and "no CIFAR-100 in " in ended.out
    recipe = load(place / "runs" / "week3-0.01-shapes" / "r5.yaml").recipe
    assert recipe.dataset.name == "shapes"
    other = reproduce("--scale", "0.01", "--dry-run", "dataset.cifar100.download=true")
    assert other.code == 0 and "no CIFAR-100" not in other.out


def test_one_process_a_gpu(place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(command: list[str], slot: children.DeviceSlot, *args: Any) -> Any:
        started.append(command)
        assert slot.gpus == ("0", "1", "2", "3")
        return REAL_START([sys.executable, "-c", ""], slot, *args)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(children, "start", start)
    assert reproduce().code == 1, "nothing was trained"
    assert len(started) == 6
    assert started[0][1].endswith("torchrun_nproc.py") and started[0][2:6] == [
        "--nproc", "4", "-m", "vision_tutorial.train",
    ]  # fmt: skip
    assert started[4][6].endswith("recipes/r4.yaml")


# -- what came of it -------------------------------------------------------------------------------


def test_a_real_table_of_shapes(place: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to the page; the trainings are real, in forked processes."""
    import vision_tutorial.build  # noqa: F401  (before the forks)
    import vision_tutorial.engine  # noqa: F401

    monkeypatch.setattr(command, "write_page", REAL_PAGE)
    monkeypatch.setattr(children, "start", partial(counting.start, command_main=train.main))
    monkeypatch.setattr(scale_down, "SMALLEST_BATCH", 4)
    monkeypatch.setattr(scale_down, "FEWEST", 4)
    words = ["--scale", "0", "--network", "thin", "--runs", str(place)]
    more = [
        "precision=fp32",
        "dataset={shapes: {train: 40, test: 20, size: 32}}",
        "threads=1",
        "data.path=timm",
        "workers=0",
    ]
    assert command.main(["week3", *words, *more]) == 0
    out = capfd.readouterr().out
    folder = place / "week3-0-thin"
    assert "what changed" in out and "r0 < r1 < r2" in out
    assert (folder / "week3.md").read_text().startswith("| run | r0 | r1 | r2 | r3 | r4 | r5 |")
    assert (folder / "report.html").stat().st_size > 10_000
    assert "report.html: 6 runs" in out
    assert all(gallery_files.exists(folder / name / "seed42") for name in TABLE)


def view_of(tmp_path: Path, **values: list[float]) -> View:
    """r0, r1, r2 with the best of each seed."""
    for name, bests in values.items():
        for seed, best in enumerate(bests):
            make_run(tmp_path, name, f"seed={seed}", id=str(seed), values=[best])
    return View(rows_of(collect([tmp_path])[0]))


def test_the_order_is_told_with_what_is_noise(tmp_path: Path) -> None:
    out = command._order(view_of(tmp_path / "a", r0=[10, 11, 12], r1=[20, 21, 22], r2=[21, 22, 23]))
    assert out == (
        "r0 < r1 < r2 came out: 11.00, 21.00, 22.00 (+10.00 beyond noise, +1.00 within noise)"
    )
    out = command._order(view_of(tmp_path / "b", r0=[10], r1=[9], r2=[12]))
    assert out == (
        "r0 < r1 < r2 did not come out: 10.00, 9.00, 12.00 "
        "(-1.00, +3.00; only more --seeds tell that from noise)"
    )
    out = command._order(view_of(tmp_path / "c", r0=[10], r2=[12]))
    assert out == "r0 < r1 < r2: not known without r1"


@pytest.mark.parametrize(
    ("left", "ended", "commands", "told"),
    [
        (15.0, (0, None), 1, ""),
        (60.0, (0, None), 3, ""),
        (60.0, (1, None), 3, "not all galleries are on the page: by gallery"),
        (60.0, (-15, 50.0), 3, "not all galleries are on the page: the time was up"),
    ],
)
def test_galleries_are_for_the_time_that_is_left(
    left: float,
    ended: tuple,
    commands: int,
    told: str,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    called = []

    def run_command(command: list[str], log: Path, enough: Any, then_stop: bool) -> Any:
        called.append(command[3])
        assert then_stop and not enough()
        log.write_text(f"by {command[3]}")
        code, seen = ended if command[3] == "gallery" else (0, None)
        return processes.Ended(code, 1.0, seen)

    monkeypatch.setattr(processes, "run_command", run_command)
    make_run(tmp_path, "recipes/debug.yaml", id="1")
    deadline, stop = SimpleNamespace(left=lambda: left), SimpleNamespace(asked=False)
    (tmp_path / ".reproduce").mkdir()
    args = command.parser().parse_args(["week3"])
    own = tmp_path / ".reproduce"
    command.write_page(args, own, collect([tmp_path])[0], deadline, stop)
    assert called == ["report", "gallery", "report"][:commands]
    out = capsys.readouterr().out
    assert out.endswith("by report\n") and told in out

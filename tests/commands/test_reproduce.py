"""The reproduce command: its runs, whatever happens to it; its plan, its table and what it says."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import counting
import pytest
from counting import Ended, beside, diary, ended, wait_for
from run_folders import edit, make_run

from vision_tutorial import __main__
from vision_tutorial.commands import pack
from vision_tutorial.commands import reproduce as command
from vision_tutorial.core import processes
from vision_tutorial.recipe.loading import load
from vision_tutorial.report import gallery_files
from vision_tutorial.runs.reader import collect
from vision_tutorial.sweeps import children, scale_down, scheduler
from vision_tutorial.sweeps.children import Stop
from vision_tutorial.sweeps.scale_down import TABLE, Speed, count_images
from vision_tutorial.sweeps.scheduler import Scheduler
from vision_tutorial.tables.comparison import rows_of
from vision_tutorial.tables.layouts import View

REAL_START, REAL_PAGE = children.start, command.write_page
SMALL = ["--scale", "0"]  # the smallest that the rule knows
ONE = ["--jobs", "1"]  # at a time, on however many cores; --jobs behind it overrides


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs; children count and keep a diary; CIFAR-100 seems to be there."""
    monkeypatch.setenv("COUNTING_DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    (tmp_path / "data" / "cifar-100-python" / "train").touch()
    monkeypatch.setattr(scheduler, "TICK", 0.02)
    monkeypatch.setattr(counting, "EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(children, "start", counting.start)
    monkeypatch.setattr(command, "write_page", lambda *_: None)  # a process of its own
    return tmp_path


@pytest.fixture
def reproduce(place: Path, capfd: Any) -> Callable[..., Ended]:
    """The command on the table of Week 3, to its end, in this process."""
    runs = ("--runs", place / "runs")
    return lambda *words: ended(capfd, command.main, "week3", *runs, *ONE, *words)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], None]:
    """Sets what a short training takes here."""
    return lambda speed: monkeypatch.setattr(scale_down, "measure", lambda *_, **__: speed)


FAST, SLOW = Speed(start=0.01, rate=1e9), Speed(start=6.0, rate=1500.0)


def states(place: Path, folder: str) -> dict[str, str]:
    """Each run of a table and its status."""
    found, _ = collect([place / "runs" / folder])
    return {f"{run.name}/{run.id}": run.status for run in found}


def test_all_recipes_with_the_first_seed_then_with_the_next(place: Path, reproduce: Any) -> None:
    """In a folder behind a link: the scaled r0 extends the full one wherever it really lies."""
    (place / "far" / "away").mkdir(parents=True)
    (place / "runs").symlink_to(place / "far" / "away")
    found = reproduce(*SMALL, "--seeds", "2")
    assert found.code == 0, found.out + found.err
    started = [line for line in found.out.splitlines() if line.startswith("started")]
    assert started == [f"started    seed{n}  {name} seed {n}" for n in (42, 43) for name in TABLE]
    again = reproduce(*SMALL, "--seeds", "2")
    assert again.code == 0 and "started " not in again.out, "all is done"
    runs, _ = collect([place / "runs" / "week3-0"])
    every = sorted((seed, "done") for seed in (42, 43) for _ in TABLE)
    assert sorted((run.recipe["seed"], run.status) for run in runs) == every
    found = reproduce(*SMALL, "precision=bf16")
    assert found.code == 2 and "was begun with no overrides" in found.err


def test_stopped_by_a_signal_it_goes_on_and_trains_every_epoch_once(
    place: Path, reproduce: Any
) -> None:
    words = ("reproduce", "week3", "--runs", place / "runs", *ONE, *SMALL)
    first = beside(*words, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: any(line.startswith("epoch") for line in diary()))
    second = reproduce(*SMALL)
    assert second.code == 2 and "is in use by process" in second.err
    first.send_signal(signal.SIGINT)
    assert "the same command goes on from here" in first.communicate()[0]
    assert first.returncode == 143 and states(place, "week3-0") == {"r0/seed42": "preempted"}
    found = reproduce(*SMALL)
    assert found.code == 0 and "at epoch" in found.out, found.out + found.err
    trained = Counter(line for line in diary() if line.startswith("epoch "))
    for name in TABLE:
        epochs = load(place / "runs" / "week3-0" / f"{name}.yaml").recipe.epochs
        trained.subtract(f"epoch seed42 {epoch}" for epoch in range(1, epochs + 1))
    assert not any(trained.values()), "an epoch was lost or trained twice"


def test_at_the_end_of_the_budget_it_stops_with_what_is_there(
    place: Path, reproduce: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ASKED", 1.0)
    monkeypatch.setattr(scheduler, "KILLED", 0.7)
    monkeypatch.setattr(counting, "EPOCH_SECONDS", 0.02)  # 200 of them: 4 s
    machine(FAST)
    began = time.monotonic()
    found = reproduce("--budget", "3s")
    assert time.monotonic() - began < 4 and found.code == 1
    assert states(place, "week3-3s") == {"r0/seed42": "preempted"}
    assert "the time was up: not done: r0 seed 42 (stopped at epoch" in found.out
    assert "r1 seed 42 (new)" in found.out and "r0 < r1 < r2: not known without r0" in found.out
    kept = place / "runs" / "week3-3s" / ".reproduce" / "plan.json"
    edit(kept, speed=[0.01, 1e9, 0.0])  # as an older version wrote it
    machine(SLOW)  # the plan is kept
    second = reproduce("--budget", "3s", "--dry-run")
    assert second.code == 0 and "r0: 210 epochs of 50,000 images" in second.out


def test_a_training_that_does_not_listen_is_killed(
    place: Path, reproduce: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ASKED", 1.5)
    monkeypatch.setattr(scheduler, "KILLED", 0.5)
    machine(FAST)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    start = partial(REAL_START, [sys.executable, "-c", deaf])
    monkeypatch.setattr(children, "start", lambda command, *args: start(*args))
    began = time.monotonic()
    found = reproduce("--budget", "3s")
    assert 1 < time.monotonic() - began < 10 and found.code == 1


def test_what_is_trained_at_a_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_by(words: str) -> tuple[int, int]:
        args = command.parser().parse_intermixed_args(f"week3 --runs {place} {words}".split())
        job = command._job(args)
        return len(job.slots), job.processes

    monkeypatch.setattr(processes, "usable_cores", lambda: list(range(40)))
    monkeypatch.setattr(command, "MEMORY", 1)
    monkeypatch.setattr(command, "LARGE_MEMORY", 2**60)
    assert used_by("") == (1, 1) and used_by("--jobs 3") == (3, 1), "in full"
    small = "--scale 0 --network thin"
    assert used_by(small) == (6, 1) and used_by(f"{small} --seeds 3") == (18, 1)
    assert used_by(f"{small} --nproc 20") == (2, 20) and used_by(f"{small} --jobs 3") == (3, 1)
    assert used_by("--scale 0") == (1, 1), "there is no memory for two of ResNet-50"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert used_by(small) == (4, 1) and used_by("") == (1, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert used_by("") == (1, 2), "512 does not divide over three"


def test_too_small_a_budget_is_told(reproduce: Any, machine: Any) -> None:
    machine(SLOW)
    found = reproduce("--budget", "1min")
    assert found.code == 2 and "--budget 1min: too little" in found.err
    needed = re.search(r"which takes (\d+)m(\d+)s \(measuring, 6 s a start", found.err)
    more = 60 * int(needed[1]) + int(needed[2]) + 5
    work = scale_down.Workload([200] * 4 + [250] * 2)
    assert more == pytest.approx(work.total(work.plan(0, "thin"), SLOW) / 0.9 + 20 + 5, abs=2)
    assert reproduce("--budget", f"{more}s", "--dry-run").code == 0, "so much is enough"
    assert reproduce("--budget", f"{more - 15}s", "--dry-run").code == 2, "and little less is not"


def test_dry_run_says_what_would_be_and_how_long_it_takes(
    place: Path, reproduce: Any, machine: Any
) -> None:
    machine(SLOW)
    found = reproduce("--budget", "10min", "--network", "thin", "--dry-run")
    assert found.code == 0 and not diary()
    head, *rows, total = [line for line in found.out.splitlines() if "measuring" not in line]
    assert head.startswith("week3-10min-thin: network thin, batch ")
    assert "1,500 images a second" in head
    assert [row.partition(":")[0] for row in rows] == list(TABLE)
    assert all("(in full 210), about 1m" in row for row in rows[:4])
    minutes = int(total.removeprefix("in all about ").partition("m")[0])
    assert minutes in (7, 8) and total.endswith(" of 10min")
    found = reproduce("--dry-run")
    assert found.code == 0 and "r4: 260 epochs, resnet50; the report: 61 min" in found.out
    assert not list((place / "runs" / "week3").glob("*.yaml")), "in full, as they stand"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--scale", "0.1", "optimizer.sgd.lr=3"], "reproduce sets optimizer itself"),
        (["seed=3"], "reproduce sets seed itself"),
        (["--scale", "0.1", "dataset={image_folder: {root: x}}"], "not known how many images"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], told: str, reproduce: Any) -> None:
    found = reproduce(*words, "--dry-run")
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1


def test_a_packed_folder_says_how_many_it_has(tmp_path: Path) -> None:
    assert pack.main(["arrays", "recipes/debug.yaml", str(tmp_path / "set")]) == 0
    words = [f"dataset={{arrays: {{root: '{tmp_path}/set'}}}}"]
    given = {"seed=1": (320, 100), "holdout=0.1": (288, 32), "subset=50": (50, 100)}
    for word, expected in given.items():
        assert count_images(load("recipes/debug.yaml", [*words, word]).recipe) == expected


def test_without_cifar_a_scaled_table_is_of_shapes_and_says_so(
    place: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(place / "nowhere"))
    found = reproduce("--scale", "0.01", "--dry-run")
    assert found.code == 0 and "no CIFAR-100 in " in found.out
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
    found = reproduce()
    assert found.code == 1 and found.out.count("ended with code 0") == 6
    assert "not done: r0 seed 42 (failed), r1 seed 42 (failed)" in found.out
    assert len(started) == 6 and Path(started[0][1]).name == "torchrun_nproc.py"
    assert started[0][2:6] == ["--nproc", "4", "-m", "vision_tutorial.train"]
    assert Path(started[0][1]).is_file() and started[4][6].endswith("recipes/r4.yaml")


def test_a_real_table_of_shapes(place: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to the page; the trainings are real, in forked processes."""

    def run_here(words: list[str], log: Path, *_: Any, **__: Any) -> processes.Ended:
        with log.open("w") as out, redirect_stdout(out):
            return processes.Ended(__main__.main(words[3:]), 1.0, None)

    monkeypatch.setattr(processes, "run_command", run_here)
    monkeypatch.setattr(command, "write_page", REAL_PAGE)
    monkeypatch.setattr(children, "start", counting.real_start())
    monkeypatch.setattr(scale_down, "SMALLEST_BATCH", 20)
    monkeypatch.setattr(scale_down, "FEWEST", 4)
    for module in (scale_down, command):
        monkeypatch.setattr(module, "TABLE", TABLE[:3])
    words = ["--scale", "0", "--network", "thin", "--runs", str(place), "precision=fp32"]
    more = ["dataset={shapes: {train: 20, test: 10, size: 32}}", "threads=1"]
    more += ["data.path=timm", "workers=0"]  # nothing is compiled
    assert command.main(["week3", *words, *more]) == 0
    out = capfd.readouterr().out
    folder = place / "week3-0-thin"
    assert "what changed" in out and "r0 < r1 < r2" in out
    assert (folder / "week3.md").read_text().startswith("| run | r0 | r1 | r2 |\n")
    assert (folder / "report.html").stat().st_size > 10_000
    assert "report.html: 3 runs" in out
    assert all(gallery_files.exists(folder / name / "seed42") for name in TABLE[:3])


def test_the_order_is_told_with_what_is_noise(tmp_path: Path) -> None:
    def told(first: float, *seeds: int) -> str:
        root = tmp_path / f"{first}-{len(seeds)}"
        for name, value in {"r0": first, "r1": 20, "r2": 21}.items():
            for seed in seeds:
                words = {"id": str(seed), "values": [value + seed]}
                make_run(root, name, f"seed={seed + 1}", **words)
        return command._order(View(rows_of(collect([root])[0])))

    up, down = "+10.00 beyond noise, +1.00 within noise", "-10.00 beyond noise, +1.00 within noise"
    assert told(10, -1, 0, 1) == f"r0 < r1 < r2 came out: 10.00, 20.00, 21.00 ({up})"
    assert told(30, -1, 0, 1) == f"r0 < r1 < r2 did not come out: 30.00, 20.00, 21.00 ({down})"
    assert told(10, 0).endswith("(+10.00 without --seeds, +1.00 without --seeds)")


@pytest.mark.parametrize(
    ("left", "gallery", "told"),
    [
        (15.0, None, ""),
        (60.0, (1, None), "are on the page: by gallery"),
        (60.0, (-15, 50.0), "are on the page: the time was up"),
    ],
)
def test_galleries_are_for_the_time_that_is_left(
    left: float, gallery: Any, told: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    called = []

    def run_command(command: list[str], log: Path, *more: Any, **kinds: Any) -> Any:
        called.append(command[3])
        log.write_text(f"by {command[3]}")
        code, seen = gallery if command[3] == "gallery" else (0, None)
        return processes.Ended(code, 1.0, seen)

    monkeypatch.setattr(processes, "run_command", run_command)
    make_run(tmp_path, "debug", id="1")
    args = command.parser().parse_args(["week3"])
    job = SimpleNamespace(args=args, folder=tmp_path, own=tmp_path)
    runner = Scheduler([], 1, Stop(), time.monotonic() + left)
    command.write_page(job, collect([tmp_path])[0], runner)
    assert called == [*["gallery"] * bool(gallery), "report"]
    out = capsys.readouterr().out
    assert out.endswith("by report\n") and told in out

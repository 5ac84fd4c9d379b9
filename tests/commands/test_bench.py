"""The bench: what it counts, what it says, what it refuses. No test asserts a speed."""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forked import Ranks

from vision_tutorial import train
from vision_tutorial.benchmarking import measurements
from vision_tutorial.benchmarking.timed_pairs import pair
from vision_tutorial.commands import bench
from vision_tutorial.core.processes import Ended, usable_cores
from vision_tutorial.engine import distributed

DEBUG = str(Path(__file__).parents[2] / "recipes" / "debug.yaml")
QUICK = ["--rounds", "1", "--seconds", "0.02"]
CROPPED = "augment=[{random_resized_crop: {size: 16}}, hflip, {random_erasing: {p: 0.25}}]"
# stands for timm's train.py: a log of four steps, each 0.1 s and the first 1 s, then nothing more
SCRIPT = """
import sys, time
batch = int(sys.argv[sys.argv.index("-b") + 1])
if batch == 31:
    sys.exit("no such model")
for step in range(4):
    mean = (1 + 0.1 * step) / (step + 1)
    print(f"Train: 0 [{step:>4d}/10 ( 1%)]  Loss: 6.9 (6.9)  Time: 0.1s, {batch / 0.1:>7.2f}/s  "
          f"({mean:.3f}s, {batch / mean:>7.2f}/s)  LR: 1e-1  Data: 0.0 (0.0)", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """Everything on one core and one thread, and no accelerator of another test.

    A bench forks what it measures from a process that never computed; here other tests did, and
    their OpenMP threads, which do not live in a fork, would be waited for without end.
    """
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        patch.setattr(measurements, "usable_cores", lambda: usable_cores()[:1])
        patch.setattr(distributed, "usable_cores", lambda: usable_cores()[:1])
        yield


def forked(command, log, sign=lambda: False, then_stop=False):
    """In place of `run_command`: the same program, forked, so that nothing is imported again."""
    words, world = command[1:], 1
    if words[1] == "--nproc":
        words, world = words[3:], int(words[2])
    if words[:2] != ["-m", "vision_tutorial.train"]:
        return Ended(0, 1.0, None)
    began, seen = time.perf_counter(), None
    ranks = Ranks(world, lambda rank: train.main(words[2:]), quiet=True)
    while any(process.is_alive() for process in ranks.processes):
        if seen is None and sign():
            seen = time.perf_counter() - began
        time.sleep(0.001)
    return Ended(max(ranks.join()), time.perf_counter() - began, seen)


def run(*words) -> str:
    """What `bench` prints; it must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert bench.main([str(word) for word in words]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    """A whole bench of the debug recipe."""
    script = tmp_path_factory.mktemp("timm") / "train.py"
    script.write_text(SCRIPT)
    ours = measurements.run_command

    def started(command, *rest, **more):
        return (ours if str(script) in command else forked)(command, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "run_command", started)
        return json.loads(run(DEBUG, CROPPED, "--timm-train", script, "--json", *QUICK))


def test_every_measurement_is_there_and_every_number_follows_from_it(told):
    pairs = {pair["name"]: pair for pair in told["pairs"]}
    expected = {"step", "evaluation", "step, plain model", "to the first step"}
    expected |= {"a mistake's answer", "main memory", "scaling", "data, 1 core"}
    assert pairs.keys() - {"GPU memory"} == expected
    beside = {pair["other"]["what"] for pair in told["pairs"]}
    assert {"timm's loader", "timm's, prefetcher", "image by image", "bare loop"} <= beside
    for name, made in pairs.items():
        ours, other, ratio = made["ours"], made["other"], made["ratio"]
        assert ratio["n"] == ours["n"] == other["n"] == len(ratio["values"]) == 1
        assert ratio["values"] == [ours["values"][0] / other["values"][0]] and ratio["median"] > 0
        for side in (ours, other) if made["unit"] == "images/s" else ():
            assert side["values"] == [side["images"][0] / side["seconds"][0]]
            assert name == "evaluation" or side["images"][0] % 32 == 0
        assert name not in ("evaluation", "scaling") or ours["images"] == other["images"]
    assert pairs["main memory"]["about"]["data_bytes"] >= 420 * 16 * 16 * 3
    assert told["versions"]["torch"] and told["machine"]["cpu"]["model"] and told["created"]
    assert (told["rounds"], told["seconds"], told["overrides"]) == (1, 0.02, [CROPPED])
    assert told["facts"]["train_images"] == 320 and told["facts"]["val_images"] == 100
    shares = told["epoch"]["shares"]
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
    assert told["limits"].startswith(
        f"debug is limited by {bench.WORDS[max(shares, key=shares.get)]}"
    )


def test_timms_train_is_told_what_the_recipe_says(told):
    (made,) = (pair for pair in told["pairs"] if pair["name"] == "step, plain model")
    words = " ".join(made["about"]["command"])
    for part in (
        "--model test_resnet --num-classes 10",
        "-b 32 --grad-accum-steps 1",
        "--opt sgd --sched cosine",
        "--clip-mode norm --clip-grad 5.0",
        "--input-size 3 16 16 --hflip 0.5 --color-jitter 0.0",
        "--reprob 0.25",
        "--mixup 1.0 --cutmix 1.0 --mixup-prob 1.0 --mixup-switch-prob 0.5",
        "--lr 0.05 --momentum 0.9",
    ):
        assert part in words
    assert made["other"]["images"] == [96]  # three steps of four: the first warms up
    assert made["other"]["seconds"] == pytest.approx([0.3], rel=1e-3)


def test_start_is_what_is_left_of_the_time_to_the_first_checkpoint(tmp_path, monkeypatch):
    args = bench.parser().parse_args([DEBUG, "--rounds", "2", "--seconds", "0.1"])
    job = measurements.Bench(args, tmp_path)

    def acted(command, log, sign):
        if "--steps" not in command:
            return Ended(2, 0.25, None) if "loss=focl" in command else Ended(0, 4.0, None)
        saved = tmp_path / "debug" / command[command.index("--id") + 1] / "ckpt" / "step-1"
        assert not sign()
        saved.mkdir(parents=True)
        assert sign()
        state = {"progress": {"seconds": 3.0, "seconds_data": 0.5}}
        (saved / "state.json").write_text(json.dumps(state))
        return Ended(0, 20.0, 12.0)

    monkeypatch.setattr(measurements, "run_command", acted)
    monkeypatch.setattr(measurements, "in_child", lambda function, job: 1.5)  # reading the data
    (start, mistake), _ = measurements.measure_startup(job)
    assert start["ours"]["values"] == [12 - 2.5 - 1.5] * 2 and start["ratio"]["values"] == [2, 2]
    assert start["about"] == {"data_seconds": 1.5, "first_step_seconds": 2.5}
    assert mistake["ratio"]["values"] == [0.0625] * 2


def test_an_earlier_bench_is_shown_again(told, tmp_path):
    path = tmp_path / "debug.json"
    path.write_text("[1]")
    assert bench.main([str(path)]) == 2
    # a key of earlier versions
    facts = {"train_pictures": 320, "no_timm_loader": "random_crop"}
    path.write_text(json.dumps({**told, "facts": facts}))
    assert json.loads(run(path, "--json"))["facts"] == facts
    text = run(path)
    assert all(pair["name"] in text and pair["other"]["what"] in text for pair in told["pairs"])
    assert "is limited by" in text and "it has no option for random_crop" in text
    table = [line for line in run(path, "--markdown").splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(told["pairs"]) and {line.count("|") for line in table} == {7}


def test_the_sentence_follows_from_the_numbers():
    facts = {"train_images": 1000, "val_images": 200, "data_share_of_step": 0.05}
    facts |= {"epoch_end_seconds": 0.5}
    rates = [("step", 100.0, 125.0), ("evaluation", 400.0, 500.0)]
    pairs = [pair(name, "images/s", ("", [a]), ("", [b])) for name, a, b in rates]
    said = bench.verdict("r4", pairs, facts)
    assert said["epoch"]["parts"] == pytest.approx(
        {"data": 0.5, "step": 8.0, "loop": 1.5, "evaluation": 0.5, "tracking": 0.5}
    )
    assert said["limits"] == (
        "r4 is limited by the step itself. Of an epoch of 11.0 s: data 4.5%, the step itself "
        "72.7%, the loop's own work 13.6%, evaluation 4.5%, checkpoint and logging 4.5%."
    )
    assert bench.verdict("r4", pairs[:1], facts) == {"epoch": None, "limits": None}


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(Path(DEBUG).read_text("utf-8") + "imports: [mine.py]\n")
    (tmp_path / "mine.py").write_text("raise SystemExit\n")
    for words, part in (
        (["nowhere.json"], "cannot read nowhere.json"),
        ([DEBUG, "--only", "data,sept"], "no measurement called 'sept'"),
        ([DEBUG, "--only", "timm"], "--timm-train PATH"),
        ([DEBUG, "batch_size=9999", "--only", "step"], "lower batch_size or raise subset"),
        ([str(recipe), "--only", "data"], "--trust-imports"),
    ):
        assert bench.main([*words, *QUICK]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (error,) = (line for line in captured.err.splitlines() if not line.startswith("bench: "))
        assert error.startswith("error: ") and part in error


def test_a_train_py_that_fails_says_why(tmp_path, capsys):
    (tmp_path / "train.py").write_text(SCRIPT)
    words = [DEBUG, CROPPED, "mix=null", "batch_size=31", "--only", "timm", *QUICK]
    assert bench.main([*words, "--timm-train", str(tmp_path / "train.py")]) == 2
    assert "timm's train.py ended with code 1: no such model" in capsys.readouterr().err


def test_a_mistake_is_answered_before_torch_is_there():
    program = (
        "import sys; from vision_tutorial.commands import bench; "
        "code = bench.main([sys.argv[1], 'x=1']); "
        "print(code, sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, DEBUG], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "2 []", done.stderr

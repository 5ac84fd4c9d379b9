"""The train command: what it prints, what it leaves, how it ends."""

import contextlib
import errno
import json
import logging
import multiprocessing.connection
import multiprocessing.reduction
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Ranks, run_ranks
from wandb_file import history, read

from vision_tutorial import build, engine  # noqa: F401  (imported before the fork)
from vision_tutorial import train as command
from vision_tutorial.commands import evaluate as evaluating
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.stopping import Stopped
from vision_tutorial.data import loader
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import records, run_folder

SMALL = [
    "dataset={shapes: {train: 64, test: 30, size: 16}}",
    "batch_size=16",
    "epochs=2",
    "threads=1",
]


def train(capfd: Any, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `train`, in a process of its own."""
    ranks = Ranks(1, lambda rank: command.main([str(word) for word in words]))
    (code,) = ranks.join()
    out, err = capfd.readouterr()
    return code, out, err


def one_line(err: str) -> str:
    """The single line that a person sees of an error."""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")

    def trained(rank: int) -> int:
        with open(folder / "out", "w") as out, contextlib.redirect_stdout(out):
            return command.main(["recipes/debug.yaml", *SMALL, "--runs", str(folder)])

    assert Ranks(1, trained).join(timeout=300) == [0]  # the first on a machine compiles
    return next(folder.glob("debug/*")), (folder / "out").read_text()


@pytest.fixture
def copy(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "debug" / "copy"))


def test_the_run_folder_is_complete(finished: tuple[Path, str]) -> None:
    run, out = finished
    assert out.splitlines()[-1] == f"run: {run}"
    assert "done after 2 epochs: val/top1" in out
    rows = run_folder.read_rows(run / "metrics.jsonl")
    keys = "epoch step lr train/loss val/loss val/top1 val/top5 images_per_second seconds"
    assert [row["epoch"] for row in rows] == [1, 2] and rows[-1]["step"] == 8
    assert all(set(keys.split()) | set(run_folder.TIMED) <= set(row) for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    tops = [row["val/top1"] for row in rows]
    assert summary["status"] == "done" and summary["metric"] == "val/top1"
    assert summary["best"] == {"epoch": tops.index(max(tops)) + 1, "value": max(tops)}
    assert summary["last"] == {"epoch": 2, "value": tops[-1]}
    assert summary["epochs"] == 2 and summary["expects"] == {}  # overridden
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    facts = json.loads((run / "fingerprint.json").read_text())
    assert facts["versions"]["torch"] and facts["data"] and facts["recipe"]["file"] == "debug.yaml"
    classes = json.loads((run / "classes.json").read_text())
    assert sum(classes["images"]) == 30


def test_more_epochs_continue_it_and_nothing_is_left_to_do_at_its_end(copy: Path, capfd: Any):
    words = ["recipes/debug.yaml", *SMALL, "epochs=3", "--resume", "--runs", copy.parents[1]]
    code, out, _ = train(capfd, *words)
    assert code == 0 and "continuing at step 8 of 12" in out
    assert out.splitlines()[-1] == f"run: {copy}"
    before = (copy / "metrics.jsonl").read_bytes()
    assert [row["epoch"] for row in run_folder.read_rows(copy / "metrics.jsonl")] == [1, 2, 3]
    code, out, err = train(capfd, copy)
    assert code == 0 and out.splitlines()[-1] == f"run: {copy}", err
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_evaluate_repeats_the_best_epochs_numbers(finished: tuple[Path, str], capfd: Any) -> None:
    run, _ = finished
    best = json.loads((run / "summary.json").read_text())["best"]
    row = run_folder.read_rows(run / "metrics.jsonl")[best["epoch"] - 1]
    for world in (1, 2):
        assert run_ranks(world, lambda rank: evaluating.main([str(run), "--json"])) == [0] * world
        (result,) = json.loads(capfd.readouterr().out)["runs"]
        assert result["metrics"] == {k[4:]: v for k, v in row.items() if k.startswith("val/")}


def test_a_taken_name_is_one_line_on_every_rank(finished: tuple[Path, str], capfd: Any) -> None:
    run = finished[0]
    words = ["recipes/debug.yaml", *SMALL, "--runs", str(run.parent.parent), "--id", run.name]
    codes = Ranks(2, lambda rank: command.main(words)).join()
    err = capfd.readouterr().err
    assert codes[0] == 2 and codes[1] != 0 and "is a run" in err
    assert "Traceback" not in err


def test_limits_are_above_zero(capfd: Any) -> None:
    for words in (["--minutes", "0"], ["--steps", "-1"]):
        with pytest.raises(SystemExit) as caught:
            command.main(["recipes/debug.yaml", *words])
        assert caught.value.code == 2 and "above 0 is expected" in capfd.readouterr().err


def test_evaluate_several_seeds_gives_mean_and_spread(finished, copy, tmp_path, capfd):
    run, other, empty = str(finished[0]), copy, tmp_path / "empty"
    empty.mkdir()
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("seed: 42", "seed: 43"))
    words = [run, run, str(other), str(empty), "--json", "--tta", "hflip", "--weights", "last"]
    assert run_ranks(1, lambda rank: evaluating.main(words)) == [0]
    out, err = capfd.readouterr()
    shown = json.loads(out)
    assert f"left out {empty}" in err
    assert len(shown["runs"]) == 2, "the same folder twice is one run"
    assert shown["over_runs"]["top1"]["n"] == 2 and shown["over_runs"]["top1"]["stdev"] == 0
    assert shown["over_runs"]["top1"]["mean"] == shown["runs"][0]["metrics"]["top1"]
    (other / "recipe.yaml").write_text(text.replace("lr: 0.05", "lr: 0.06"))
    words = [run, str(other), "--classes"]
    assert run_ranks(1, lambda rank: evaluating.main(words)) == [0]
    out = capfd.readouterr().out
    assert "over 2 runs" not in out, "not seeds of one recipe"
    assert "square" in out
    assert run_ranks(1, lambda rank: evaluating.main([str(empty)])) == [2]


def test_a_typo_is_answered_before_torch_is_imported() -> None:
    wrong = {
        "recipes/r9.yaml": "did you mean",
        "recipes/r4.yaml epoch=3": "no key called 'epoch'; did you mean 'epochs'?",
        "recipes/r4.yaml loss=focl": "no loss called 'focl'; did you mean 'focal'?",
        "recipes/r4.yaml model=resnet5O": "no model called 'resnet5O'; did you mean",
        "recipes/r4.yaml optimizer.sgd.lr=fast": 'given "fast"; expected: a valid number',
        "nowhere": "no such recipe",
    }
    script = (
        "import sys; from vision_tutorial import train; "
        "codes = {train.main(words.split()) for words in sys.argv[1:]}; "
        "assert 'torch' not in sys.modules; sys.exit(codes.pop())"
    )
    done = subprocess.run([sys.executable, "-c", script, *wrong], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    for line, said in zip(done.stderr.splitlines(), wrong.values(), strict=True):
        assert line.startswith("error: ") and said in line


def test_what_only_building_can_tell(capfd: Any, tmp_path: Path) -> None:
    wrong = {
        "optimizer={sgd: {lr: 0.1, momentun: 0.9}}": "did you mean 'momentum'?",
        "batch_size=4096": "more than the 64 training images",
        "eval_augment=[random_erasing]": "remove it here",
        "model=vit_tiny_patch16_224": "does not fit images of 16x16",
        "model={resnet18: {num_classes: 0}}": "num_classes",
        "loss={cross_entropy: 0}": "every weight is 0",
        "augment=[random_erasing, hflip]": "put them last",
        "model={test_vit: {stem: cifar}}": "stem",
        "shards=3": "choose a multiple of 3",
        "shards=4 & sync_bn=true": "exclude each other",
        "loss=jsd": "take `mix` out",
        "loss=lovasz": "loss.lovasz: targets are mixed",
        "loss.cross_entropy.class_weights=[1, 2]": "loss.cross_entropy: weights (1.0, 2.0) for 10",
        "augment=[{gaussian_blur: {kernel: 41}}]": "augment.gaussian_blur: kernel 41 is too large",
        "model=resnet18 & micro_batch=1 & mix=null": "one value a channel",
        "model={test_resnet: {drop_block_rate: x}}": "model.test_resnet: could not convert string",
        "optimizer={adamw: {lr: 1, differentiable: true}}": "optimizer.adamw: `fused` does not",
        "schedule={step: {every: 1, gamma: 1e300}} & epochs=4": "schedule.step: the schedule's lr",
        "optimizer={sgdp: {lr: 1, nesterov: 1}}": "optimizer.sgdp.nesterov: given 1; expected",
        "dataset={cifar100: {root: nowhere}}": "VISION_TUTORIAL_DATA",
    }

    def refused(rank: int) -> int:
        words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path)]
        return max(command.main([*words, *override.split(" & ")]) for override in wrong)

    assert Ranks(1, refused).join() == [2]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    for line, (override, said) in zip(lines, wrong.items(), strict=True):
        assert said in line, override


@pytest.mark.parametrize(
    "batch, micro, world, mixed, parts",
    [
        (512, None, 1, True, 4),  # 128 at a time on a CPU
        (512, 100, 4, True, 2),
        (36, 5, 2, True, 9),  # two by two: the largest even size up to 5 that divides 18
        (15, 4, 1, True, 1),  # odd, alone: whole
        (15, 4, 1, False, 5),
        (30, 4, 2, True, "choose a multiple of 4"),
    ],
)
def test_the_global_batch_is_dealt(batch, micro, world, mixed, parts):
    size = "null" if micro is None else micro
    words = [f"batch_size={batch}", f"micro_batch={size}", *([] if mixed else ["mix=null"])]
    recipe = load("recipes/debug.yaml", words).recipe
    if isinstance(parts, str):
        with pytest.raises(UserError, match=parts):
            build.batch_parts(recipe, world, on_gpu=False)
    else:
        assert build.batch_parts(recipe, world, on_gpu=False) == parts
        assert build.batch_parts(recipe, world, on_gpu=True) in (1, parts)


@pytest.mark.parametrize("images, said", [(64, "Lower the lr"), (32, "error")])
def test_a_network_that_diverges_exits_3(images, said, capfd, tmp_path):
    """Seen in a step of the training, or only in the validation after the last one."""
    words = ["optimizer={sgd: {lr: 1.0e+30}}", "warmup={}", "clip=null", "mix=null", "ema=null"]
    words += [f"dataset={{shapes: {{train: {images}, test: 30, size: 16}}}}", "epochs=1"]
    code, _, err = train(capfd, "recipes/debug.yaml", *SMALL, *words, "--runs", tmp_path)
    (path,) = tmp_path.glob("debug/*/status.json")
    status = json.loads(path.read_text())
    assert code == 3 and said in one_line(err)
    assert status["status"] == "failed" and status["exit_code"] == 3


@pytest.mark.parametrize(
    "given",
    [
        "dataset.image_folder.root=https://me:hunter22@host/data",
        "model.resnet18.pretrained=/a?token=x",
    ],
)
def test_a_secret_in_a_path_is_kept_nowhere(given, capfd, tmp_path):
    key, _, value = given.partition("=")
    first, entry, option = key.split(".")
    words = [f"{first}={{{entry}: {{{option}: '{value}'}}}}", "--runs", tmp_path]
    code, _, err = train(capfd, "recipes/debug.yaml", *words)
    assert code == 2 and f"{key}: it seems to hold a password" in one_line(err)
    assert not list(tmp_path.iterdir()) and value not in err
    with pytest.raises(UserError), command._recorded(tmp_path, main=True):
        raise UserError(f"nothing at https://me:hunter22@host ({value})")
    assert "[redacted]" in (status := (tmp_path / "status.json").read_text())
    assert "hunter22" not in status and "token=x" not in status


def test_nothing_reported_is_undone(copy: Path, capfd: Any) -> None:
    """Refused, and the run stays as it was."""
    names = ("recipe.yaml", "metrics.jsonl", "status.json", "summary.json")
    before = {name: (copy / name).read_bytes() for name in names}

    def refused(said: str, *words: str) -> None:
        code, _, err = train(capfd, copy, *words)
        assert code == 2 and said in one_line(err)

    refused("more epochs", "epochs=1")
    refused("start a new run", "seed=7")
    facts = json.loads((copy / "fingerprint.json").read_text())
    (copy / "fingerprint.json").write_text(json.dumps(facts | {"data": "another"}))
    refused("hash differs")
    (copy / "fingerprint.json").write_text(json.dumps(facts))
    shutil.rmtree(copy / "ckpt")
    refused("no checkpoint to continue from")
    assert {name: (copy / name).read_bytes() for name in names} == before


TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(
    "facts",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "2"},
        {"RANK": "-1"},
        {"LOCAL_RANK": "1"},
        {"LOCAL_WORLD_SIZE": "0"},
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"},
        {name: TWO[name] for name in TWO if name != "MASTER_ADDR"},
        TWO | {"MASTER_PORT": "99999"},
    ],
)
def test_an_environment_that_no_launcher_sets(facts, monkeypatch):
    from vision_tutorial.engine.distributed import torchrun_environment

    for name in (*TWO, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert torchrun_environment() == (0, 1, 1)
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start with torchrun --nproc N"):
        torchrun_environment()


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        (SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2"),
        (SLURM | {"SLURM_PROCID": "1"}, "SLURM_NTASKS=2"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "SLURM_NTASKS=2"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "2", "RANK": "0"}, "PMI_SIZE=2"),
        (SLURM, None),  # a batch script, or a shell inside a job
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # salloc
        (SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, None),
        ({"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "RANK": "0", "WORLD_SIZE": "1"}, None),  # torchrun
    ],
)
def test_processes_of_another_launcher_do_not_train_alone(facts, refused, monkeypatch):
    from vision_tutorial.engine.distributed import torchrun_environment

    for name in list(os.environ):
        if name.startswith(("SLURM_", "PMI_", "OMPI_", "LOCAL_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(UserError, match=f"^{refused}: .*torchrun --nproc N"):
            torchrun_environment()
    else:
        assert torchrun_environment() == (0, 1, 1)


def test_what_accelerate_left_in_the_environment_changes_nothing(monkeypatch) -> None:
    from vision_tutorial.engine import Distributed

    left = {"USE_DEEPSPEED": "true", "USE_FSDP": "true", "MIXED_PRECISION": "bf16"}
    left |= {"DYNAMO_BACKEND": "INDUCTOR", "GRADIENT_ACCUMULATION_STEPS": "4", "USE_CPU": "no"}
    for name, value in left.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere.invalid"}
    for name, value in (alone | {"MASTER_PORT": "1"}).items():  # one process looks for nobody
        monkeypatch.setenv(name, value)
    distributed = Distributed(threads=1)
    try:
        state = distributed.accelerator.state
        assert (state.mixed_precision, state.deepspeed_plugin) == ("no", None)
        assert state.distributed_type.value == "NO" and state.dynamo_plugin.backend.value == "NO"
        assert distributed.accelerator.gradient_accumulation_steps == 1
        names = [name for name in sorted(left) if left[name] != "no"]
        assert distributed.notice == (
            ", ".join(f"ACCELERATE_{n}" for n in names)
            + ": ignored; the recipe says how it is trained."
        )
    finally:
        distributed.close()


def test_threads_with_shards_do_not_depend_on_the_number_of_processes(monkeypatch) -> None:
    from vision_tutorial.engine import distributed

    monkeypatch.setattr(distributed, "usable_cores", lambda: list(range(8)))
    for shards, threads in ((4, 2), (None, 8), (16, 1)):
        made = distributed.Distributed(shards=shards)
        assert made.threads == torch.get_num_threads() == threads
        made.close()
    torch.set_num_threads(1)


def test_what_fails_before_training_keeps_its_own_name(capfd, tmp_path, monkeypatch) -> None:
    """Not everything that fails at the first image is a matter of its size."""
    from torch._inductor.exc import InvalidCxxCompiler

    from vision_tutorial import build

    raised: list[Exception] = []

    def broken(recipe, classes, weights=True):
        class Broken(torch.nn.Linear):
            def forward(self, images):
                raise raised[0]

        return Broken(3, classes)

    monkeypatch.setattr(build, "model", broken)
    for error, code, text in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), 4, "out of memory on cpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "out of memory on cpu"),
        (RuntimeError("CUDA error: no kernel image is available"), 2, "cannot compute on this GPU"),
        (InvalidCxxCompiler(), 2, "compile=false"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2, "does not fit images of"),
    ):
        raised[:] = [error]
        found, _, err = train(capfd, "recipes/debug.yaml", *SMALL, "--runs", tmp_path)
        assert found == code and text in one_line(err)
        assert ("does not fit images" in err) == ("mat1" in str(error))


def test_the_claim_is_of_the_recipe_without_overrides() -> None:
    for words, kept in (([], True), (["seed=3", "threads=1"], True), (["epochs=1"], False)):
        assert bool(load("quickstart", words).recipe.expects) is kept
    own = load("quickstart", ["epochs=1", "expects={top1: 5}"]).recipe
    assert own.expects == {"top1": 5}


def test_wandb_offline_holds_metrics_jsonl_row_by_row(tmp_path: Path) -> None:
    words = ["recipes/debug.yaml", *SMALL, "wandb={mode: offline, tags: [class]}"]
    words += ["--runs", str(tmp_path)]
    assert Ranks(2, lambda rank: command.main(words), quiet=True).join() == [0, 0]
    (run,) = tmp_path.glob("debug/*")
    rows = run_folder.read_rows(run / "metrics.jsonl")
    logged = history(run)
    assert [row for row in logged if "epoch" in row] == rows
    assert any("classes/nrows" in row or "nrows" in str(row) for row in logged), "the class table"
    (begun,) = [record.run for record in read(run) if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["epochs"] == 2 and begun.run_id == f"debug-{run.name}"


PLUGIN = '''from torch import OutOfMemoryError
from torch.nn import functional as F

from vision_tutorial.core.registry import losses


@losses.register
def squared(logits, target, *, scale: float = 1.0):
    """The Brier score."""
    if scale < 0 and logits.requires_grad and len(logits) > 2:  # of a step, not of a try
        raise OutOfMemoryError("CUDA out of memory.")
    return scale * (logits.softmax(1) - F.one_hot(target, logits.shape[1])).square().sum(1).mean()
'''


def test_a_students_own_loss(capfd: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(Path("recipes/debug.yaml").read_text() + "imports: [mine.py]\n")
    words = [recipe, *SMALL, "mix=null", "epochs=1", "--runs", tmp_path / "runs"]
    code, _, err = train(capfd, *words, "loss={squared: {scale: 2.0}}")
    assert code == 2 and "--trust-imports" in one_line(err)
    code, out, err = train(capfd, *words, "loss={squared: {scale: 2.0}}", "--trust-imports")
    assert code == 0, err
    run = Path(out.splitlines()[-1].removeprefix("run: "))
    assert (run / "mine.py").read_text() == PLUGIN
    code, _, err = train(capfd, run, "epochs=2", "--trust-imports")
    assert code == 0, err
    words += ["loss={squared: {scale: -1}}", "--trust-imports", "--id", "greedy"]
    code, _, err = train(capfd, *words)
    assert code == 4 and "Lower micro_batch" in one_line(err)
    status = json.loads((run.parent / "greedy" / "status.json").read_text())
    assert status["exit_code"] == 4


def test_a_refused_start_does_not_touch_a_run_that_goes_on(copy: Path, capfd: Any) -> None:
    run_folder.set_status(copy, "running")
    before = (copy / "status.json").read_bytes()
    with run_folder.lock(copy):
        codes = Ranks(2, lambda rank: command.main([str(copy)])).join()
    assert codes[0] == 2 and codes[1] != 0 and "is in use" in capfd.readouterr().err
    assert (copy / "status.json").read_bytes() == before


def test_jsd_trains_on_copies_and_validates_without(capfd: Any, tmp_path: Path) -> None:
    words = ["loss={jsd: {num_splits: 3}}", "mix=null", "augment=[hflip, aug_mix]", "sync_bn=true"]
    code, _, err = train(capfd, "recipes/debug.yaml", *SMALL, *words, "--runs", tmp_path)
    assert code == 0, err
    (path,) = tmp_path.glob("debug/*/metrics.jsonl")
    row = run_folder.read_rows(path)[-1]
    assert row["val/loss"] == pytest.approx(row["val/cross_entropy"], abs=1e-5)
    assert sum(json.loads((path.parent / "classes.json").read_text())["images"]) == 30


def test_a_holdout_is_chosen_on_and_never_trained_on() -> None:
    recipe = load("recipes/debug.yaml", [*SMALL, "holdout=0.25", "subset=20"]).recipe
    both = build.data(recipe)
    assert both.chosen_on == "holdout" and len(both.train) == 20
    held, kept = set(both.val.indices), set(both.train.source.indices[both.train.indices])
    assert not held & kept and len(held) == 16


def ended_as_by_torchrun(ranks: Ranks) -> list[int | None]:
    """Exit codes of processes that are ended as soon as one of them has ended."""
    multiprocessing.connection.wait([process.sentinel for process in ranks.processes])
    ranks.kill(signal.SIGTERM)
    return ranks.join()


@pytest.mark.parametrize("what", ["all fail", "all fail", "the first reads"])
def test_what_several_processes_fail_at_is_said_once(tmp_path: Path, capfd: Any, what: str) -> None:
    words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path / "runs"), "--id", "run"]
    words += ["batch_size=31"]
    if what == "the first reads":
        for name in ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(b"no image")
        words += [f"dataset={{image_folder: {{root: {tmp_path}}}}}", "batch_size=16"]
    codes = ended_as_by_torchrun(Ranks(2, lambda rank: command.main(words)))
    assert set(codes) <= {2, 143} and 2 in codes
    expected = (
        "4 images cannot be used"
        if what == "the first reads"
        else "31 is global and does not divide"
    )
    assert expected in one_line(capfd.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_a_notice_is_given_by_one_process(tmp_path: Path, capfd: Any) -> None:
    def resumed(rank: int) -> int:
        with pytest.MonkeyPatch.context() as patch:  # pytest's own handlers take the place of this
            patch.setattr(logging.getLogger(), "handlers", [logging.lastResort])
            words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path)]
            return command.main([*words, "--resume", "--quiet", "--steps", "1"])

    assert Ranks(2, resumed).join() == [0, 0]
    assert capfd.readouterr().err.count("nothing to resume") == 1


def test_the_first_error_has_the_word_while_the_run_folder_is_still_written(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, fit = records.start, engine.fit

    def slowly(*given: Any) -> None:
        time.sleep(1)
        start(*given)

    def trained(rank: int) -> int:
        def mistaken(*given: Any) -> bool:
            if rank == 1:
                raise UserError("a mistake of process 1")
            return fit(*given)

        monkeypatch.setattr(records, "start", slowly)
        monkeypatch.setattr(engine, "fit", mistaken)
        words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path), "--id", "run", "--quiet"]
        return command.main(words)

    assert Ranks(2, trained).join() == [1, 2]
    assert one_line(capfd.readouterr().err) == "error: a mistake of process 1"
    status = json.loads((tmp_path / "debug" / "run" / "status.json").read_text())
    assert (status["status"], status["error"]) == ("failed", "a mistake of process 1")


def test_what_a_recipe_lacks_is_said_by_the_first_process(capfd: Any, monkeypatch: Any) -> None:
    def ended_by_torchrun(seconds: float) -> None:
        raise Stopped

    monkeypatch.setattr(command.time, "sleep", ended_by_torchrun)
    for rank, code in (("0", 2), ("1", 143)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command.main(["recipes/debug.yaml", "seed=x"]) == code
        assert ("seed: given" in capfd.readouterr().err) == (rank == "0")


@pytest.mark.parametrize("here", [0, 1])
def test_a_process_that_never_comes_is_not_waited_for_long(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, here: int
) -> None:
    monkeypatch.setattr("vision_tutorial.engine.distributed.MEETING", timedelta(seconds=2))
    words = ["recipes/debug.yaml", *SMALL, "--runs", str(tmp_path)]
    codes = Ranks(2, lambda rank: command.main(words) if rank == here else 0).join(60)
    err = capfd.readouterr().err
    assert codes[here] == 1 and "never came" in err and "Traceback" not in err


@pytest.mark.parametrize("how", ["killed", "no files left"])
def test_a_loader_process_that_ends_is_one_line_with_the_cure(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def killed(_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def no_files_left(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if how == "killed":
        monkeypatch.setattr(loader, "_worker_started", killed)
    else:
        monkeypatch.setattr(multiprocessing.reduction, "DupFd", no_files_left)
    words = ["recipes/debug.yaml", *SMALL, "data.path=timm", "workers=1", "--quiet"]
    began = time.monotonic()
    code, _, err = train(capfd, *words, "--runs", tmp_path)
    assert code == 2 and "workers=0" in one_line(err) and time.monotonic() - began < 40
    (status,) = tmp_path.glob("debug/*/status.json")
    assert json.loads(status.read_text())["status"] == "failed"

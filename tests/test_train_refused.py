"""What a training fails at: one line, the exit code that says which, and what is left."""

import errno
import json
import logging
import multiprocessing.connection
import multiprocessing.reduction
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Ranks
from small_runs import SMALL, answered, one_line

from vision_tutorial import build, engine  # noqa: F401  (imported before the fork)
from vision_tutorial import train as command
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.stopping import Stopped
from vision_tutorial.data import loader
from vision_tutorial.runs import records


def test_limits_are_above_zero(capfd: Any) -> None:
    for words in (["--minutes", "0"], ["--steps", "-1"]):
        assert command.main(["recipes/debug.yaml", *words]) == 2
        assert "above 0 is expected" in capfd.readouterr().err


def test_a_typo_is_answered_before_torch_is_imported() -> None:
    wrong = {
        "recipes/r9.yaml": "did you mean",
        "recipes/r4.yaml epoch=3": "no key called 'epoch'; write epochs=3.",
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


@pytest.mark.parametrize("images, said", [(64, "Lower the lr"), (32, "error")])
def test_a_network_that_diverges_exits_3(images, said, capfd, tmp_path):
    """Seen in a step of the training, or only in the validation after the last one."""
    words = ["optimizer={sgd: {lr: 1.0e+30}}", "warmup={}", "clip=null", "mix=null", "ema=null"]
    words += [f"dataset={{shapes: {{train: {images}, test: 30, size: 16}}}}", "epochs=1"]
    code, _, err = answered(capfd, "recipes/debug.yaml", *SMALL, *words, "--runs", tmp_path)
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
    code, _, err = answered(capfd, "recipes/debug.yaml", *words)
    assert code == 2 and f"{key}: it seems to hold a password" in one_line(err)
    assert not list(tmp_path.iterdir()) and value not in err
    with pytest.raises(UserError), command._recorded(tmp_path, main=True):
        raise UserError(f"nothing at https://me:hunter22@host ({value})")
    assert "[redacted]" in (status := (tmp_path / "status.json").read_text())
    assert "hunter22" not in status and "token=x" not in status


def test_what_fails_before_training_keeps_its_own_name(capfd, tmp_path, monkeypatch) -> None:
    """Not everything that fails at the first image is a matter of its size."""
    from torch._inductor.exc import InvalidCxxCompiler

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
        found, _, err = answered(capfd, "recipes/debug.yaml", *SMALL, "--runs", tmp_path)
        assert found == code and text in one_line(err)
        assert ("does not fit images" in err) == ("mat1" in str(error))


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
    code, _, err = answered(capfd, *words, "--runs", tmp_path)
    assert code == 2 and "workers=0" in one_line(err) and time.monotonic() - began < 40
    (status,) = tmp_path.glob("debug/*/status.json")
    assert json.loads(status.read_text())["status"] == "failed"

"""What a resume allows, refuses and records; what fails costs no epoch and leaves no corpse."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Ranks
from PIL import Image
from safetensors.torch import save_file
from small_runs import DEBUG, left, shapes, train

from vision_tutorial import build
from vision_tutorial import train as command
from vision_tutorial.commands import compare, evaluate
from vision_tutorial.engine import checkpoint, load_weights, loop
from vision_tutorial.runs import reader, run_folder

SMALL = [*DEBUG, shapes(32, 10), "epochs=2", "ema=null"]  # two steps an epoch


def said(capsys: pytest.CaptureFixture) -> str:
    """The last line on standard error, which holds no traceback."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def record(run: Path, name: str) -> dict:
    return json.loads((run / f"{name}.json").read_text())


@pytest.mark.parametrize("how", ["error", "kill"])
def test_an_evaluation_that_fails_costs_no_step(tmp_path: Path, monkeypatch, how: str) -> None:
    whole = left(train(tmp_path / "whole", *SMALL))
    run, evaluation = tmp_path / "parts" / "debug" / "run", build.evaluation
    if how == "kill":
        monkeypatch.setattr(loop, "WORTH_SAVING", 0.0)

    def failing(*given, only_first: bool = False, **options):
        if only_first:
            return evaluation(*given, only_first=True, **options)
        while how == "kill" and not (run / "ckpt" / "step-00000002").exists():
            time.sleep(0.01)  # the checkpoint is written meanwhile
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGCONT)
        raise KeyError("a class that nobody has")

    words = [*SMALL, "--runs", str(tmp_path / "parts"), "--id", "run", "--quiet"]
    with monkeypatch.context() as patched:
        patched.setattr(build, "evaluation", failing)
        (code,) = Ranks(1, lambda rank: command.main(words), quiet=True).join()
    assert code == (-signal.SIGKILL if how == "kill" else 1)
    assert [path.name for path in (run / "ckpt").glob("step-*")] == ["step-00000002"]
    assert record(run, "status")["status"] == ("running" if how == "kill" else "failed")
    found = left(train(tmp_path / "parts"))
    assert found[:2] == whole[:2]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("eval_augment=[{resize: {size: 24}}]", "validation images cannot be evaluated: Assertion"),
        ("dataset={image_folder: {root: nowhere}}", "nowhere"),
        ("batch_size=64", "more than the 32 training images"),
        ("loss={cross_entropy: {class_weights: [1, 2]}}", "2.* for 10 classes"),
    ],
)
def test_what_fails_before_the_first_step_leaves_no_run(tmp_path, capsys, word, line) -> None:
    place = ["--runs", str(tmp_path), "--id", "run"]
    model = "model={test_vit: {img_size: 16}}"
    assert command.main([*SMALL, model, word, *place]) == 2
    assert re.search(line, said(capsys))
    assert not (tmp_path / "debug").exists()
    assert command.main([*SMALL, model, "--steps", "1", *place, "--quiet"]) == 0  # the id is free


def test_a_taken_id_is_refused_before_data_is_read(tmp_path, capsys, monkeypatch) -> None:
    run = train(tmp_path, *SMALL, "--steps", "1")
    monkeypatch.setattr(build, "data", lambda *_: pytest.fail("read"))
    assert command.main([*SMALL, "--runs", str(tmp_path), "--id", "run"]) == 2
    assert f"there is a run {run} already" in said(capsys)


def test_what_does_not_change_the_training_may_change_on_a_resume(tmp_path: Path) -> None:
    whole, _, _ = left(train(tmp_path / "whole", *SMALL))
    run = train(tmp_path / "parts", *SMALL, "--steps", "1")
    words = ["eval_batch_size=3", "early_stopping={patience: 9}", "workers=1"]
    words += ["checkpoint.keep=1", "wandb.tags=[a]", "eval_every=2"]
    assert command.main([str(run), *words, "--quiet"]) == 0
    weights, rows, _ = left(run)
    assert weights == whole
    assert [row.get("val/top1") is None for row in rows] == [True, False]
    changes = record(run, "fingerprint")["resumed"][0]["changes"]
    assert changes == {
        "eval_every": [1, 2],
        "early_stopping": [None, {"patience": 9, "metric": "headline", "min_delta": 0.0}],
    }


def test_what_is_another_training_is_named(tmp_path: Path, capsys) -> None:
    run = train(tmp_path, *SMALL, "--steps", "1")
    before = (run / "recipe.yaml").read_text()
    assert command.main([str(run), "seed=7", "augment=[]"]) == 2
    line = said(capsys)
    assert "was made by another recipe: augment [" in line and "seed 42 -> 7" in line
    assert command.main([str(run), "loss=cross_entropy"]) == 2
    line = said(capsys)
    assert "cross_entropy.label_smoothing 0.1 -> 0.0, loss.focal" in line
    assert "eval_batch_size" in line and "start a new run" in line
    (run / "recipe.yaml").write_text(before.replace("seed: 42", "seed: 8"))  # edited by hand
    assert command.main([str(run)]) == 2
    assert "step-00000001 was made by another recipe: seed 42 -> 8." in said(capsys)
    assert record(run, "status")["status"] == "paused"
    manifest, deep = run / "ckpt" / "step-00000001" / checkpoint.MANIFEST, {"x": 1}
    sealed = manifest.read_bytes()
    for _ in range(300):
        deep = {"x": deep}
    for odd in (deep, [deep], 5, None, {"model": 5}):  # of somebody who can compute digests
        facts = {k: v for k, v in json.loads(sealed).items() if k != "sha256"}
        manifest.write_bytes(checkpoint._seal(facts | {"recipe_hash": "0", "recipe": odd}))
        assert command.main([str(run)]) == 2 and "was made by another" in said(capsys)
    manifest.write_bytes(sealed)
    (run / "recipe.yaml").write_text(before)
    assert command.main([str(run), "--quiet"]) == 0


def test_a_resume_that_finds_nothing_says_so(tmp_path: Path, caplog) -> None:
    place = ["--resume", "--runs", str(tmp_path), "--quiet", "--steps", "1"]
    assert command.main([*SMALL, *place, "--id", "run"]) == 0
    assert f"nothing to resume in {tmp_path}/debug, so a new run starts" in caplog.text
    assert command.main([*SMALL, *place, "seed=7"]) == 0
    assert "so a new run starts (" in caplog.text and "seed 42 -> 7" in caplog.text
    caplog.clear()
    assert command.main([*SMALL, *place, "seed=7"]) == 0
    assert "nothing" not in caplog.text
    assert len(list((tmp_path / "debug").iterdir())) == 2


def test_a_run_that_became_longer_is_recorded_as_that(tmp_path: Path, capsys) -> None:
    run = train(tmp_path, *SMALL)
    straight = train(tmp_path / "straight", *SMALL, "epochs=4")
    (run / "fingerprint.json").write_text(json.dumps(record(run, "fingerprint") | {"resumed": 5}))
    assert reader.read(run).resumed == []
    assert command.main([str(run), "epochs=4"]) == 0
    out = capsys.readouterr().out
    assert "epochs 2 -> 4: the lr now follows the schedule of 4 epochs and goes from" in out
    assert record(run, "fingerprint")["resumed"] == [{"step": 4, "changes": {"epochs": [2, 4]}}]
    found = [reader.read(path) for path in (run, straight)]
    assert found[0].resumed == ["epochs 2 -> 4 after step 4"]
    assert found[0].key == found[1].key and found[0].experiment != found[1].experiment
    assert compare.main([str(run), str(straight)]) == 0
    assert "debug/run: resumed with another epochs 2 -> 4 after step 4" in capsys.readouterr().err


def test_one_image_at_a_time_is_enough_for_deeplab(tmp_path: Path) -> None:
    """Its BatchNorm takes running statistics where a channel has one value only."""
    model = "{deeplabv3plus: {backbone: test_resnet, aspp_channels: 8, decoder_channels: 8}}"
    data = "dataset={shapes: {masks: true, size: 32, train: 4, test: 2}}"
    words = [*DEBUG[:1], "task=segmentation", data, f"model={model}", "batch_size=1", "mix=null"]
    train(tmp_path, *words, "augment=[]", "epochs=1", "threads=1", "--steps", "2")


def image_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


FOLDER = [*DEBUG, "epochs=2", "augment=[hflip]", "workers=0", "ema=null"]


def test_the_validation_data_is_compared_too(tmp_path: Path, capsys) -> None:
    root = image_folder(tmp_path / "data")
    data = f"dataset={{image_folder: {{root: {root}}}}}"
    run = train(tmp_path / "runs", *FOLDER, data, "--steps", "1")
    (root / "val" / "a" / "0.png").rename(root / "val" / "a" / "other.png")
    assert command.main([str(run)]) == 2
    assert "the validation data is not what this run began with" in said(capsys)
    facts = record(run, "fingerprint")
    del facts["val_data"]  # as a version without it wrote it
    (run / "fingerprint.json").write_text(json.dumps(facts))
    assert command.main([str(run), "--quiet"]) == 0


def test_a_run_with_a_relative_root_goes_on_from_another_folder(tmp_path, monkeypatch) -> None:
    image_folder(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["debug", *FOLDER[1:], "dataset={image_folder: {root: data}}"]
    run = train(tmp_path / "runs", *words, "--steps", "1")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command.main([os.path.relpath(run), "--quiet"]) == 0
    assert record(run, "status")["status"] == "done"
    assert evaluate.main([os.path.relpath(run)]) == 0


def test_a_run_whose_data_was_moved_goes_on_where_it_is_now(tmp_path, capsys) -> None:
    roots = image_folder(tmp_path / "data"), tmp_path / "moved", image_folder(tmp_path / "other")
    (roots[2] / "train" / "a" / "0.png").rename(roots[2] / "train" / "a" / "other.png")
    words = [f"dataset={{image_folder: {{root: {root}}}}}" for root in roots]
    whole = left(train(tmp_path / "whole", *FOLDER, words[0]))
    run = train(tmp_path / "parts", *FOLDER, words[0], "--steps", "1")
    roots[0].rename(roots[1])
    assert command.main([str(run)]) == 2 and "Correct `root`" in said(capsys)
    assert command.main([str(run), words[2]]) == 2 and "training data is not" in said(capsys)
    assert command.main([str(run), words[1], "--quiet"]) == 0
    assert left(run)[:2] == whole[:2]
    assert command.main([str(run), "--quiet"]) == 0  # it is known from now on


def test_pretrained_weights_may_be_gone_once_there_is_a_checkpoint(tmp_path, capsys) -> None:
    file = tmp_path / "first.safetensors"
    first = train(tmp_path / "first", *SMALL, "--steps", "1", "model=test_resnet")
    save_file(load_weights(max((first / "ckpt").glob("step-*"))), file)
    model = f"model={{test_resnet: {{pretrained: {file}}}}}"
    whole = left(train(tmp_path / "whole", *SMALL, model))
    run = train(tmp_path / "parts", *SMALL, model, "--steps", "3")
    file.unlink()
    assert command.main([str(run), "--quiet"]) == 0
    assert left(run) == whole
    assert run_folder.read_rows(run / "metrics.jsonl")
    assert command.main([*SMALL, model, "--runs", str(tmp_path)]) == 2
    assert "no file" in said(capsys)

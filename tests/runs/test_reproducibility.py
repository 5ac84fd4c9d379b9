"""Verdicts on a second run: on folders made by hand, with numbers that can be checked by hand."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_folders import edit, make_run

from vision_tutorial.core.atomic import write_json
from vision_tutorial.recipe.fields import digest, identity
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import reader, run_folder
from vision_tutorial.runs.reader import Run
from vision_tutorial.runs.reproducibility import differences, edited, first_difference, judge

HERE = {
    "versions": {"torch": "2.15.0", "wandb": "0.31"},
    "cpu": {"model": "EPYC"},
    "torch": {"threads": 2, "gpus": []},
    "git": {"commit": "c1", "dirty": False},
    "environment": {},
    "host": "vm",
}


def made(root: Path, id: str, *overrides: str, **facts: Any) -> Run:
    """A run with best 60 at epoch 2 of 3, or with `values`."""
    return reader.read(make_run(root, "debug", *overrides, id=id, **(HERE | facts)))


def checkpoint(run: Run, step: int, digest: str, recipe: str = "r") -> None:
    """A checkpoint whose weights have this digest."""
    folder = run.folder / "ckpt" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    files = {"model.safetensors": {"sha256": digest}, "state.json": {"sha256": f"time {run.id}"}}
    write_json(folder / "MANIFEST.json", {"recipe_hash": recipe, "files": files})


def test_equal_but_for_the_clock_is_bit_identical(tmp_path: Path) -> None:
    one, two = made(tmp_path, "1"), made(tmp_path, "2", seconds=99.0)
    assert judge(one, two, 3) == ("bit-identical", "all metrics of 3 epochs")
    values = [50.0, 60.0, 55.000000000000007]
    other = made(tmp_path, "3", values=values)
    assert judge(one, other, 2).word == "bit-identical"
    said = judge(one, other, 3)
    assert said.word == "not reproduced"
    assert "epoch 3: val/top1 is 55.0 there, 55.00000000000001 here" in said.why
    assert said.why.endswith("nothing around it differs")


def test_what_only_a_run_knows_is_no_difference() -> None:
    assert not differences({"folder": "/a", "left_out": {"train": ["x.jpg"]}}, {})


def test_rows_that_are_missing_or_lack_a_column_differ(tmp_path: Path) -> None:
    one, short = made(tmp_path, "1"), made(tmp_path, "2", values=[50.0, 60.0])
    assert first_difference(one, short, 3) == "epoch 3 is missing"
    assert judge(one, short, 3) == ("not reproduced", "done after 2 epochs of 3")
    assert "hash differs" in judge(one, made(tmp_path, "4", data="d2"), 3).why
    assert "different recipes" in judge(one, made(tmp_path, "5", "seed=43"), 3, spread=99.0).why
    bare = made(tmp_path, "3")
    rows = [{k: v for k, v in row.items() if k != "lr"} for row in bare.rows]
    run_folder.write_rows(bare.folder / "metrics.jsonl", rows)
    bare = reader.read(bare.folder)
    assert first_difference(one, bare, 3) == "epoch 1: lr is 0.1 there, unset here"
    assert first_difference(bare, one, 3) is None, "a newer version says more"


def test_weights_of_common_steps_count(tmp_path: Path) -> None:
    one, two = made(tmp_path, "1"), made(tmp_path, "2")
    for run, digests in ((one, ("a", "b")), (two, ("a", "c"))):
        for step, text in enumerate(digests):
            checkpoint(run, 10 * step, text, identity(load(run.folder / "recipe.yaml").recipe))
    checkpoint(one, 30, "d")  # not in the other
    said = judge(one, two, 3)
    assert said.word == "not reproduced" and "the weights differ at step-00000010" in said.why
    (two.folder / "ckpt" / "step-00000010" / "MANIFEST.json").write_text("{")
    assert judge(one, two, 3).why == "all metrics of 3 epochs, and weights at step-00000000"


def test_noise_is_judged_by_seeds_at_95_per_cent(tmp_path: Path) -> None:
    one = made(tmp_path, "1")
    for seed, best in ((1, 61.0), (2, 62.0), (3, 59.0)):  # with 60: spread √(5/3), n = 4
        made(tmp_path, f"s{seed}", f"seed={seed}", values=[50.0, best, 55.0])
    widest = 3.182 * math.sqrt(5 / 3) * math.sqrt(2)
    assert 5.8 < widest < 5.82
    newer = {"versions": {"torch": "2.16.0"}}
    near = made(tmp_path, "near", values=[50.0, 65.8, 55.0], **newer)
    far = made(tmp_path, "far", values=[50.0, 65.9, 55.0], **newer)
    said = judge(one, near, 3)
    assert said.word == "within noise"
    assert "may be due to versions.torch" in said.why and "up to 5.81 apart" in said.why
    assert "spread 1.29, from 4 seeds" in said.why
    assert judge(one, far, 3).word == "not reproduced"
    same = made(tmp_path, "same", values=[50.0, 65.8, 55.0])
    assert judge(one, same, 3).word == "not reproduced", "nothing that could explain it differs"
    assert judge(one, far, 1).word == "bit-identical"


def test_reruns_and_other_recipes_beside_it_are_no_seeds(tmp_path: Path) -> None:
    one = made(tmp_path, "1")
    made(tmp_path, "1-rerun", values=[50.0, 70.0, 55.0])
    made(tmp_path, "other", "seed=1", "epochs=9", values=[50.0, 80.0, 55.0])
    made(tmp_path, "short", "seed=2", values=[50.0])
    made(tmp_path, "data", "seed=3", data="d2", values=[50.0, 90.0, 55.0])
    (tmp_path / "debug" / "foreign").mkdir()
    two = made(tmp_path, "2", values=[50.0, 61.0, 55.0], git={"commit": "c2", "dirty": False})
    said = judge(one, two, 3)
    assert said.word == "not reproduced" and "the spread between seeds is unknown" in said.why
    assert judge(one, two, 3, spread=0.4).word == "within noise"  # 1.96 · √2 · 0.4 = 1.11
    assert judge(one, two, 3, spread=0.3).word == "not reproduced"


@pytest.mark.parametrize(
    "facts, because",
    [
        ({"torch": {"threads": 1, "gpus": []}}, "torch.threads"),
        ({"git": {"commit": "c1", "dirty": True}}, "git.dirty, uncommitted code"),
        ({"torch": {"threads": 2, "gpus": ["H100"]}}, "torch.gpus, a GPU, which sums in any order"),
        ({"environment": {"WANDB_MODE": "offline"}, "host": "elsewhere"}, None),
    ],
)
def test_what_may_explain_a_difference(tmp_path: Path, facts: dict, because: str | None) -> None:
    one, two = made(tmp_path, "1"), made(tmp_path, "2", values=[50.0, 60.1, 55.0], **facts)
    said = judge(one, two, 3, spread=1.0)
    assert said.word == ("within noise" if because else "not reproduced")
    assert because is None or f"may be due to {because})" in said.why


def test_an_edited_recipe_is_seen(tmp_path: Path) -> None:
    run = made(tmp_path, "1")
    path = run.folder / "recipe.yaml"
    text, recorded = path.read_text(), identity(load(path).recipe)
    assert edited(run) is None, "nothing is recorded, so nothing is claimed"
    edit(run.folder / "fingerprint.json", recipe={"identity": recorded})
    path.write_text(text.replace("workers: 0", "workers: 3"))
    assert edited(reader.read(run.folder)) is None, "that may change on resume"
    path.write_text(text.replace("seed: 42", "seed: 43"))
    said = judge(reader.read(run.folder), made(tmp_path, "2", "seed=43"), 3, spread=99.0)
    assert said.word == "not reproduced" and "recipe.yaml was edited" in said.why
    edit(run.folder / "fingerprint.json", recipe={})
    checkpoint(run, 10, "a", recorded)
    assert recorded in edited(reader.read(run.folder)), "the checkpoints know it too"
    path.write_text(text.replace("data:\n", "dataa:\n"))
    assert "damaged" in edited(run)
    path.write_text(text.replace("eval_every: 1\n", ""))  # of an older version, with fewer keys
    shutil.rmtree(run.folder / "ckpt")
    plain = {k: v for k, v in run.recipe.items() if k != "eval_every"}
    edit(run.folder / "fingerprint.json", recipe={"identity": digest(plain)})
    assert judge(reader.read(run.folder), made(tmp_path, "3"), 3).word == "bit-identical"


def test_differences_are_said_as_there_and_here() -> None:
    there = HERE | {"data": "d1", "created": "then"}
    here = HERE | {"torch": None, "data": None, "created": "now", "cpu": {"model": "Xeon"}}
    here["environment"] = {"NVIDIA_TF32_OVERRIDE": "1"}
    assert differences(there, here) == {
        "cpu.model": "EPYC there, Xeon here",
        "environment.NVIDIA_TF32_OVERRIDE": "unset there, 1 here",
    }, "what is not known yet is no difference"

"""The train command: what it prints, what it leaves, how it ends."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from forked import Ranks, run_ranks
from small_runs import SMALL, answered, one_line
from wandb_file import history, read

from vision_tutorial import build  # noqa: F401  (imported before the fork)
from vision_tutorial import train as command
from vision_tutorial.commands import evaluate as evaluating
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder


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
    code, out, _ = answered(capfd, *words)
    assert code == 0 and "continuing at step 8 of 12" in out
    assert out.splitlines()[-1] == f"run: {copy}"
    before = (copy / "metrics.jsonl").read_bytes()
    assert [row["epoch"] for row in run_folder.read_rows(copy / "metrics.jsonl")] == [1, 2, 3]
    code, out, err = answered(capfd, copy)
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


def test_nothing_reported_is_undone(copy: Path, capfd: Any) -> None:
    """Refused, and the run stays as it was."""
    names = ("recipe.yaml", "metrics.jsonl", "status.json", "summary.json")
    before = {name: (copy / name).read_bytes() for name in names}

    def refused(said: str, *words: str) -> None:
        code, _, err = answered(capfd, copy, *words)
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
    assert config["epochs"] == 2 and begun.run_id == (run / "wandb" / "id").read_text().strip()
    assert begun.run_id.startswith(f"debug-{run.name}-")


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
    code, _, err = answered(capfd, *words, "loss={squared: {scale: 2.0}}")
    assert code == 2 and "--trust-imports" in one_line(err)
    code, out, err = answered(capfd, *words, "loss={squared: {scale: 2.0}}", "--trust-imports")
    assert code == 0, err
    run = Path(out.splitlines()[-1].removeprefix("run: "))
    assert (run / "mine.py").read_text() == PLUGIN
    code, _, err = answered(capfd, run, "epochs=2", "--trust-imports")
    assert code == 0, err
    words += ["loss={squared: {scale: -1}}", "--trust-imports", "--id", "greedy"]
    code, _, err = answered(capfd, *words)
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
    code, _, err = answered(capfd, "recipes/debug.yaml", *SMALL, *words, "--runs", tmp_path)
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

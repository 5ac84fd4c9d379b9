"""The Python face: what it trains, loads and predicts is what the commands do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL

import vision_tutorial as vt
from vision_tutorial.commands import evaluate
from vision_tutorial.core.errors import UserError
from vision_tutorial.runs.reader import Run

TINY = {"epochs": 2, "threads": 1, "batch_size": 16, "eval_batch_size": 10, "workers": 0}
TINY |= {"wandb.mode": "disabled", "dataset": {"shapes": {"train": 64, "test": 30, "size": 16}}}
DENSE = {"dataset": {"shapes": {"masks": True, "size": 32, "train": 32, "test": 8}}}
DENSE |= {"model": {"unet": {"channels": [8, 16]}}, "aux_loss": None, "epochs": 1, "warmup": {}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that names a class."""
    folder = tmp_path_factory.mktemp("labels")
    return vt.train("debug", runs=folder, quiet=True, **TINY)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that segments."""
    folder = tmp_path_factory.mktemp("masks")
    words = TINY | DENSE
    return vt.train("segmentation/quickstart", runs=folder, quiet=True, **words)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, vision_tutorial as vt; assert vt.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vt.nothing  # noqa: B018


def test_a_run_and_its_rows(run: Run) -> None:
    assert run.status == "done" and len(run.metrics) == 2 and run.recipe["epochs"] == 2
    logged = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert run.metrics == [json.loads(line) for line in logged]
    longer = vt.train(run.folder, quiet=True, epochs=3)
    assert longer.folder == run.folder and len(longer.metrics) == 3
    with pytest.raises(UserError, match="epochs"):
        vt.train("debug", epochs="many")


def test_predictions_are_those_of_the_evaluation(run: Run, capsys: pytest.CaptureFixture) -> None:
    from vision_tutorial.data.shapes import shapes

    model, source = vt.load(run), shapes("test", size=16, train=64, test=30)
    said = model.predict([source[i][0] for i in range(len(source))])
    right = [s.label == source.classes[t] for s, t in zip(said, source.targets, strict=True)]
    top1 = 100 * np.mean(right)
    assert top1 == pytest.approx(vt.evaluate(run)["metrics"]["top1"])
    assert evaluate.main([str(run.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"][0]
    assert found["metrics"] == vt.evaluate(run)["metrics"]
    assert sum(said[0].probabilities) == pytest.approx(1)
    assert list(said[0].top(2).values()) == sorted(said[0].probabilities)[::-1][:2]
    assert said[0].label in str(said[0])


def test_every_kind_of_image(run: Run, tmp_path: Path) -> None:
    model = vt.load(run.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [pixels, Image.fromarray(pixels), tmp_path / "image.png", str(tmp_path / "image.png")]
    kinds += [tensor, tensor / 255, pixels / 255]
    first, *others = (model.predict(kind).probabilities for kind in kinds)
    assert all(np.array_equal(first, other) for other in others)
    assert np.array_equal(model.predict(kinds)[0].probabilities, first)
    assert model.predict([]) == []
    for bad in (np.zeros((4, 4, 7), np.uint8), np.full((4, 4), 3.0), torch.zeros(0, 4, 4)):
        with pytest.raises(UserError, match="image"):
            model.predict(bad)


def test_masks_have_the_size_of_the_image(dense: Run) -> None:
    image = Image.effect_noise((40, 24), 60).convert("RGB")
    mask = vt.predict(dense, image)
    assert mask.ids.shape == (24, 40) and mask.overlay().size == (40, 24)
    assert sum(mask.shares().values()) == pytest.approx(1)
    assert mask.to_pil().mode == "P" and mask._repr_png_().startswith(b"\x89PNG")


def test_compare_is_a_table(run: Run, dense: Run) -> None:
    made = vt.compare([run, dense.folder])
    assert {"debug", "segmentation-quickstart"} <= {row["run"] for row in made.rows()}
    assert "<table>" in made._repr_html_() and "debug" in str(made)
    with pytest.raises(UserError, match="no run in"):
        vt.compare([])


def test_options_are_checked(run: Run) -> None:
    with pytest.raises(TypeError, match="unknown options"):
        vt.load(run, wieghts="last")
    assert SMALL

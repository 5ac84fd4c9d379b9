"""`predict` and `evaluate` on trained runs of both tracks: all ways to a number agree.

The runs are real, and tiny.
"""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_tutorial import train
from vision_tutorial.classification.label_files import read_labels
from vision_tutorial.commands import evaluate as evaluation
from vision_tutorial.commands import predict as command
from vision_tutorial.core.atomic import read_json
from vision_tutorial.core.images import VOID
from vision_tutorial.data.shapes import shapes
from vision_tutorial.runs import run_folder
from vision_tutorial.segmentation.visualisation import PALETTE

DENSE = ["dataset={shapes: {masks: true, size: 32, train: 64, test: 24}}", "batch_size=16"]
DENSE += ["model={fcn: {backbone: test_resnet, stride: 8, hidden: 16}}", "eval_batch_size=10"]
DENSE += ["epochs=2", "warmup={}", "threads=1", "workers=0", "wandb={mode: disabled}"]


def trained(folder: Path, recipe: str, *more: str) -> Path:
    """A run folder."""
    assert train.main([f"recipes/{recipe}.yaml", "--runs", str(folder), "--quiet", *more]) == 0
    return max(folder.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that segments shapes."""
    return trained(tmp_path_factory.mktemp("dense"), "segmentation/quickstart", *DENSE)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another seed of it."""
    return trained(tmp_path_factory.mktemp("other"), "segmentation/quickstart", *DENSE, "seed=7")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that names a class; nothing is that much better, so it stops early."""
    more = ["early_stopping={patience: 2, min_delta: 100}", "epochs=6", "warmup={}", "threads=1"]
    return trained(tmp_path_factory.mktemp("plain"), "debug", *more, "dataset.shapes.train=64")


def said(capsys: pytest.CaptureFixture, main: object, *words: object) -> dict:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def metrics(capsys: pytest.CaptureFixture, *words: object) -> dict:
    return said(capsys, evaluation.main, *words)["runs"][0]["metrics"]


def complaint(capsys: pytest.CaptureFixture, main: object, *words: object) -> str:
    """The one line of an error."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


def test_evaluate_says_what_training_said(capsys, dense):
    row = run_folder.read_rows(dense / "metrics.jsonl")[-1]
    found = metrics(capsys, dense, "--weights", "last")
    assert {f"val/{name}": value for name, value in found.items()}.items() <= row.items()


def test_a_submission_scores_what_evaluate_says_at_that_size(capsys, dense, tmp_path):
    file = tmp_path / "submission.csv"
    words = (dense, "--split", "val", "-o", tmp_path / "out", "--submission", file)
    assert said(capsys, command.main, *words, "--size", 48)["images"] == 24
    scored = metrics(capsys, dense, "--submission", file, "--size", 48)
    direct = metrics(capsys, dense, "--size", 48)
    assert scored["miou"] > 0
    assert scored == {name: direct[name] for name in scored}
    assert set(direct) - set(scored) == {"loss", "cross_entropy"}
    recipe = dense / "recipe.yaml"
    assert metrics(capsys, recipe, "--submission", file, "--size", 48) == scored
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    line = complaint(capsys, evaluation.main, dense, "--submission", file, "--size", 48)
    assert "of 24 images 1 are missing" in line


def test_masks_are_the_classes_and_overlays_are_images(capsys, dense, tmp_path):
    told = said(capsys, command.main, dense, "--split", "val", "-o", tmp_path, "--overlays")
    masks = sorted((tmp_path / "masks").glob("*.png"))
    assert len(masks) == len(list((tmp_path / "overlays").glob("*.png"))) == told["images"]
    source = shapes("test", masks=True, size=32, train=64, test=24)
    with Image.open(tmp_path / "truth" / "3.png") as truth:
        assert np.array_equal(np.asarray(truth), np.asarray(source[3][1]))
    with Image.open(tmp_path / "masks" / "3.png") as mask:
        assert mask.mode == "P" and mask.size == (32, 32)
        assert np.asarray(mask).max() < len(source.classes)
        palette = np.asarray(mask.getpalette()).reshape(-1, 3)
    assert np.array_equal(palette, PALETTE) and len(np.unique(palette, axis=0)) == 256
    assert palette[[1, 2, 15, VOID]].tolist() == [  # VOC's: the last is the rim of an object
        *([128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]),
    ]
    assert (tmp_path / "classes.txt").read_text().split() == list(source.classes)


def test_images_of_any_size_get_masks_of_their_size(capsys, dense, tmp_path):
    sizes = [(40, 30), (64, 64), (33, 50)]
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(sizes):
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    said(capsys, command.main, dense, "--on", tmp_path, "-o", tmp_path / "out")
    masks = sorted((tmp_path / "out" / "masks").glob("*.png"))
    assert [Image.open(mask).size for mask in masks] == sizes


def test_looks_and_ensembles_agree_with_themselves(capsys, dense, other):
    alone = metrics(capsys, dense)
    twice = metrics(capsys, dense, "--tta", "1.0")
    assert twice == alone
    assert metrics(capsys, dense, "--window", 64) == pytest.approx(alone, abs=1e-3)
    assert metrics(capsys, dense, "--tta", "hflip,1.5") != alone
    for kind in ("soft", "hard"):
        both = metrics(capsys, dense, other, "--ensemble", kind)
        assert both["miou"] > 0 and both != alone
    # of two that disagree the first has its way, so its argmax stands everywhere
    hard = metrics(capsys, dense, other, "--ensemble", "hard")
    assert hard["miou"] == alone["miou"] and hard["pixel_accuracy"] == alone["pixel_accuracy"]


def test_refinement_is_reported_beside_the_plain_numbers(capsys, dense):
    refine = "refine=[{dense_crf: {iterations: 2}}]"
    found = said(capsys, evaluation.main, dense, "--set", refine)["runs"][0]
    assert found["refined"]["by"] == ["dense_crf"]
    assert found["refined"]["seconds_a_image"] > 0
    assert found["metrics"] == metrics(capsys, dense)
    assert found["refined"]["metrics"]["pixel_accuracy"] != found["metrics"]["pixel_accuracy"]
    without = said(capsys, evaluation.main, dense, "--set", refine, "--no-refine")
    assert "refined" not in without["runs"][0]
    nothing = "refine=[{dense_crf: {gaussian_weight: 0, bilateral_weight: 0}}]"
    same = said(capsys, evaluation.main, dense, "--set", nothing)["runs"][0]
    assert same["refined"]["metrics"]["miou"] == same["metrics"]["miou"]
    capsys.readouterr()
    assert evaluation.main([str(dense), "--set", refine, "--classes"]) == 0
    out = capsys.readouterr().out
    assert "refined by dense_crf" in out and "Δ iou" in out and "confusion" not in out


def test_pseudo_labels_are_a_data_set_that_trains(capsys, dense, tmp_path):
    source = shapes("test", masks=True, size=32, train=64, test=24, seed=5)
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for i in range(12):
        source[i][0].save(folder / f"new{i}.png")
    # one of the evaluation's own among them
    shapes("test", masks=True, size=32, train=64, test=24)[3][0].save(folder / "known.png")
    out = tmp_path / "pseudo"
    words = (dense, "--on", folder, "-o", out, "--pseudo-labels", "--pixel-threshold", "0.22")
    told = said(capsys, command.main, *words)
    assert told["unlabelled"] == 13 and told["kept"] == len(list((out / "masks").iterdir()))
    assert [twin["name"] for twin in told["twins"]] == ["known.png"]
    assert sum(told["pixels"]["labelled"]) == 64 * 32 * 32
    masks = np.stack([np.asarray(Image.open(path)) for path in (out / "masks").iterdir()])
    assert set(np.unique(masks)) <= {*range(11), VOID} and (masks == VOID).any()
    options = "options: {masks: true, size: 32, train: 64, test: 24}"
    more = [word for word in DENSE if not word.startswith("dataset")]
    more += [f"dataset={{with_pseudo_labels: {{dataset: shapes, {options}, folder: {out}}}}}"]
    again = trained(tmp_path / "runs", "segmentation/quickstart", *more, "epochs=1")
    assert read_json(again / "status.json")["status"] == "done"


def test_labels_of_a_classifier(capsys, plain, tmp_path):
    told = said(capsys, command.main, plain, "--split", "val", "-o", tmp_path)
    with open(told["predictions"], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    source = shapes("test", size=16, train=64, test=100)
    hits = sum(row["class1"] == source.classes[source.targets[i]] for i, row in enumerate(rows))
    assert hits == pytest.approx(metrics(capsys, plain)["top1"])
    truths = [source.classes[target] for target in source.targets]
    assert [row["truth"] for row in rows] == truths
    assert read_labels(Path(told["predictions"])) == {row["image"]: row["class1"] for row in rows}
    assert all(float(row["p1"]) >= float(row["p5"]) > 0 for row in rows)


def test_names_in_its_table_do_nothing(capsys, plain, tmp_path):
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    table = read_json(run / "classes.json")
    table["class"] = ["=1+1", "\x1b[2J", "+a", "-b", "@c", "\td", "\re", "\u202ef", "-1.5", "가"]
    (run / "classes.json").write_text(json.dumps(table))
    for name in ("=1.png", "\x1b[31m.png", "-2.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "in" / name)
    told = said(capsys, command.main, run, "--on", tmp_path / "in", "-o", tmp_path / "out")
    text = Path(told["predictions"]).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["image"] for row in rows} == {"'-2.png", "'=1.png", "\\x1b[31m.png"}
    known = ["'=1+1", "\\x1b[2J", "'+a", "'-b", "'@c", "'\td", "\\re", "\\u202ef", "-1.5", "가"]
    assert {row[f"class{n}"] for row in rows for n in range(1, 6)} <= set(known)
    assert "\x1b" not in text and "\u202e" not in text


def test_names_of_predictions_keep_what_distinguishes_them(capsys, dense, plain, tmp_path):
    """Sub-folders, several inputs, an image named twice, one name with two endings."""
    base = tmp_path / "in"
    colour = Image.new("RGB", (32, 32), "red")
    names = ("a/000.jpg", "a/sub/000.jpg", "a/000.png", "b/000.jpg", "b/한글 이름.JPG")
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        colour.save(base / name, "PNG" if name.endswith("png") else "JPEG")
    (base / "b" / "notes.txt").touch()
    for given, called in (
        (["a"], ["000.jpg", "000.png", "sub/000.jpg"]),
        (["a", "b", "a/000.jpg"], sorted(names)),
        (["a/000.jpg"], ["000.jpg"]),
        (["a/000.jpg", "b/000.jpg"], ["a/000.jpg", "b/000.jpg"]),
    ):
        paths = [base / path for path in given]
        told = said(capsys, command.main, plain, "--on", *paths, "-o", tmp_path / "out")
        with open(told["predictions"], newline="", encoding="utf-8") as file:
            assert sorted(row["image"] for row in csv.DictReader(file)) == called
    capsys.readouterr()
    colour.save(base / "a" / "000.jpg.jpg")  # its mask would be called as 000.jpg's
    words = ("--on", base / "a", base / "b", "-o", tmp_path / "masks", "--overlays")
    assert command.main([str(dense), *map(str, words)]) == 0
    assert "predict: 1 skipped, not read as images: 1 x .txt" in capsys.readouterr().err
    for kind in ("masks", "overlays"):
        made = (tmp_path / "masks" / kind).rglob("*.png")
        assert sorted(path.relative_to(tmp_path / "masks" / kind).as_posix() for path in made) == [
            *("a/000.jpg.jpg.png", "a/000.jpg.png", "a/000.png.png", "a/sub/000.png"),
            *("b/000.png", "b/한글 이름.png"),
        ]


def test_all_damaged_images_are_named_before_any_is_predicted(capsys, plain, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        Image.effect_noise((64, 64), 90).save(folder / f"{name}.jpg")
    for name in "ac":
        cut = (folder / f"{name}.jpg").read_bytes()[:1000]
        (folder / f"{name}.jpg").write_bytes(cut)
    words = (plain, "--on", folder, "-o", tmp_path / "out")
    line = complaint(capsys, command.main, *words)
    assert "2 images cannot be used: " in line and "in/a.jpg: not a readable image (" in line
    assert "in/c.jpg: not a readable image" in line
    assert line.endswith("or leave such images out: --skip-unreadable.")
    assert not (tmp_path / "out").exists()
    assert said(capsys, command.main, *words, "--skip-unreadable")["images"] == 1


def test_what_does_not_go_together_is_said(capsys, dense, plain, other, tmp_path):
    out = tmp_path / "o"
    split = ("--split", "val", "-o", out)
    wrong = {
        "--overlays is for masks": (plain, *split, "--overlays"),
        "add --ensemble": (dense, other, *split),
        "its 'task' is not that of the first": (dense, plain, *split, "--ensemble", "soft"),
        "no image": (dense, "--on", tmp_path, "-o", out),
        "no run folder": (tmp_path, *split),
        "--tta: 'up'": (dense, *split, "--tta", "up"),
        "--pseudo-labels looks at unlabelled images": (dense, *split, "--pseudo-labels"),
    }
    for line, words in wrong.items():
        assert line in complaint(capsys, command.main, *words)
    assert "--size is for masks" in complaint(capsys, evaluation.main, plain, "--size", "16")
    refine = ("--set", "refine=[dense_crf]")
    assert "no masks to refine" in complaint(capsys, evaluation.main, plain, *refine)


def test_a_task_must_fit_its_data(capsys, tmp_path):
    for recipe, dataset, line in (
        ("debug", "{shapes: {masks: true}}", "it has masks. Set task: segmentation"),
        ("segmentation/quickstart", "shapes", "it has no masks. Set task: classification"),
    ):
        words = [f"recipes/{recipe}.yaml", f"dataset={dataset}", "--runs", tmp_path]
        assert f"do not fit: {line}" in complaint(capsys, train.main, *words)


def test_early_stopping_ends_and_stays_ended(plain):
    rows = run_folder.read_rows(plain / "metrics.jsonl")
    assert len(rows) == 3  # the first is the best, two are not better
    assert read_json(plain / "summary.json")["status"] == "done"
    assert train.main([str(plain), "--quiet"]) == 0
    assert run_folder.read_rows(plain / "metrics.jsonl") == rows


def test_names_of_files_in_any_language_and_encoding(plain, dense, tmp_path):
    names = ["가방.png", os.fsdecode("가방.png".encode("cp949"))]
    images = tmp_path / "사진"
    images.mkdir()
    for name in names:
        Image.new("RGB", (32, 32)).save(images / name)
    for run in (plain, dense):
        assert command.main([str(run), "--on", str(images), "-o", str(tmp_path / "out")]) == 0
    rows = list(csv.reader((tmp_path / "out/predictions.csv").open(encoding="utf-8")))
    assert sorted(row[0] for row in rows[1:]) == ["\\xb0\\xa1\\xb9\\xe6.png", "가방.png"]
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == set(names)

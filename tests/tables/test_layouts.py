"""The tables themselves: the Week-3 report's, the run log, the losses, and what differs."""

import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import edit, make_run

from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.runs.reader import add_note, collect
from vision_tutorial.tables import labels
from vision_tutorial.tables.comparison import rows_of
from vision_tutorial.tables.layouts import LAYOUTS, View
from vision_tutorial.tables.table import Table

REPORT = {"r0": 70.72, "r1": 78.19, "r2": 80.31, "r3": 80.91, "r4": 82.13, "r5": 81.28}


def table(root: Path, layout: str, each: bool = False, **view: Any) -> Table:
    return LAYOUTS[layout](View(rows_of(collect([root])[0], each), **view))


def by_title(made: Table) -> dict[str, list[str]]:
    """The texts under each title."""
    columns = zip(*made.texts(), strict=True)
    return {c.title: list(texts) for c, texts in zip(made.columns, columns, strict=True)}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Runs of r0 … r5 whose best is the report's."""
    for name, best in REPORT.items():
        make_run(tmp_path, name, values=[10.0, best, best - 0.5], seconds=1000)
    return tmp_path


def test_week3_is_the_reports_table(report: Path) -> None:
    add_note(report / "r3" / "1", "slower at first,\nbetter in the end")
    add_note(report / "r3" / "1", "again")
    made = table(report, "week3", spread=0.4)
    note = [made.rows[n][0] for n in range(6)]
    assert note == list(REPORT)
    found = by_title(made)
    expected = {  # from shared/spec/week3-classification.md
        "batch size": ["512"] * 6,
        "optimizer": ["sgd"] * 6,
        "momentum": ["0.4"] + ["0.9"] * 5,
        "weight decay": ["1e-9"] + ["0.001"] * 5,
        "schedule": ["cosine"] * 6,
        "lr": ["0.1"] + ["0.25"] * 5,
        "warmup lr / epochs": ["0.01 / 5"] * 6,
        "min lr": ["1e-6"] * 6,
        "hflip": ["0.7"] * 6,
        "colour jitter": ["0.2"] * 2 + ["–"] * 4,
        "AutoAugment": ["–"] * 2 + ["original"] * 4,
        "CutMix": ["0"] * 3 + ["1"] * 2 + ["0.5"],
        "Mixup": ["0"] * 5 + ["0.5"],
        "epochs": ["200"] * 4 + ["250"] * 2,
        "best top1 (CIFAR-100)": [f"{best:.2f}" for best in REPORT.values()],
    }
    assert [title for title in found if title in expected] == list(expected), "in its order"
    assert {title: found[title] for title in expected} == expected
    assert found["expected top1"] == found["best top1 (CIFAR-100)"]
    assert found["expected time"] == ["48m0s", "49m45s", "47m25s", "49m31s", "1h1m", "1h1m"]
    assert found["time"] == ["50m0s"] * 6
    beyond, within = "beyond noise", "within noise"
    assert found["noise"] == ["–", beyond, beyond, within, beyond, within]
    notes = "slower at first, better in the end / again"
    assert found["Analyze"] == [*["–"] * 3, notes, *["–"] * 2]
    assert made.notes[-1] == "A single run is given an assumed spread between seeds, s = 0.40."


def test_generic_shows_what_differs(report: Path) -> None:
    made = table(report, "generic")
    assert [column.key for column in made.columns] == [
        "run",
        *["augment", "mix", "epochs", "optimizer"],
        *["best", "expected_top1", "last"],
        *["changed", "over", "delta", "noise"],
        *["seconds", "expected_seconds"],
    ]
    found = by_title(made)
    assert found["over"] == ["–", "r0", "r1", "r2", "r3", "r4"]
    assert found["Δ"] == ["–", "+7.47", "+2.12", "+0.60", "+1.22", "−0.85"]
    assert found["noise"] == ["–"] + ["unknown"] * 5
    assert made.notes[-1].startswith("Unknown: too few runs")
    assert found["last top1"] == [f"{best - 0.5:.2f}" for best in REPORT.values()]
    everything = table(report, "generic", everything=True)
    assert {"seed", "precision", "warmup.lr"} <= {column.key for column in everything.columns}


def test_claims_stand_beside_what_was_measured_and_repeats_are_told(tmp_path: Path) -> None:
    for n, seed in enumerate((1, 2, 2)):
        claims = "expects={top5: 64.5, top1: 70, lb: null, minutes: 3}"
        make_run(tmp_path, "debug", f"seed={seed}", claims, id=f"s{n}", values=[50.0 + n])
    made = table(tmp_path, "generic")
    assert [column.title for column in made.columns][1:] == [
        *["best top1", "expected top1", "last top1", "top5", "expected top5"],
        *["time", "expected time"],
    ]
    best, last, top5 = ("51.00 ± 1.41 (n=2)",) * 2 + ("61.00 ± 1.41 (n=2)",)
    assert made.texts()[0][1:] == [best, "70.00", last, top5, "64.50", "1m0s", "3m0s"]
    assert made.notes == (
        "±: sample standard deviation over n seeds.",
        "Of runs with one recipe and one seed the newest counts; left out: debug/s1.",
    )


def test_status_metric_and_split_are_shown_where_they_differ(tmp_path: Path) -> None:
    make_run(tmp_path, "r0")
    assert "status" not in by_title(table(tmp_path, "generic"))
    folder = make_run(tmp_path, "r1", status="running")
    assert by_title(table(tmp_path, "generic"))["status"] == ["done", "running"]
    assert by_title(table(tmp_path, "week3", language="ko"))["상태"] == ["완료", "실행 중"]
    for strange in ("best", "{x}", "{0}", "a\nb"):
        edit(folder / "status.json", status=strange)
        assert by_title(table(tmp_path, "generic"))["status"][1] == strange.replace("\n", " ")
    make_run(tmp_path, "debug", metric="val/miou")
    edit(tmp_path / "r0" / "1" / "summary.json", chosen_on="holdout")
    found = by_title(table(tmp_path, "generic"))
    assert found["metric"] == ["val/miou", "val/top1", "val/top1"]
    assert found["best chosen on"][:2] == ["test", "holdout"] and "best" in found


def test_losses(tmp_path: Path) -> None:
    losses = ("loss={focal: 0.3, cross_entropy: 0.7}", "loss=focal")
    for n, loss in enumerate(losses):
        overrides = (loss, "optimizer={adamw: {lr: 1.0e-4}}")
        make_run(tmp_path, "debug", *overrides, id=str(n), metric="val/miou")
    make_run(tmp_path, "debug", "loss=focal", "aux_loss=cross_entropy", id="3", metric="val/miou")
    found = by_title(table(tmp_path, "losses"))
    assert found["loss: decoder ‖ auxiliary"] == ["0.3 focal + 0.7 CE", "focal", "focal ‖ CE"]
    assert found["optimizer"][:2] == ["adamw(0.0001)"] * 2
    assert found["best miou"] == ["60.00"] * 3


def test_runlog(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "r1", "seed=3")
    make_run(tmp_path, "r3", status="failed", values=[])
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    add_note(folder, "LB .60")
    made = table(tmp_path, "runlog", each=True)
    assert [column.title for column in made.columns] == [
        *["Date", "Run Name", "Model Name", "Arguments", "WandB link", "notes"]
    ]
    first, second = made.texts()
    assert first[:3] == ["2026-11-25", "r1", "resnet50"]
    assert first[3].startswith("batch_size=512, loss=CE, epochs=200, schedule=cosine, seed=3, ")
    assert "optimizer=sgd(0.25, weight_decay=0.001, momentum=0.9)" in first[3]
    assert "mix=cutmix" in second[3], "what differs is told too"
    assert "augment=…, auto_augment" in second[3]
    assert first[4:] == ["offline", "best top1 60.00; LB .60"]
    assert second[4:] == ["–", "failed"]
    (folder / "wandb" / "url").write_text("https://wandb.ai/a/b/runs/c\n")
    assert table(tmp_path, "runlog", each=True).texts()[0][4] == "https://wandb.ai/a/b/runs/c"


def test_every_word_is_there_in_korean(report: Path) -> None:
    english, korean = (labels.words(language) for language in labels.LANGUAGES)
    assert all([*english.values(), *korean.values()])
    for key, text in english.items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", korean[key]))
    missing = {f"key {name}" for name in Recipe.model_fields} - set(korean)
    assert not missing, "a key of a recipe has no Korean name"
    kinds = {kind for f in Recipe.model_fields.values() for kind in annotated(f.annotation)}
    inner = {f"part {name}" for kind in kinds for name in getattr(kind, "model_fields", ())}
    assert "part patience" in inner and not inner - set(korean), "a part of a key has none"
    make_run(report, "debug", status="failed")
    for layout in LAYOUTS:
        made = table(report, layout, language="ko", everything=True, spread=0.4)
        titles = {column.title for column in made.columns}
        foreign = {title for title in titles if not re.search("[가-힣]", title)}
        assert foreign <= {"Δ", "AutoAugment", "CutMix", "Mixup", "channels_last"}
        assert all(re.search("[가-힣]", note) for note in made.notes)
    assert labels.key_words("warmup.lr", "ko") == "웜업 학습률"
    assert labels.key_words("warmup.lr", "en") == "warmup.lr"
    assert labels.key_words("unheard.of", "ko") == "unheard of"


def annotated(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]

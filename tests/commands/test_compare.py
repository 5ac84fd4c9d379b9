"""The command `compare`: what it reads, writes, says and refuses."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import make_run
from wandb_file import read

from vision_tutorial.commands import compare
from vision_tutorial.commands import note as noting
from vision_tutorial.runs import wandb_reader
from vision_tutorial.runs.reader import Run

ROOT = Path(__file__).parents[2]
# the report's best top-1 and seconds
REPORT = {"r0": (70.72, 2880), "r1": (78.19, 2985), "r2": (80.31, 2845), "r3": (80.91, 2971)}
REPORT |= {"r4": (82.13, 3660), "r5": (81.28, 3660)}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """./runs with the report's numbers."""
    for name, (best, seconds) in REPORT.items():
        values = [best - 20, best, best - 0.4]
        make_run(tmp_path / "runs", name, values=values, seconds=seconds / 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def shown(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert compare.main(words) == 0
    return capsys.readouterr().out


PAGE = ROOT / "docs" / "compare.md"
EXAMPLE = re.compile(r"```sh\n([^`]*?)\n```\n(?:\n<!-- shown -->\n(.*?)<!-- end -->)?", re.S)


def test_what_the_page_shows_is_what_comes_out(report, capsys, monkeypatch):
    """With WRITE_DOCS=1 it writes the page anew."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(found: re.Match) -> str:
        for line in found[1].splitlines():
            program, command, *words = shlex.split(line)
            assert program == "vision-tutorial"
            assert {"compare": compare, "note": noting}[command].main(words) == 0
        out = capsys.readouterr().out
        if found[2] is None:
            return found[0]
        return f"```sh\n{found[1]}\n```\n\n<!-- shown -->\n{out}<!-- end -->"

    page = PAGE.read_text("utf-8")
    made = EXAMPLE.sub(run, page)
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(made, "utf-8")
    assert made == PAGE.read_text("utf-8")
    assert page.count("<!-- shown -->") == 3


def test_formats_by_name_and_by_ending(report: Path, capsys: pytest.CaptureFixture) -> None:
    rows = list(csv.DictReader(io.StringIO(shown(capsys, "runs", "--format", "csv"))))
    assert [row["best top1"] for row in rows] == [str(best) for best, _ in REPORT.values()]
    assert [float(row["time (s)"]) for row in rows] == [s for _, s in REPORT.values()]
    starts = {"md": "| run |", "csv": "\ufeffrun,", "html": "<!doctype", "tex": "% Noise"}
    for ending, start in starts.items():
        file = Path(f"out.{ending}")
        assert shown(capsys, "runs", "-o", str(file)) == ""
        assert file.read_text("utf-8").startswith(start)
    shown(capsys, "runs", "-o", "out.md", "--format", "html")
    assert Path("out.md").read_text().startswith("<!doctype")


def test_rows_or_columns_seeds_order_and_all_keys(report, capsys):
    heads = ["| run | r0 | r1 | r2 | r3 | r4 | r5 |"]
    for words in (["--layout", "week3"], ["--transpose"]):
        text = shown(capsys, "runs", "--format", "markdown", *words)
        assert text.splitlines()[:1] == heads
    rows = json.loads(shown(capsys, "runs", "--layout", "week3", "--format", "json"))["rows"]
    assert [row["cutmix"] for row in rows] == [0, 0, 0, 1.0, 1.0, 0.5]
    make_run(report, "r3", "seed=1", id="2", values=[90.0])

    def first(*words: str) -> list[str]:
        text = shown(capsys, "runs", "--format", "csv", *words)
        return [row[0] for row in csv.reader(io.StringIO(text))][1:]

    assert first() == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert first("--sort", "best") == ["r3", "r4", "r5", "r2", "r1", "r0"]
    assert first("--each")[3:5] == ["r3/1", "r3/2"]
    assert "sync_bn" in shown(capsys, "runs", "--all", "--format", "csv").splitlines()[0]


def test_what_is_refused(report: Path, capsys: pytest.CaptureFixture) -> None:
    Path("empty").mkdir()
    assert compare.main(["empty", "none*"]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 3
    assert lines[0] == "left out empty: holds no run" and lines[1].startswith("left out none*: ")
    assert lines[2].startswith("error: no run in ") and "Name run folders" in lines[2]
    assert compare.main(["runs", "-o", "nowhere/out.md"]) == 5
    assert "cannot write nowhere/out.md" in capsys.readouterr().err
    assert compare.main(["runs", "--sort", "epoch"]) == 2
    assert "no column called 'epoch'; did you mean 'epochs'?" in capsys.readouterr().err
    assert compare.main(["runs", "--spread=0"]) == 2
    assert "--spread: given 0; a number above 0" in capsys.readouterr().err


def test_200_runs_among_damaged_ones_without_torch(tmp_path: Path) -> None:
    first = make_run(tmp_path, "r3", "seed=1", id="0", values=[float(n) for n in range(260)])
    for n in range(1, 200):
        shutil.copytree(first, tmp_path / "r3" / str(n))
        text = (first / "recipe.yaml").read_text().replace("seed: 1\n", f"seed: {n // 2}\n")
        (tmp_path / "r3" / str(n) / "recipe.yaml").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "r3" / "3" / "summary.json").write_text('{"best": ')
    (tmp_path / "r3" / "4" / "recipe.yaml").write_bytes(b"\xff")
    code = (
        "import sys; from vision_tutorial.__main__ import main; "
        "code = main(['compare', sys.argv[1]]); "
        "assert not {'torch', 'numpy', 'wandb', 'timm'} & set(sys.modules); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("left out ") for line in lines)
    assert "(n=100)" in done.stdout


def test_a_project_of_wandb_beside_folders(report, capsys, monkeypatch):
    summary = {"status": "done", "metric": "val/top1", "best": {"epoch": 1, "value": 99.0}}
    far = Run(name="far", id="far-1", recipe={"epochs": 7}, status="done", summary=summary)
    monkeypatch.setattr(compare, "project_runs", lambda word: [far] * (word == "wandb:a/b"))
    text = shown(capsys, "runs", "wandb:a/b", "--format", "csv", "--sort", "best")
    assert text.splitlines()[1].startswith("far,") and len(text.splitlines()) == 8
    monkeypatch.undo()
    monkeypatch.setattr(wandb_reader, "decide_mode", lambda mode, wandb: ("offline", "no key"))
    assert compare.main(["wandb:a/b"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: wandb:a/b: cannot be read (no key)") and err.count("\n") == 1


def test_offline_the_table_is_recorded(report, capsys, monkeypatch):
    assert os.environ["WANDB_MODE"] == "disabled"
    assert compare.main(["runs", "--wandb", "-o", "out.md"]) == 0
    assert capsys.readouterr().err == "wandb: nothing was logged\n"
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_run(report, "r3", "seed=1", id="2", values=[90.0])
    assert compare.main(["runs", "--wandb", "-o", "out.md"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("wandb: offline (as asked)") and err[1] == "wandb: no report (offline)"
    (file,) = report.parent.glob("wandb/offline-run-*/files/media/table/compare*.json")
    table = json.loads(file.read_text())
    best = table["columns"].index("best top1")
    assert table["columns"][best + 1 : best + 3] == ["best top1 ±", "best top1 n"]
    assert [row[0] for row in table["data"]] == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert table["data"][3][best] == pytest.approx((80.91 + 90) / 2)
    (run,) = [record.run for record in read(report.parent) if record.HasField("run")]
    assert run.project == "vision-tutorial" and run.run_id.startswith("compare-")

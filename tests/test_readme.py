"""What the READMEs show is what runs: every command and every block."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import Ranks

from vision_tutorial import __main__ as program
from vision_tutorial import (
    build,  # noqa: F401  (imported before the fork)
    train,
)
from vision_tutorial.recipe.loading import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
KOREAN = (ROOT / "README.ko.md").read_text("utf-8")
DATA = "dataset={shapes: {train: 64, test: 30}}"
# r4 becomes this small; everything else of it stays
SMALL = [DATA, "model={test_resnet: {stem: cifar}}", "batch_size=16", "epochs=1"]
SMALL += ["warmup={}", "cooldown={}", "threads=1"]
RUN = "runs/r4/20261122-101500"


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Each `vision-tutorial …` that a text shows in its lines and tables."""
    return [" ".join(line.split()) for line in re.findall(r"`(vision-tutorial [^`]+)`", text)]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small r4, to stand for the run folder that the README names."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["recipes/r4.yaml", *SMALL, "--runs", str(folder), "--id", Path(RUN).name]
    assert Ranks(1, lambda rank: train.main(words), quiet=True).join() == [0]
    return folder / "r4" / Path(RUN).name


def test_the_table_shows_every_command() -> None:
    rows = re.findall(r"^\| `vision-tutorial ([\w-]+)", README, re.MULTILINE)
    assert rows == list(program.COMMANDS)
    assert commands(README) == commands(KOREAN)


@pytest.mark.parametrize("line", commands(README))
def test_commands_run(line: str, small_run: Path, capfd: Any, tmp_path: Path) -> None:
    words = shlex.split(line)[1:]
    words = [str(small_run) if word.startswith("runs/r4/") else word for word in words]
    if words[0] == "leaderboard":
        words[1] = str(small_run.parents[1])
    if words[0] == "import":
        words[-1] = str(tmp_path / words[-1])
        Path(words[-1]).write_text("{model: resnet50, opt: sgd, sched: cosine, batch_size: 64}")
    more = {
        "train": ["--runs", str(tmp_path), *SMALL] if "runs/" not in line else [],
        "sweep": ["--dry-run"],
        "reproduce": ["--dry-run", "--runs", str(tmp_path)],
        "rerun": ["--against", str(small_run)],
        "bench": [*SMALL, "--only", "step", "--rounds", "1", "--seconds", "0.05"],
        "pack": [DATA],
        "find-lr": [
            *SMALL,
            "mix=null",
            "--steps",
            "60",
            "--from",
            "1e-3",
            "-o",
            str(tmp_path / "lr.png"),
        ],
    }.get(words[0], [])
    if "segmentation" in line:  # tests/segmentation train it
        words[0], more = "explain", []
    if words[0] == "reproduce":
        words = ["reproduce", "week3", "--scale", "0.01"]
    if words[0] in ("predict", "report", "pack"):
        words[-1] = str(tmp_path / words[-1])
    code = Ranks(1, lambda rank: program.main([*words, *more])).join(timeout=300)
    out, err = capfd.readouterr()
    assert code == [0] or words == ["doctor"], err
    assert "Traceback" not in err and out


def test_the_torchrun_line_letter_for_letter(tmp_path: Path) -> None:
    (block,) = blocks(README, "sh")
    line = block.strip()
    assert line == "torchrun --nproc 4 -m vision_tutorial.train recipes/r4.yaml"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        # nothing is compiled, in none of the four processes
        [*shlex.split(line), *SMALL, "data.path=timm", "workers=0", "--runs", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.glob("r4/*")
    assert done.stdout.splitlines()[-1] == f"run: {folder}"
    assert "batch 16 = 4 processes x 1 x 4 images" in done.stdout


def test_the_recipe_loads(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "mine.yaml").write_text(text)
    loaded = load(tmp_path / "mine.yaml")
    assert [term.name for term in loaded.recipe.loss] == ["cross_entropy", "focal"]
    assert loaded.base_path.name == "r1.yaml"


def test_the_korean_readme_has_the_same_blocks_and_tables() -> None:
    for language in ("bash", "sh", "yaml", "text"):
        assert blocks(README, language) == blocks(KOREAN, language)
    assert README.count("\n## ") == KOREAN.count("\n## ")
    rows = [re.findall(r"^\| `(r\d.*?)` .*?\| ([\d.]+)", text, re.M) for text in (README, KOREAN)]
    assert rows[0] == rows[1] and len(rows[0]) == 7
    assert all(len(text.splitlines()) < 150 for text in (README, KOREAN))


def test_ci_runs_the_readmes_own_commands() -> None:
    first, second = (block.strip() for block in blocks(README, "bash"))
    assert "\n" not in first and "recipes/quickstart.yaml" in first and second == "pytest"
    assert ".ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()

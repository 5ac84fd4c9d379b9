"""What the READMEs show is what runs: every command and every block."""

import ast
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
from vision_tutorial import build  # noqa: F401  (imported before the fork)
from vision_tutorial.recipe.loading import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
KOREAN = (ROOT / "README.ko.md").read_text("utf-8")
# r4 becomes this small; everything else of it stays
SHRINK = [
    "dataset={shapes: {train: 64, test: 30}}",
    "model={test_resnet: {stem: cifar}}",
    "batch_size=16",
    "epochs=1",
    "warmup={}",
    "cooldown={}",
    "threads=1",
]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines of ```sh blocks, without their comments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines]


ON_PROGRAM = [line for line in commands(README) if line.startswith("vision-tutorial")]


def environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}


def run(line: str, folder: Path, **more: str) -> str:
    done = subprocess.run(
        shlex.split(line), cwd=ROOT, env=environment() | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small r4, to stand for the run folder that the README names."""
    from vision_tutorial import train

    folder = tmp_path_factory.mktemp("runs")
    words = ["recipes/r4.yaml", *SHRINK, "--runs", str(folder), "--id", "20261122-101500"]
    assert Ranks(1, lambda rank: train.main(words), quiet=True).join() == [0]
    return folder / "r4" / "20261122-101500"


def test_there_are_commands_to_test() -> None:
    commands = {line.split()[1] for line in ON_PROGRAM if len(line.split()) > 1}
    assert commands == set(program.COMMANDS), "the README shows each command"
    others = [line.split()[0] for line in commands(README) if line not in ON_PROGRAM]
    assert others == ["torchrun"]


@pytest.mark.parametrize("line", ON_PROGRAM)
def test_commands_of_the_program(line: str, small_run: Path, capfd: Any, tmp_path: Path) -> None:
    words = shlex.split(line)[1:]
    folders = [word.startswith("runs/r4/") for word in words]
    words = [str(small_run) if there else w for w, there in zip(words, folders, strict=True)]
    if words[:1] == ["train"]:
        more = [] if any(folders) else [*SHRINK, "--runs", str(small_run.parent.parent)]
        words += more
    if words[:1] == ["predict"]:
        words[-1] = str(tmp_path / words[-1])
    if words[:1] == ["sweep"]:
        words += ["--dry-run"]
    if words[:1] == ["reproduce"]:
        words = ["reproduce", "week3", "--scale", "0.01", "--runs", str(tmp_path), "--dry-run"]
    if words[:1] == ["rerun"]:
        words += ["--against", str(small_run)]
    if words[:1] == ["pack"]:
        words[-1:] = [str(tmp_path / words[-1]), SHRINK[0]]
    if words[:1] == ["report"]:
        words[-1] = str(tmp_path / words[-1])
    if words[:1] == ["bench"]:
        words += [*SHRINK, "--only", "step", "--rounds", "1", "--seconds", "0.05"]
    code = Ranks(1, lambda rank: program.main(words)).join(timeout=300)
    out, err = capfd.readouterr()
    assert code == [0] or words == ["doctor"], err
    assert "Traceback" not in err and out


def test_the_torchrun_line_letter_for_letter(tmp_path: Path) -> None:
    (line,) = (line for line in commands(README) if line.startswith("torchrun"))
    assert line == "torchrun --nproc 4 -m vision_tutorial.train recipes/r4.yaml"
    out = run(shlex.join([*shlex.split(line), *SHRINK, "--runs", str(tmp_path)]), tmp_path)
    (folder,) = tmp_path.glob("r4/*")
    assert out.splitlines()[-1] == f"run: {folder}"
    assert "batch 16 = 4 processes x 1 x 4 images" in out


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "mine.yaml").write_text(text)
    loaded = load(tmp_path / "mine.yaml")
    assert [term.name for term in loaded.recipe.loss] == ["cross_entropy", "focal"]
    assert loaded.base_path.name == "r1.yaml"


def test_the_loss_in_the_readme_trains(tmp_path: Path, capfd: Any) -> None:
    from vision_tutorial import train

    (code,) = blocks(README, "python")
    ast.parse(code)
    (tmp_path / "my_losses.py").write_text(code)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(Path("recipes/debug.yaml").read_text() + "imports: [my_losses.py]\n")
    words = [str(recipe), *SHRINK, "mix=null", "loss=brier", "--trust-imports"]
    words += ["--runs", str(tmp_path / "runs")]
    assert Ranks(1, lambda rank: train.main(words)).join() == [0], capfd.readouterr().err


def test_the_korean_readme_keeps_step() -> None:
    for language in ("bash", "sh", "yaml", "python"):
        ours, theirs = blocks(README, language), blocks(KOREAN, language)
        bare = [[line.partition("#")[0].rstrip() for line in b.splitlines()] for b in ours]
        assert bare == [[x.partition("#")[0].rstrip() for x in b.splitlines()] for b in theirs]
    assert README.count("\n## ") == KOREAN.count("\n## ")
    rows = [re.findall(r"^\| `(.*?)` .*?\| ([\d.]+)", text, re.M) for text in (README, KOREAN)]
    assert rows[0] == rows[1] and len(rows[0]) == 7


def test_ci_runs_the_readmes_own_commands() -> None:
    first, second = (block.strip() for block in blocks(README, "bash"))
    assert "\n" not in first and "recipes/quickstart.yaml" in first and second == "pytest"
    assert ".ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()

"""Names in Korean, in bytes that are no UTF-8, and on streams that lack their letters."""

import io
import os
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from vision_tutorial import train
from vision_tutorial.core.errors import run_main
from vision_tutorial.core.names import checked_name, folder_name, readable
from vision_tutorial.core.processes import environment
from vision_tutorial.recipe.loading import load
from vision_tutorial.sweeps.sweep_file import Sweep

KOREAN = "나의 레시피"
FOREIGN = os.fsdecode("가방".encode("cp949"))  # a zip from a Korean Windows


def test_a_file_name_becomes_a_folder_name_in_its_own_letters() -> None:
    assert folder_name(unicodedata.normalize("NFD", KOREAN)) == "나의-레시피"
    assert folder_name("--x y!") == "x-y-" and folder_name("हिन्दी") == "हिन्दी"
    assert [folder_name(text) for text in ("...", "!!", "")] == ["recipe"] * 3
    assert folder_name(FOREIGN) == "xb0-xa1-xb9-xe6"
    for name in ("나의 레시피", "..", "a/b", "x" * 65, FOREIGN, "a\u202eb", "a\n"):
        with pytest.raises(ValueError):
            checked_name(name)
    assert checked_name(unicodedata.normalize("NFD", "실험.1")) == "실험.1"


def test_runs_of_a_korean_recipe_and_the_command_that_goes_on(tiny: Path, capsys) -> None:
    path = tiny.with_name(unicodedata.normalize("NFD", f"{KOREAN}.yaml"))
    tiny.rename(path)
    assert load(path).recipe.name == "나의-레시피" == load(path, ["name=나의-레시피"]).recipe.name
    assert Sweep.name.fget(type("S", (), {"path": path})) == "나의-레시피"
    runs, small = path.parent / "내 결과", ["dataset.shapes.train=32", "batch_size=16", "threads=1"]
    words = [str(path), *small, "--runs", str(runs), "--id", "a", "--steps", "1", "--quiet"]
    assert train.main(words) == 0
    command = shlex.split(capsys.readouterr().out.partition("continue with: ")[2].splitlines()[0])
    assert command == ["vision-tutorial", "train", str(runs / "나의-레시피" / "a")]


@pytest.mark.parametrize("module", ["vision_tutorial", "vision_tutorial.train"])
def test_files_have_names_where_python_takes_them_for_ascii(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{KOREAN}.yaml").write_text("epoch: 1", "utf-8")
    (tmp_path / "x.yaml").write_text(f"extends: {KOREAN}.yaml", "utf-8")
    words = [sys.executable, "-m", module, *["explain"] * (module[-5:] != "train"), "x.yaml"]
    ascii = environment() | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(words, env=ascii, cwd=tmp_path, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode == 2 and f"{KOREAN}.yaml" in said and "write epochs=1" in said


@pytest.mark.parametrize("asked", [None, "ascii"])
def test_no_letter_ends_a_command(monkeypatch, asked: str | None) -> None:
    """A terminal under LANG=C shows UTF-8, unless PYTHONIOENCODING asks for something else."""
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if asked:
        monkeypatch.setenv("PYTHONIOENCODING", asked)
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", "strict") for _ in "12")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    escaped = "새".encode().decode("ascii", "surrogateescape")  # as an ASCII locale reads it
    assert run_main(lambda: print(f"{KOREAN} {FOREIGN} {escaped}", file=sys.stderr)) == 0
    err.flush()
    shown = "?? ???" if asked else KOREAN
    assert (
        err.buffer.getvalue().decode() == f"{shown} \\xb0\\xa1\\xb9\\xe6 {'?' if asked else '새'}\n"
    )
    assert readable(f"{FOREIGN}{escaped}") == "\\xb0\\xa1\\xb9\\xe6새" and readable("\ud800") == "?"

"""The installed package: what its wheel holds, and recipes by name without a checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy and unpacked."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("package")
    source, unpacked = folder / "source", folder / "unpacked"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("vision_tutorial", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*.*") if path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_holds_every_file_of_the_package_and_the_recipes(installed: Path) -> None:
    recipes = {f"recipes/{name}" for name in files(ROOT / "recipes")}
    assert "recipes/segmentation/camvid.yaml" in recipes
    assert files(installed / "vision_tutorial") == files(ROOT / "vision_tutorial") | recipes


def test_an_installed_package_knows_its_recipes_by_name(installed: Path, tmp_path: Path) -> None:
    program = "import sys; from vision_tutorial.recipe.loading import load; "
    program += "print(*(load(name).path for name in sys.argv[1:]))"
    words = [sys.executable, "-c", program, "recipes/r4.yaml", "segmentation/b:0503-b6"]
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    folder = installed / "vision_tutorial" / "recipes"
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == f"{folder}/r4.yaml {folder}/segmentation/b.yaml:0503-b6\n"


def test_the_list_of_packages_is_complete() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "vision_tutorial").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(told["packages"]) == found | {"vision_tutorial.recipes"}

"""The installed package: what its wheel holds, and its commands without a checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOLD = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("package")
    source, ignored = folder / "source", shutil.ignore_patterns("__pycache__")
    for name in ("vision_tutorial", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def run(wheel: Path) -> Callable[..., str]:
    """Runs a program of a fresh environment, with the wheel, in an empty folder: what it prints."""
    fresh, empty = wheel.parent / "fresh", wheel.parent / "empty"
    venv.create(fresh, with_pip=True, symlinks=True)
    install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
    env = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([fresh / "bin/python", *install], check=True, env=env)
    (packages,) = fresh.glob("lib/*/site-packages")  # what the wheel needs is of this environment
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty.mkdir()

    def run(program: str, *words: str) -> str:
        command = [fresh / "bin" / program, *words]
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*.*") if path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_holds_every_file_of_the_package_and_the_recipes(wheel: Path) -> None:
    recipes = {f"recipes/{name}" for name in files(ROOT / "recipes")}
    assert "recipes/segmentation/camvid.yaml" in recipes
    held = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in held if "/" in name and ".dist-info/" not in name}
    expected = files(ROOT / "vision_tutorial") | recipes
    assert "py.typed" in expected
    assert inside == {f"vision_tutorial/{name}" for name in expected}


def test_the_commands_in_an_empty_folder(run: Callable[..., str]) -> None:
    listed = run("vision-tutorial", "recipes").splitlines()
    assert {line.split()[0] for line in listed} >= {"quickstart", "r4", "segmentation/camvid"}
    assert run("vision-tutorial", "recipes", "copy", "r4", ".").startswith("r4.yaml: ")
    program = "import sys; from vision_tutorial.recipe.loading import load; print(sys.prefix, "
    program += "*(load(name).path for name in sys.argv[1:]), load('r4.yaml', ['epochs=7']).path)"
    names = ["recipes/r4.yaml", "r4", "segmentation/b:0503-b6"]
    prefix, *paths = run("python", "-c", program, *names).split()
    (inside,) = Path(prefix).glob("lib/*/site-packages/vision_tutorial/recipes")
    assert paths[:2] == [f"{inside}/r4.yaml"] * 2
    assert paths[2:] == [f"{inside}/segmentation/b.yaml:0503-b6", "r4.yaml"]
    explained = run("vision-tutorial", "explain", "segmentation/camvid")
    assert f"# {inside}/segmentation/camvid.yaml" in explained


def test_training_and_the_python_face_in_an_empty_folder(run: Callable[..., str]) -> None:
    tiny = [
        "augment=[]",
        "dataset={shapes: {train: 32, test: 10, size: 16}}",
        "wandb.mode=disabled",
    ]
    run("vision-tutorial", "train", "quickstart", *tiny, "epochs=1", "batch_size=16", "--quiet")
    program = "import sys, vision_tutorial as vt; print('torch' in sys.modules); "
    program += "print(vt.load(next(__import__('pathlib').Path('runs/quickstart').iterdir()))); "
    program += "print(vt.compare(['runs']))"
    said = run("python", "-c", program)
    assert re.match(r"False\nModel\('runs/quickstart/.*': resnet10t, 10 classes\)\n", said), said
    assert said.count("quickstart") == 2


def test_the_list_of_packages_is_complete() -> None:
    folders = {path.parent for path in (ROOT / "vision_tutorial").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(TOLD["tool"]["setuptools"]["packages"]) == found | {"vision_tutorial.recipes"}


def test_each_python_that_is_promised_is_tested() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(TOLD["project"]["classifiers"]))
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    (tested,) = re.findall(r"python: \[(.*)\]", workflow)
    assert promised == re.findall(r"3\.\d+", tested) == ["3.11", "3.12", "3.13"]
    assert TOLD["project"]["requires-python"] == f">={promised[0]}"

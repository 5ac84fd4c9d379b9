"""benchmarks/gpu.sh on a CPU: parts in two calls, every phase, going on, one JSON file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vision_tutorial.commands import pack
from vision_tutorial.core import arrays

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "benchmarks" / "gpu.sh")
SHAPES = "dataset={shapes: {train: 64, test: 30, size: 16}}"
WORDS = ["threads=1", "data.path=timm", "workers=0"]  # nothing is compiled
# compiling takes minutes on a CPU, and runs through the same functions
QUICK = {"REHEARSE": "1", "STAGES": "eval", "ROUNDS": "1", "PACE": "0.05", "SPARE": "1"}
QUICK |= {"PARITY": "test_chains_on_real_images", "SMALL": "8"}
QUICK |= {"PHASES": "parity audit bench quarter fast train"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small data set in two parts."""
    root = tmp_path_factory.mktemp("gpu")
    assert pack.main(["arrays", "recipes/debug.yaml", str(root / "set"), SHAPES]) == 0
    parts_script("pack", root / "set", root / "out", "--mib", "0.04")
    folders = sorted((root / "out").iterdir())
    assert len(folders) == 2
    return folders


def parts_script(*words: object, code: int = 0) -> str:
    """What benchmarks/pack_parts.py prints."""
    command = [sys.executable, ROOT / "benchmarks" / "pack_parts.py", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_damaged_part_is_refused(parts: list[Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(parts[0], tmp_path / parts[0].name))
    sheet = next(broken.glob("*.webp"))
    sheet.write_bytes(sheet.read_bytes()[:-1] + b"x")
    error = parts_script("unpack", broken, parts[1], "--to", tmp_path / "set", code=2)
    assert f"{sheet}: its digest differs" in error and not (tmp_path / "set").exists()
    parts_script("unpack", *parts, "--to", tmp_path / "set")
    packed = parts[0].parents[1] / "set"
    for split in ("train", "test"):
        digests = [arrays.load(at, split).digest() for at in (packed, tmp_path / "set")]
        assert digests[0] == digests[1]


def call(folder: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the script with its work and results under `folder`; without an installed package."""
    environment = os.environ | {"WORK": str(folder / "work"), "OUT": str(folder / "out")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    recipe = ROOT / "recipes" / "debug.yaml"
    (folder / "quick.yaml").write_text(recipe.read_text())
    environment |= {"RECIPE": str(recipe), "FAST": str(folder / "quick.yaml"), "MINUTES": "5"}
    environment |= more
    command, pipes = [SCRIPT, *map(str, words)], {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=folder, env=environment, timeout=600, **pipes)


def test_the_whole_script(parts: list[Path], tmp_path: Path) -> None:
    packed, found_in = tmp_path / "packed", tmp_path / "out" / "gpu.json"
    packed.mkdir()
    (packed / parts[1].name).symlink_to(parts[1])
    done = call(tmp_path, packed, **QUICK)
    assert done.returncode == 0 and "still missing part-1-of-2" in done.stderr, done.stderr
    found = json.loads(found_in.read_text())
    assert found["all_data"] is False and set(found["phases"]) == {"data"}

    (packed / parts[1].name).unlink()
    (packed / parts[0].name).symlink_to(parts[0])
    done = call(tmp_path, packed, "--", *WORDS, "epochs=1", **QUICK)
    found = json.loads(found_in.read_text())
    codes = {name: phase["exit_code"] for name, phase in found["phases"].items()}
    assert codes.pop("parity") == 0, done.stderr
    assert set(codes) == {"data", *QUICK["PHASES"].split()} - {"parity"}, done.stderr
    assert not any(codes.values()), done.stderr
    audit, bench, quarter = (found["phases"][x]["found"] for x in ("audit", "bench", "quarter"))
    assert found["all_data"] and bench["recipe"] == "debug"
    assert audit["images_s"] > 0 and audit["first_step_s"] > 0
    assert "batch_size=8" in quarter["overrides"] and quarter["pairs"][0]["name"] == "step"
    assert found["versions"]["torch"] and found["machine"]["cpu"]["usable"]
    assert found["runs"]["quick"]["status"] == "done"
    train = found["runs"]["debug"]
    assert (train["status"], train["epochs_done"]) == ("done", 1)
    assert {"epoch", "seconds", "images_per_second", "val/top1"} <= set(train["epochs"][0])

    more = QUICK | {"PHASES": "bench train", "STAGES": "none"}
    done = call(tmp_path, packed, "--", *WORDS, "epochs=2", **more)
    again = json.loads(found_in.read_text())
    assert done.returncode == 1 and again["phases"]["bench"]["exit_code"] == 2
    assert "no measurement called 'none'" in done.stderr, "one phase fails, the others go on"
    longer = again["runs"]["debug"]
    assert longer["run"] == train["run"] and longer["epochs_done"] == 2
    assert longer["epochs"][0] == train["epochs"][0], "it went on, and began nothing anew"
    assert "found" in again["phases"]["audit"], "what was found before stays"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.json"]


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    for more, said in (
        ({}, "needs a GPU"),
        ({"RECIPE": "none.yaml"}, "no recipe none.yaml"),
        ({"PHASES": "tain"}, "no phase called tain"),
    ):
        done = call(tmp_path, tmp_path, **more)  # a folder without parts
        lines = [line for line in done.stderr.splitlines() if not line.startswith("==")]
        assert done.returncode == 2 and len(lines) == 1, done.stderr
        assert lines[0].startswith("gpu.sh: ") and said in lines[0]

"""The pack command: a recipe's data set there and back through the command line."""

from pathlib import Path
from typing import Any

import pytest

from vision_tutorial.commands import pack
from vision_tutorial.core import arrays

DEBUG = "dataset={shapes: {train: 60, test: 30, size: 16}}"


def run(capfd: Any, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    code = pack.main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_there_and_back(tmp_path: Path, capfd: Any) -> None:
    code, out, err = run(capfd, "arrays", "recipes/debug.yaml", tmp_path / "set", DEBUG)
    assert code == 0 and not err
    shown = "train 60 images of 16x16, test 30 images of 16x16, 10 classes"
    assert out.splitlines() == [
        f"{tmp_path / 'set'}: shapes, {shown}",
        f"use it with: 'dataset={{arrays: {{root: {tmp_path / 'set'}}}}}'",
    ]
    code, out, _ = run(capfd, "parts", tmp_path / "set", tmp_path / "out", "--mib", 0.05)
    folders = sorted((tmp_path / "out").iterdir())
    assert code == 0 and [line.partition(":")[0] for line in out.splitlines()] == [
        str(folder) for folder in folders
    ]
    assert len(folders) == 2
    again = tmp_path / "again"
    code, out, _ = run(capfd, "unpack", folders[1], "--to", again)
    assert code == 0 and out.startswith(f"{again}: still missing part-1-of-2")
    code, out, _ = run(capfd, "unpack", folders[0], "--to", again)
    assert code == 0 and shown in out
    for split in ("train", "test"):
        digests = [arrays.load(tmp_path / name, split).digest() for name in ("set", "again")]
        assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["arrays", "recipes/none.yaml", "OUT"], "none.yaml"),
        (["arrays", "recipes/debug.yaml", "OUT", "dataset=cifar1000"], "did you mean 'cifar100'"),
        (["arrays", "recipes/debug.yaml", "/"], "/ cannot be made"),
        (["parts", "OUT", "OUT"], "arrays.json; name a folder"),
        (["parts", "OUT", "OUT", "--mib", "-1"], "--mib is -1"),
        (["unpack", "OUT", "--to", "OUT"], "no OUT/part.json; name a folder"),
        (["unpack", "OUT", "--to", "/"], "/ cannot be made"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], said: str, tmp_path: Path, capfd: Any) -> None:
    out = str(tmp_path / "out")
    code, _, err = run(capfd, *(out if word == "OUT" else word for word in words))
    assert code == 2 and said.replace("OUT", out) in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())

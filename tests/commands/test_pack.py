"""The pack command: a recipe's data set as an arrays folder."""

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


def test_it_writes_both_splits(tmp_path: Path, capfd: Any) -> None:
    code, out, err = run(capfd, "arrays", "recipes/debug.yaml", tmp_path / "set", DEBUG)
    assert code == 0 and not err
    shown = "train 60 images of 16x16, test 30 images of 16x16, 10 classes"
    assert out.splitlines() == [
        f"{tmp_path / 'set'}: shapes, {shown}",
        f"use it with: 'dataset={{arrays: {{root: {tmp_path / 'set'}}}}}'",
    ]
    for split, count in (("train", 60), ("test", 30)):
        assert len(arrays.load(tmp_path / "set", split, verify=True)) == count


@pytest.mark.parametrize(
    "words, said",
    [
        (["arrays", "recipes/debug.yaml", "OUT", "dataset=cifar1000"], "did you mean 'cifar100'"),
        (["arrays", "recipes/debug.yaml", "/"], "/ cannot be made"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], said: str, tmp_path: Path, capfd: Any) -> None:
    out = str(tmp_path / "out")
    code, _, err = run(capfd, *(out if word == "OUT" else word for word in words))
    assert code == 2 and said.replace("OUT", out) in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())

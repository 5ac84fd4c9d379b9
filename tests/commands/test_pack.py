"""The pack command: a recipe's data set as an arrays folder."""

from pathlib import Path

import pytest
from counting import ended

from vision_tutorial.commands import pack
from vision_tutorial.core import arrays

DEBUG = "dataset={shapes: {train: 60, test: 30, size: 16}}"


def test_it_writes_both_splits(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "set"
    code, out, err = ended(capfd, pack.main, "arrays", "recipes/debug.yaml", folder, DEBUG)
    assert code == 0 and not err
    assert out.splitlines() == [
        f"{folder}: shapes, train 60 images of 16x16, test 30 images of 16x16, 10 classes",
        f"use it with: 'dataset={{arrays: {{root: {folder}}}}}'",
    ]
    assert [len(arrays.load(folder, s, verify=True)) for s in ("train", "test")] == [60, 30]


@pytest.mark.parametrize(
    "folder, words, said",
    [("out", ["dataset=cifar1000"], "did you mean 'cifar100'"), ("/", [], "/ cannot be made")],
)
def test_a_wrong_word_is_one_line(folder, words, said, tmp_path: Path, capfd) -> None:
    target = tmp_path / folder  # of "/": "/" itself
    code, _, err = ended(capfd, pack.main, "arrays", "recipes/debug.yaml", target, *words)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())

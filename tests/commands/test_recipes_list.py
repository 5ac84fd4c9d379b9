"""`recipes` and `components`: what there is, and a recipe of one's own."""

from pathlib import Path

import pytest

from vision_tutorial.commands.of_recipes import components, recipes
from vision_tutorial.recipe.loading import RECIPES, load, package_recipes


def test_every_recipe_has_its_line(capsys: pytest.CaptureFixture) -> None:
    assert recipes.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == package_recipes()
    assert all(len(line.split()) > 3 and len(line) < 130 for line in lines)
    assert sum(1 for _ in RECIPES.glob("*.yaml")) <= len(lines)


@pytest.mark.parametrize("name", ["r4", "segmentation/trashcan", "recipes/r4.yaml"])
def test_a_copy_is_the_same_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert recipes.main(["copy", name, str(tmp_path / "mine")]) == 0
    (copied,) = (tmp_path / "mine").iterdir()
    assert load(copied).recipe == load(name).recipe
    assert recipes.main(["copy", name, str(tmp_path / "mine")]) == 2
    assert "exists" in capsys.readouterr().err
    assert recipes.main(["copy", "r44", str(tmp_path)]) == 2


def test_components(capsys: pytest.CaptureFixture) -> None:
    assert components.main(["losses"]) == 0
    shown = capsys.readouterr().out
    assert "cross_entropy" in shown and "cosine" not in shown
    assert components.main([]) == 0 and "cosine" in capsys.readouterr().out
    assert components.main(["lossses"]) == 2 and "losses" in capsys.readouterr().err

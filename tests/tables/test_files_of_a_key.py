"""The walk of one key, `loss: {focal: 0.75, dice: 0.25}`, from YAML to compare's cell.

A file of ours counts when one of its functions is called with the key's value or returns it, by
itself, in any of its forms. A function that only carries a whole recipe, run or row does not count.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from run_folders import make_run

import vision_tutorial
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import reader
from vision_tutorial.tables.comparison import rows_of
from vision_tutorial.tables.layouts import View, generic

PACKAGE = Path(vision_tutorial.__file__).parent
CELL = "0.75 focal + 0.25 dice"
MOST_FILES = 6


def is_the_value(value: Any) -> bool:
    if isinstance(value, tuple):
        return [getattr(term, "name", None) for term in value] == ["focal", "dice"]
    return value == CELL or (isinstance(value, dict) and list(value) == ["focal", "dice"])


def files_that_see_it(work: Callable[[], Any]) -> set[str]:
    """The files of ours in which a function is called with the value, or returns it."""
    files = set()

    def profile(frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        count = code.co_argcount + code.co_kwonlyargcount
        given = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        if any(map(is_the_value, given if event == "call" else [result])):
            files.add(Path(code.co_filename).relative_to(PACKAGE).as_posix())

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return files


def test_a_loss_walks_through_few_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[2] / "recipes" / "debug.yaml").read_text()
    lines_of_it = [line for line in text.splitlines() if not line.startswith("loss:")]
    file.write_text("\n".join([*lines_of_it, "loss: {focal: 0.75, dice: 0.25}"]))
    other = make_run(tmp_path / "runs", "debug", id="other")
    cells = {}

    def walk() -> None:
        folder = make_run(tmp_path / "runs", file)
        table = generic(View(rows_of([reader.read(folder), reader.read(other)])))
        place = [column.key for column in table.columns].index("loss")
        cells["text"] = table.rows[0][place]

    seen = files_that_see_it(walk)
    assert cells["text"] == CELL
    assert {"recipe/yaml_lines.py", "recipe/grammar.py", "recipe/notation.py"} <= seen
    assert len(seen) <= MOST_FILES, sorted(seen)


def test_it_is_read_back_as_typed_and_a_foreign_one_is_shown(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path, "r4", "loss={focal: 0.75, dice: 0.25}")
    recipe = load("recipes/r4.yaml", ["loss={focal: 0.75, dice: 0.25}"]).recipe
    typed = reader.read(folder).typed
    for key in ("loss", "optimizer", "augment", "mix", "model", "schedule", "dataset", "task"):
        assert typed[key] == getattr(recipe, key), key
    text = (folder / "recipe.yaml").read_text()
    for loss, cell in (("{new_loss: {weight: 0.5, a: 1}}", "0.5 new_loss"), ("[3, x]", "[3, x]")):
        (folder / "recipe.yaml").write_text(text.partition("loss:")[0] + f"loss: {loss}\nfar: 1\n")
        run = reader.read(folder)
        assert View(rows_of([run])).notation.cell(run.typed, "loss") == cell

"""What the reproduce command says of its runs, and its page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import make_run

from vision_tutorial.commands import reproduce as command
from vision_tutorial.core import child_process
from vision_tutorial.runs.reader import collect
from vision_tutorial.tables.columns import View
from vision_tutorial.tables.comparison import rows_of


def view_of(tmp_path: Path, **values: list[float]) -> View:
    """r0, r1, r2 with the best of each seed."""
    for name, bests in values.items():
        for seed, best in enumerate(bests):
            make_run(tmp_path, name, f"seed={seed}", id=str(seed), values=[best])
    return View(rows_of(collect([tmp_path])[0]))


def test_the_order_is_told_with_what_is_noise(tmp_path: Path) -> None:
    out = command.order(view_of(tmp_path / "a", r0=[10, 11, 12], r1=[20, 21, 22], r2=[21, 22, 23]))
    assert out == (
        "r0 < r1 < r2 came out: 11.00, 21.00, 22.00 (+10.00 beyond noise, +1.00 within noise)"
    )
    out = command.order(view_of(tmp_path / "b", r0=[10], r1=[9], r2=[12]))
    assert out == (
        "r0 < r1 < r2 did not come out: 10.00, 9.00, 12.00 "
        "(-1.00, +3.00; only more --seeds tell that from noise)"
    )
    out = command.order(view_of(tmp_path / "c", r0=[10], r2=[12]))
    assert out == "r0 < r1 < r2: not known without r1"


@pytest.mark.parametrize(
    ("left", "ended", "commands", "told"),
    [
        (15.0, (0, None), 1, ""),
        (60.0, (0, None), 3, ""),
        (60.0, (1, None), 3, "not all galleries are on the page: by gallery"),
        (60.0, (-15, 50.0), 3, "not all galleries are on the page: the time was up"),
    ],
)
def test_galleries_are_for_the_time_that_is_left(
    left: float,
    ended: tuple,
    commands: int,
    told: str,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    called = []

    def run_command(command: list[str], log: Path, enough: Any, then_stop: bool) -> Any:
        called.append(command[3])
        assert then_stop and not enough()
        log.write_text(f"by {command[3]}")
        code, seen = ended if command[3] == "gallery" else (0, None)
        return child_process.Ended(code, 1.0, seen)

    monkeypatch.setattr(command.processes, "run_command", run_command)
    make_run(tmp_path, "recipes/debug.yaml", id="1")
    clock = SimpleNamespace(left=lambda: left)
    stop = SimpleNamespace(asked=False)
    shift = SimpleNamespace(folder=tmp_path, logs=tmp_path, clock=clock, stop=stop)
    args = command.parser().parse_args(["week3"])
    command.write_page(args, shift, collect([tmp_path])[0])
    assert called == ["report", "gallery", "report"][:commands]
    out = capsys.readouterr().out
    assert out.endswith("by report\n") and told in out

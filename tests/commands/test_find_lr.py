"""`find-lr`: the lr at which a loss falls fastest, on known curves and for real."""

import math
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from small_runs import DEBUG, shapes

from vision_tutorial.commands.of_recipes import find_lr


def test_the_steepest_place_of_a_known_curve() -> None:
    lrs = [10 ** (-5 + 0.06 * step) for step in range(100)]
    losses = [4 - 3 / (1 + math.exp(-4 * (math.log10(lr) + 2))) + 20 * lr**3 for lr in lrs]
    assert find_lr.steepest(lrs, losses) == pytest.approx(0.01, rel=0.15)
    assert find_lr.steepest(lrs, sorted(losses)) is None, "it falls nowhere"


def test_the_mean_does_not_lag() -> None:
    falling = [float(n < 50) for n in range(100)]  # between step 49 and step 50
    means = find_lr.smoothed(falling)
    assert means[:40] == [1.0] * 40 and means[60:] == [0.0] * 40
    assert means[49] + means[50] == pytest.approx(1) and means[49] == pytest.approx(45 / 81)
    assert find_lr.smoothed([3.0]) == [3.0]


def test_a_real_test(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plot = tmp_path / "lr.png"
    words = [*DEBUG, shapes(), "--steps", "40", "-o", str(plot)]
    assert find_lr.main(words) == 0
    shown = capsys.readouterr().out
    assert "the loss falls fastest at lr" in shown
    *given, last = shlex.split(shown.splitlines()[-1].partition("train ")[2])
    assert given == [*DEBUG, shapes()], "the same recipe, with all that was changed"
    assert re.fullmatch(r"optimizer\.\w+\.lr=[\d.e-]+", last)
    assert Image.open(plot).size[0] > 300
    assert find_lr.main([*words, "--from", "1", "--to", "0.1"]) == 2

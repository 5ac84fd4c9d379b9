"""The short training that says how fast a network is here: what it trains, and what is read off."""

from functools import partial
from pathlib import Path

import counting
import pytest

from vision_tutorial import train
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.loading import load
from vision_tutorial.sweeps import children
from vision_tutorial.sweeps.children import Seat, Stop
from vision_tutorial.sweeps.scale_down import NETWORKS, path_of
from vision_tutorial.sweeps.throughput import ENDLESS, PROBED, STEPS, Probe, settings, speed


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_measured_is_the_tables_own_training(network: str) -> None:
    full = load(path_of(PROBED)).recipe
    recipe = load(path_of(PROBED), settings(network, 64, 50_000)).recipe
    assert (recipe.batch_size, recipe.subset, recipe.name) == (64, STEPS * 64, "probe")
    model = NETWORKS[network].model
    assert recipe.model.name == (next(iter(model)) if model else full.model.name)
    for key in ("augment", "mix", "loss", "normalize", "precision", "dataset"):
        assert getattr(recipe, key) == getattr(full, key)
    assert recipe.warmup.epochs == recipe.epochs == recipe.eval_every == ENDLESS, "lr stays low"


def row(step: int, seconds: float, overhead: float) -> dict[str, float]:
    return {"step": step, "seconds": seconds, "seconds_overhead": overhead}


def test_speed_is_read_off_the_rows_after_the_first() -> None:
    rows = [row(10, 9.0, 0.0), row(20, 1.0, 0.5), row(30, 3.0, 0.1), row(40, 2.0, 0.2)]
    found = speed(rows, 32, seconds=22.5, summary={"wall_seconds": 16.0})
    assert found.start == pytest.approx(6.5)
    assert found.rate == pytest.approx(3 * 10 * 32 / 6)
    assert found.saving == pytest.approx(0.2)


def test_one_row_says_nothing() -> None:
    assert speed([row(10, 9.0, 0.0)], 32, 22.5, {"wall_seconds": 16.0}) is None
    assert speed([], 32, 22.5, {"wall_seconds": 16.0}) is None


# -- the training itself, in a forked process ------------------------------------------------------

WORDS = ["dataset={shapes: {train: 300, test: 20, size: 32}}", "threads=1", "workers=0"]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    import vision_tutorial.build  # noqa: F401  (before the forks)
    import vision_tutorial.engine  # noqa: F401

    monkeypatch.setattr(children, "start", partial(counting.start, command=train.main))


def probe(folder: Path, *words: str, seats: int = 1, seconds: float = 6.0) -> Probe:
    return Probe(folder / "probe", [*WORDS, *words], [Seat()] * seats, 1, seconds, Stop())


def test_a_network_is_measured_on_all_seats_at_once(forked: None, tmp_path: Path) -> None:
    found = probe(tmp_path, seats=2)("thin", 8, 300)
    assert found.rate > 1 and found.start > 0 and found.saving >= 0
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_while_measuring_is_told(forked: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="short training failed: exit code 2: .*more than the 300"):
        probe(tmp_path)("thin", 512, 300)
    with pytest.raises(UserError, match="fewer than 32 steps of 8 images in 0 s. Name a smaller"):
        probe(tmp_path, seconds=0.01)("thin", 8, 300)
    stopped = probe(tmp_path)
    stopped.stop.asked = True
    with pytest.raises(UserError, match="was stopped"):
        stopped("thin", 8, 300)

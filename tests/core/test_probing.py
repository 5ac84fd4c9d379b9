"""The short training that says how fast a network is here: what it trains, and what is read off."""

import pytest

from vision_tutorial.core.loading import load
from vision_tutorial.core.probing import ENDLESS, PROBED, STEPS, settings, speed
from vision_tutorial.core.shrinking import NETWORKS, path_of


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_measured_is_the_tables_own_training(network: str) -> None:
    full = load(path_of(PROBED)).recipe
    recipe = load(path_of(PROBED), settings(network, 64)).recipe
    assert (recipe.batch_size, recipe.subset, recipe.name) == (64, STEPS * 64, "probe")
    model = NETWORKS[network].model
    assert recipe.model.name == (next(iter(model)) if model else full.model.name)
    for key in ("augment", "mix", "loss", "normalize", "precision", "dataset"):
        assert getattr(recipe, key) == getattr(full, key)
    assert recipe.warmup.epochs == recipe.epochs == recipe.eval_every == ENDLESS, "lr stays low"


def row(seconds: float, overhead: float) -> dict[str, float]:
    return {"seconds": seconds, "seconds_overhead": overhead}


def test_speed_is_read_off_the_rows_after_the_first() -> None:
    rows = [row(9.0, 0.0), row(1.0, 0.5), row(3.0, 0.1), row(2.0, 0.2)]
    found = speed(rows, 32, seconds=22.5, summary={"wall_seconds": 16.0})
    assert found.start == pytest.approx(6.5)
    assert found.rate == pytest.approx(3 * STEPS * 32 / 6)
    assert found.saving == pytest.approx(0.2)


def test_one_row_says_nothing() -> None:
    assert speed([row(9.0, 0.0)], 32, 22.5, {"wall_seconds": 16.0}) is None
    assert speed([], 32, 22.5, {"wall_seconds": 16.0}) is None

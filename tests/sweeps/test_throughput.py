"""The short training that says how fast a network is here: what it trains, and what is read off."""

from functools import partial
from pathlib import Path

import counting
import pytest

from vision_tutorial import train
from vision_tutorial.core.errors import UserError
from vision_tutorial.sweeps import children
from vision_tutorial.sweeps.children import DeviceSlot, Stop
from vision_tutorial.sweeps.throughput import ThroughputProbe

# -- the training itself, in a forked process ------------------------------------------------------

WORDS = ["dataset={shapes: {train: 300, test: 20, size: 32}}", "threads=1", "workers=0"]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    import vision_tutorial.build  # noqa: F401  (before the forks)
    import vision_tutorial.engine  # noqa: F401

    monkeypatch.setattr(children, "start", partial(counting.start, command_main=train.main))


def probe(folder: Path, slots: int = 1, seconds: float = 6.0) -> ThroughputProbe:
    return ThroughputProbe(folder / "probe", WORDS, [DeviceSlot()] * slots, 1, seconds, Stop())


def test_a_network_is_measured_on_all_slots_at_once(forked: None, tmp_path: Path) -> None:
    found = probe(tmp_path, slots=2).measure("thin", 8, 300)
    assert found.rate > 1 and found.start > 0 and found.saving >= 0
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_while_measuring_is_told(forked: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="short training failed: exit code 2: .*more than the 300"):
        probe(tmp_path).measure("thin", 512, 300)
    with pytest.raises(UserError, match="fewer than 32 steps of 8 images in 0 s. Name a smaller"):
        probe(tmp_path, seconds=0.01).measure("thin", 8, 300)
    stopped = probe(tmp_path)
    stopped.stop.asked = True
    with pytest.raises(UserError, match="was stopped"):
        stopped.measure("thin", 8, 300)

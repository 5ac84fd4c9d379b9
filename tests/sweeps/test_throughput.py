"""The short training that says how fast a network is here: what it trains, and what is read off."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import counting
import pytest

from vision_tutorial import train
from vision_tutorial.core.atomic import write_json
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.loading import load
from vision_tutorial.sweeps import children
from vision_tutorial.sweeps.children import DeviceSlot, Stop
from vision_tutorial.sweeps.scale_down import NETWORKS, path_of
from vision_tutorial.sweeps.throughput import ENDLESS, RECIPE, STEPS, ThroughputProbe

FULL = [(10, 9, 0.0), (20, 1, 0.5), (30, 3, 0.1)]  # step, seconds, overhead of an epoch


@pytest.mark.parametrize(
    ("network", "rows", "cut", "rate", "saving"),
    [
        ("thin", FULL, (36, 2, 0.2), 26 * 64 / 6, 0.2),
        ("resnet50", FULL[:1], (15, 5, 0.1), 5 * 64 / 5, 0.1),
        ("thin", FULL[:1], (10, 0, 0.0), 10 * 64 / 9, 0),
        ("thin", [], (2, 4, 0.3), 2 * 64 / 4, 0.3),
    ],
)
def test_what_is_trained_and_what_is_read_off_however_slow_it_is(
    network: str,
    rows: list[tuple],
    cut: tuple,
    rate: float,
    saving: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cut: of the epoch that did not end."""
    started: list[list[str]] = []

    def epoch(step: int, seconds: float, overhead: float) -> dict[str, float]:
        return {"step": step, "seconds": seconds, "seconds_overhead": overhead}

    def start(command: list[str], slot: DeviceSlot, output: Any) -> Any:
        started.append(command[command.index("vision_tutorial.train") + 1 :])
        if len(started) == 1:
            output.write(b"compiling the augmentations for this machine, once")
        run = tmp_path / "probe" / "0"
        for name, last in (("1", (0, 1, 1)), ("2", cut)):
            (run / "ckpt" / name).mkdir(parents=True)
            progress = epoch(*last) | {"rows": [epoch(*row) for row in rows], "total_seconds": 0.0}
            write_json(run / "ckpt" / name / "state.json", {"progress": progress})
        write_json(run / "summary.json", {})
        return SimpleNamespace(wait=lambda: 0, terminate=lambda: None, returncode=0)

    monkeypatch.setattr(children, "start", start)
    full_probe = probe(tmp_path, words=[], images=50_000)
    found = full_probe.measure(network, 64)
    assert (found.rate, found.saving) == (rate, saving) and 0 <= found.start < 5
    words, again = started
    assert words == again, "once more, since the first had to compile"
    recipe = load(words[0], [word for word in words[1:] if "=" in word]).recipe
    full = load(path_of(RECIPE)).recipe
    assert (recipe.batch_size, recipe.subset, recipe.name) == (64, STEPS * 64, "probe")
    model = NETWORKS[network]
    assert recipe.model.name == (next(iter(model)) if model else full.model.name)
    for key in ("augment", "mix", "loss", "normalize", "precision", "dataset"):
        assert getattr(recipe, key) == getattr(full, key)
    assert recipe.warmup.epochs == recipe.epochs == recipe.eval_every == ENDLESS, "lr stays low"
    full_probe.stop.asked = True
    with pytest.raises(UserError, match="stopped while it measured") as caught:
        full_probe.measure(network, 64)
    assert caught.value.code == 143


WORDS = ["dataset={shapes: {train: 300, test: 20, size: 32}}", "threads=1", "workers=0"]
WORDS += ["data.path=timm"]  # nothing is compiled


def probe(folder: Path, slots: int = 1, words: Any = WORDS, images: int = 300) -> Any:
    """A measurement in `folder`, of a few steps."""
    return ThroughputProbe(folder, words, images, [DeviceSlot()] * slots, 1, 0.01, Stop())


def test_a_real_network_on_all_slots_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vision_tutorial.build  # noqa: F401  (before the forks)
    import vision_tutorial.engine  # noqa: F401

    monkeypatch.setattr(children, "start", partial(counting.start, command_main=train.main))
    found = probe(tmp_path / "probe", slots=2).measure("thin", 8)
    assert found.rate > 1 and found.start > 0 and found.saving >= 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="short training failed: error: .*more than the 300"):
        probe(tmp_path).measure("thin", 512)

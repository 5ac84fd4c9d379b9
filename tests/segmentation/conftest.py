"""What several of the tests of data sets start from."""

from pathlib import Path

import pytest
from mask_sets import drawn


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision_tutorial" / "decoded"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """root/train and root/val with masks of the ids 0 … 2, 255; one image deeper than others."""
    root = tmp_path / "pets"
    for part in ("train", "val"):
        for name in ("b.png", "a.png", "deep/a.png"):
            drawn(root / part, root / f"{part}_masks", name, [0, 1, 2, 255])
    return root

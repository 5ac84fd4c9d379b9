"""Shared by all tests. Imports nothing heavy: most files never need torch."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; small tensors only
os.environ.setdefault("WANDB_MODE", "disabled")  # no test may reach the network
os.environ.setdefault("VISION_TUTORIAL_ARTIFACTS", "0")  # hundreds of runs that nobody looks at
# Where Python may keep no bytecode, each process that imports torch compiles it anew: 20 s.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache/bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
# One suite for all machines: it forks ranks, which share no GPU, and compares bits of CPUs. What is
# about a GPU asks for one: VISION_TUTORIAL_TEST_GPU=1 pytest tests/data/test_device.py …
if os.environ.get("VISION_TUTORIAL_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets; tests that need it are skipped without."""
    root = os.environ.get("VISION_TUTORIAL_DATA")
    if not root:
        pytest.skip("VISION_TUTORIAL_DATA names no folder with the real data")
    return Path(root)


TINY = """
dataset: shapes
holdout: 0.1
augment: [{random_crop: {size: 32, padding: 4}}, hflip]
model: {test_resnet: {stem: cifar}}
epochs: 30
batch_size: 256
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
schedule: cosine
normalize: half
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The file of a small recipe without faults, to be changed by overrides."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path

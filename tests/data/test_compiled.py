"""The compiled executor, bit for bit what Pillow makes of each image; threads change nothing."""

import pickle

import numpy as np
import pytest
from data.oracle import by_pillow, random_slot
from data.test_tensors import SIZES, chain, drawn
from numba.core.registry import cpu_target

from vision_tutorial.data.augmentation.operation import Op, batched_op
from vision_tutorial.data.executors import compiled


def channels_last(images):
    """(B, 3, H, W) tensor -> (B, H, W, 3) array, as data sets hold them."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def differing(images, slots, threads=1):
    """Which images are not as Pillow has them."""
    before = images.copy()
    found = compiled.apply(images, np.arange(len(images)), slots, threads)
    assert np.array_equal(images, before)
    wrong = np.flatnonzero((found != by_pillow(images, slots)).any((1, 2, 3))).tolist()
    return [(i, *((Op(s.codes[i]).name, s.args[i].tolist()) for s in slots)) for i in wrong]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", Op)
def test_operation_is_pillows(op, size):
    rng = np.random.default_rng([op, *size])
    for _ in range(3):
        images = channels_last(drawn(rng, 40, *size))
        assert differing(images, [random_slot(op, rng, 40, *size)]) == []


@pytest.mark.parametrize("op", Op)
def test_operation_on_real_images(op, data_root):
    data = pickle.loads((data_root / "cifar-100-python" / "test").read_bytes(), encoding="latin1")
    images = np.ascontiguousarray(data["data"][:300].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    rng = np.random.default_rng(op)
    assert differing(images, [random_slot(op, rng, 300, 32, 32)]) == []


@pytest.mark.parametrize("size", [(50, 7), (300, 3), (20, 11), (24, 9), (40, 41), (3, 3)])
def test_order_of_the_two_passes_is_pillows(size):
    rng = np.random.default_rng(2)
    images = channels_last(drawn(rng, 60, 420, 50))
    height, width = rng.integers(1, 420, 60), rng.integers(1, 50, 60)
    height[:20], width[:20] = size[0] + 2 * np.arange(1, 21), size[1] + 1
    kinds = rng.integers(0, 3, 60)
    resize = batched_op(60, Op.RESAMPLE, size, 420 - height, 50 - width, height, width, kinds)
    assert differing(images, [resize]) == []


def test_chains_and_threads(monkeypatch):
    monkeypatch.setattr(compiled, "SHARE", 1000)  # pixels, so that a few small images are many
    rng = np.random.default_rng(0)
    images = channels_last(drawn(rng, 300, 17, 13))
    slots = chain(rng, 300, 17, 13)
    assert differing(images, slots, threads=1) == []
    assert differing(images, slots, threads=3) == []


def test_takes_images_by_index_from_a_mapped_file(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    indices = np.array([7, 7, 0, 3])
    mirror = batched_op(4, Op.HFLIP, (6, 5))
    assert np.array_equal(compiled.apply(mapped, indices, [mirror]), images[indices][:, :, ::-1])
    assert np.array_equal(compiled.apply(mapped, indices, []), images[indices])


@pytest.mark.parametrize(
    ("count", "pixels", "expected"),
    [(300, 1024, 2), (256, 1024, 2), (255, 1024, 1), (3, 65536, 1), (4, 65536, 2), (1, 2**20, 1)],
)
def test_a_thread_is_worth_a_share_of_pixels(count, pixels, expected):
    spans = []
    compiled.in_parts(count, pixels, 8 if expected == 1 else 2, lambda a, b: spans.append((a, b)))
    assert len(spans) == expected
    assert sorted(spans)[0][0] == 0 and sorted(spans)[-1][1] == count


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_normalize_is_the_table(monkeypatch, last, threads):
    monkeypatch.setattr(compiled, "SHARE", 10)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (70, 4, 3, 3), dtype=np.uint8)
    rows = rng.permutation(70)[:45]
    table = rng.random((3, 256)).astype(np.float32)
    found = compiled.normalize(images, rows, table, last, threads)
    wanted = np.stack([table[c][images[rows][..., c]] for c in range(3)], -1)
    assert np.array_equal(found, wanted if last else wanted.transpose(0, 3, 1, 2))


def test_what_is_kept_on_disk_is_stale_when_the_kernels_change():
    """numba itself would go on with the old code: it looks at one file only."""
    keys = [compiled.runner(version)._cache._index_key(None, codegen()) for version in (1, 2, 2)]
    assert keys[0] != keys[1] == keys[2]


def codegen():
    return cpu_target.target_context.codegen()

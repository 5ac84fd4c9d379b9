"""Both executors, bit for bit what Pillow makes of each image."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.oracle import SIZES, by_pillow, drawn, random_slot
from numba.core.registry import cpu_target
from torch.utils._python_dispatch import TorchDispatchMode

from vision_tutorial.data.augmentation.operation import ARGUMENTS, BatchedOp, Op, batched_op
from vision_tutorial.data.executors import compiled, cpu, tensors

KEEP_SIZE = [op for op in Op if op not in (Op.RESAMPLE, Op.WINDOW)]


def by_numba(images, slots, threads=1):
    return cpu.apply(images, np.arange(len(images)), slots, threads)


def by_threads(images, slots):
    return by_numba(images, slots, 3)


def by_torch(images, slots):
    """The same by the tensor code, for images that lie as (B, 3, H, W) and as (B, H, W, 3)."""
    last = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = tensors.apply(last.contiguous(), slots)
    assert found.is_contiguous() and torch.equal(tensors.apply(last, slots), found)
    return found.permute(0, 2, 3, 1).numpy()


def differing(images, slots, executors=(by_numba, by_torch)):
    """What is not as Pillow has it: executor, image, operations, arguments."""
    before, wanted, wrong = images.copy(), by_pillow(images, slots), []
    for execute in executors:
        found = execute(images, slots)
        assert np.array_equal(images, before)
        assert found.shape == wanted.shape and found.dtype == np.uint8
        for i in np.flatnonzero((found != wanted).any((1, 2, 3))):
            ops = [(Op(slot.codes[i]).name, slot.args[i].tolist()) for slot in slots]
            wrong.append((execute.__name__, i, ops))
    return wrong


@pytest.mark.parametrize("op", Op)
def test_operation_is_pillows(op):
    for size in SIZES:
        rng = np.random.default_rng([op, *size])
        assert differing(drawn(rng, 80, *size), [random_slot(op, rng, 80, *size)]) == []


def test_operations_on_real_images(data_root):
    data = pickle.loads((data_root / "cifar-100-python" / "test").read_bytes(), encoding="latin1")
    images = np.ascontiguousarray(data["data"][:100].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    for op in Op:
        assert differing(images, [random_slot(op, np.random.default_rng(op), 100, 32, 32)]) == []


@pytest.mark.parametrize("size", [(50, 7), (300, 3), (40, 41)])
def test_order_of_the_two_passes_is_pillows(size):
    """Pillow 13 starts with the height where it shrinks by over twice as many pixels."""
    rng = np.random.default_rng(2)
    height, width = rng.integers(1, 420, 60), rng.integers(1, 50, 60)
    height[:20], width[:20] = size[0] + 2 * np.arange(1, 21), size[1] + 1
    kinds = rng.integers(0, 3, 60)
    resize = batched_op(60, Op.RESAMPLE, size, 420 - height, 50 - width, height, width, kinds)
    assert differing(drawn(rng, 60, 420, 50), [resize]) == []


def mixed(rng, ops, batch, height, width, size=None):
    """A slot in which each image has its own one of `ops`."""
    size = size or (height, width)
    slots = [random_slot(op, rng, batch, height, width, size) for op in ops]
    choice = rng.integers(len(ops), size=batch)
    codes = np.choose(choice, [each.codes for each in slots])
    args = np.choose(choice[:, None], [each.args for each in slots])
    lines = next((each for each in slots if len(each.rows)), slots[0])
    return replace(lines, codes=codes, args=args, size=size)


def chain(rng, batch, height, width):
    """Slots as a recipe has them: images are placed, flipped, and twice changed."""
    place = mixed(rng, [Op.RESAMPLE, Op.WINDOW], batch, height, width, (11, 14))
    flip = mixed(rng, [Op.NONE, Op.HFLIP], batch, 11, 14)
    return [place, flip, *(mixed(rng, KEEP_SIZE, batch, 11, 14) for _ in range(2))]


def test_every_image_has_its_own_operations_by_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(cpu, "SHARE", 1000)  # pixels, so that a few small images are many
    rng = np.random.default_rng(0)
    images, slots = drawn(rng, 300, 17, 13), chain(rng, 300, 17, 13)
    assert differing(images, slots, (by_numba, by_threads, by_torch)) == []


def test_nothing_to_do_and_no_images():
    images = torch.zeros(4, 3, 6, 6, dtype=torch.uint8)
    assert tensors.apply(images, []) is images
    assert tensors.apply(images, [batched_op(4, Op.NONE, (6, 6))] * 2) is images
    none = BatchedOp(np.empty(0, np.int64), np.empty((0, ARGUMENTS)), (4, 5))
    assert tensors.apply(images[:0], [none]).shape == (0, 3, 4, 5)


def test_what_is_kept_on_disk_is_stale_when_the_kernels_change():
    """numba itself would go on with the old code: it looks at one file only."""
    codegen = cpu_target.target_context.codegen()
    keys = [compiled.runner(version)._cache._index_key(None, codegen) for version in (1, 2, 2)]
    assert keys[0] != keys[1] == keys[2]


class Count(TorchDispatchMode):
    """Counts the operations that torch is asked for; views of a tensor cost nothing."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += not function.is_view
        return function(*args, **(kwargs or {}))


def test_no_loop_over_images_and_no_waiting():
    """As many operations for a few images as for many, and none that reads from the device.

    Tensors without data ("meta") raise an error when the host asks for a value.
    """
    totals = []
    for copies in (1, 10):
        slots = [
            replace(each, codes=np.tile(each.codes, copies), args=np.tile(each.args, (copies, 1)))
            for each in chain(np.random.default_rng(4), 300, 17, 13)
        ]
        with Count() as count:
            tensors.apply(
                torch.empty(300 * copies, 3, 17, 13, dtype=torch.uint8, device="meta"), slots
            )
        totals.append(count.total)
    assert totals[0] == totals[1] < 1000  # every operation, in each of two slots

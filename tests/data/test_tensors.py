"""Slots on whole batches, bit for bit what Pillow makes of each image."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.oracle import by_pillow, random_slot, rotation
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from vision_tutorial.data.augmentation.operation import (
    ARGUMENTS,
    BatchedOp,
    Filter,
    Op,
    batched_op,
)
from vision_tutorial.data.executors.tensors import apply

SIZES = [(32, 32), (24, 40), (7, 5), (65, 64), (1, 1), (2, 5), (5, 2), (1, 9)]
KEEP_SIZE = [op for op in Op if op not in (Op.RESAMPLE, Op.WINDOW)]


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    return request.param


def drawn(rng, batch, height, width):
    """Noise, gradients, flat and two-valued images in turn, uint8 (batch, 3, height, width)."""
    shape = (batch, 3, height, width)
    noise = rng.integers(0, 256, shape)
    slopes = rng.uniform(-9, 9, (2, batch, 3, 1, 1))
    ramp = slopes[0] * np.arange(height)[:, None] + slopes[1] * np.arange(width) + 128
    flat = np.broadcast_to(rng.integers(0, 256, (batch, 3, 1, 1)), shape)
    two = np.where(noise < rng.integers(0, 256, (batch, 1, 1, 1)), flat, 255 - flat // 2)
    kind = np.arange(batch).reshape(-1, 1, 1, 1) % 4
    images = np.choose(kind, [noise, ramp.clip(0, 255), flat, two]).astype(np.uint8)
    return torch.from_numpy(images)


def reference(images, slots):
    """images (B, 3, H, W) through `slots`, by Pillow."""
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    return torch.from_numpy(by_pillow(pixels, slots)).permute(0, 3, 1, 2)


def differing(images, slots, device="cpu"):
    """What went wrong: (image, operations, arguments) of each that is not as Pillow has it."""
    before = images.clone()
    found = apply(images.to(device), slots).cpu()
    assert torch.equal(images, before)
    wanted = reference(images, slots)
    assert found.shape == wanted.shape and found.dtype == torch.uint8 and found.is_contiguous()
    wrong = (found != wanted).flatten(1).any(1).nonzero()[:, 0].tolist()
    return [(i, *((Op(s.codes[i]).name, s.args[i].tolist()) for s in slots)) for i in wrong]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", Op)
def test_operation_is_pillows(op, size, device):
    rng = np.random.default_rng([op, *size])
    for _ in range(3):
        images = drawn(rng, 40, *size)
        assert differing(images, [random_slot(op, rng, 40, *size)], device) == []


@pytest.mark.parametrize("op", Op)
def test_operation_on_real_images(op, data_root, device):
    data = pickle.loads((data_root / "cifar-100-python" / "test").read_bytes(), encoding="latin1")
    images = torch.from_numpy(data["data"][:300]).view(-1, 3, 32, 32)
    rng = np.random.default_rng(op)
    assert differing(images, [random_slot(op, rng, 300, 32, 32)], device) == []


def mixed(rng, ops, batch, height, width, size=None):
    """A slot in which each image has its own one of `ops`."""
    size = size or (height, width)
    slots = [random_slot(op, rng, batch, height, width, size) for op in ops]
    choice = rng.integers(len(ops), size=batch)
    codes = np.choose(choice, [each.codes for each in slots])
    args = np.choose(choice[:, None], [each.args for each in slots])
    rows = next((each.rows for each in slots if len(each.rows)), slots[0].rows)
    columns = next((each.columns for each in slots if len(each.columns)), slots[0].columns)
    return replace(slots[0], codes=codes, args=args, size=size, rows=rows, columns=columns)


def chain(rng, batch, height, width):
    """Slots as a recipe has them: images are placed, flipped, and twice changed."""
    place = mixed(rng, [Op.RESAMPLE, Op.WINDOW], batch, height, width, (11, 14))
    flip = mixed(rng, [Op.NONE, Op.HFLIP], batch, 11, 14)
    return [place, flip, *(mixed(rng, KEEP_SIZE, batch, 11, 14) for _ in range(2))]


def test_every_image_has_its_own_operations(device):
    rng = np.random.default_rng(0)
    images = drawn(rng, 400, 17, 13)
    slots = chain(rng, 400, 17, 13)
    assert differing(images, slots, device) == []
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(apply(strided, slots), apply(images, slots))
    assert torch.equal(
        apply(images[::3], [part(each, 3) for each in slots]), apply(images, slots)[::3]
    )


def part(whole, step):
    return replace(whole, codes=whole.codes[::step], args=whole.args[::step])


@pytest.mark.parametrize("degrees", [0, 27, -24.3, 30, 45, 90, 180, 359.9])
@pytest.mark.parametrize("kind", Filter)
def test_rotation_is_pillows(degrees, kind):
    images = drawn(np.random.default_rng(1), 8, 32, 32)
    turn = batched_op(8, Op.AFFINE, (32, 32), *rotation(degrees, 32, 32), kind, fill=(1, 2, 3))
    for image, found in zip(images, apply(images, [turn]), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        # By right angles Pillow may move pixels; here the smooth filters land on them too.
        filters = [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]
        wanted = picture.rotate(degrees, filters[kind], fillcolor=(1, 2, 3))
        assert np.array_equal(found.permute(1, 2, 0), wanted)


@pytest.mark.parametrize("size", [(50, 7), (300, 3), (20, 11), (24, 9), (40, 41), (3, 3)])
def test_order_of_the_two_passes_is_pillows(size, device):
    """Pillow 13 starts with the height where it shrinks by over twice as many pixels."""
    rng = np.random.default_rng(2)
    images = drawn(rng, 60, 420, 50)
    height, width = rng.integers(1, 420, 60), rng.integers(1, 50, 60)
    height[:20], width[:20] = size[0] + 2 * np.arange(1, 21), size[1] + 1
    resize = batched_op(60, Op.RESAMPLE, size, 420 - height, 50 - width, height, width)
    resize.args[:, 4] = rng.integers(0, 3, 60)
    assert differing(images, [resize], device) == []


def test_nothing_to_do_is_the_batch_itself():
    images = drawn(np.random.default_rng(3), 4, 6, 6)
    assert apply(images, []) is images
    assert apply(images, [batched_op(4, Op.NONE, (6, 6))] * 2) is images


@pytest.mark.parametrize("size", [(8, 9), (4, 5)])
def test_empty_batch(size):
    none = BatchedOp(np.empty(0, np.int64), np.empty((0, ARGUMENTS)), size)
    assert apply(torch.empty(0, 3, 8, 9, dtype=torch.uint8), [none]).shape == (0, 3, *size)


class Count(TorchDispatchMode):
    """Counts the operations that torch is asked for; views of a tensor cost nothing."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += not function.is_view
        return function(*args, **(kwargs or {}))


def test_no_loop_over_images_and_no_waiting():
    """As many operations for a few images as for many, and none that reads from the device.

    Tensors without data ("meta") raise an error when the host asks for a value.
    """
    totals = []
    for copies in (1, 10):
        rng = np.random.default_rng(4)
        images, slots = drawn(rng, 300, 17, 13), chain(rng, 300, 17, 13)
        slots = [
            replace(each, codes=np.tile(each.codes, copies), args=np.tile(each.args, (copies, 1)))
            for each in slots
        ]
        with Count() as count:
            apply(images.repeat(copies, 1, 1, 1).to("meta"), slots)
        totals.append(count.total)
    assert totals[0] == totals[1] < 1000  # every operation, in each of two slots

"""On a GPU: the images, batches and evaluations that the CPU makes, to the bit."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data.oracle import drawn, random_slot
from data.test_pipeline import batches, made, recipe
from data.test_sampling import CHAIN, draws, whole_chain

from vision_tutorial.core import arrays
from vision_tutorial.data.augmentation.operation import Op
from vision_tutorial.data.executors import cpu, tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def alike(images, slots):
    """Whether the CPU and the GPU make the same of images uint8 (B, H, W, 3)."""
    host = cpu.apply(images, np.arange(len(images)), slots)
    device = tensors.apply(torch.from_numpy(images).permute(0, 3, 1, 2).cuda(), slots)
    return np.array_equal(host, device.permute(0, 2, 3, 1).cpu().numpy())


@pytest.mark.parametrize("op", Op)
def test_operations(op):
    for size in [(32, 32), (7, 5), (65, 64)]:
        rng = np.random.default_rng(op)
        assert alike(drawn(rng, 1000, *size), [random_slot(op, rng, 1000, *size)])


def test_chains_on_real_images():
    """10,000 of them, from the folder that VISION_TUTORIAL_ARRAYS names, as gpu.sh has it."""
    root = os.environ.get("VISION_TUTORIAL_ARRAYS")
    if not root:
        pytest.skip("VISION_TUTORIAL_ARRAYS names no folder that `vision-tutorial pack` made")
    images = np.array(arrays.load(Path(root), "test", "auto").images)
    assert len(CHAIN) > 4 and alike(images, whole_chain().ops(draws(len(images)).items, (32, 32)))


@pytest.mark.parametrize("memory", ["device", "host"])
def test_a_gpu_makes_the_same_batches_and_evaluations(memory):
    wanted = recipe(f"data.memory={memory}")
    there, here = (
        made(wanted, training=False, device=torch.device(device)).raw_evaluation()
        for device in ("cuda", "cpu")
    )
    assert all(map(torch.equal, (raw.images.cpu() for raw in there), (raw.images for raw in here)))
    expected = batches(recipe(), stop=7)
    found = batches(wanted, stop=7, device=torch.device("cuda"))
    for step, (raw, batch) in enumerate(found):
        assert raw.images.is_cuda
        assert torch.equal(raw.images.cpu(), expected[step][0].images)
        assert torch.equal(batch.images.cpu(), expected[step][1].images)

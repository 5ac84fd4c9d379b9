"""Overlap against torchmetrics, SciPy and loops; the same for any split over batches, processes."""

from functools import partial

import numpy as np
import pytest
import torch
from forked import run_ranks
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vision_tutorial.core.task import VOID, from_masks
from vision_tutorial.segmentation.metrics import BAND, Overlap, boundaries

CLASSES = tuple("abcdef")
C = len(CLASSES)


def batch(n: int, seed: int, size: tuple[int, int] = (13, 17), present: int = C) -> tuple:
    """Logits that know something, and masks with void and blobs of `present` classes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, present + 1, *size, generator=generator)
    coarse = F.avg_pool2d(coarse, 5, 1, 2)
    masks = coarse.argmax(1)
    masks[masks == present] = VOID
    masks = masks.to(torch.uint8)
    hint = F.one_hot(masks.long().clamp(max=C), C + 1)[..., :C].permute(0, 3, 1, 2)
    logits = torch.randn(n, C, *size, generator=generator) + 2 * hint
    return logits, masks


def measured(logits: Tensor, masks: Tensor, *cuts: int) -> tuple[dict, dict]:
    meter = Overlap(CLASSES)
    pieces = zip(logits.tensor_split(cuts), masks.tensor_split(cuts), strict=True)
    for some, theirs in pieces:
        if len(some):
            meter.update(some, from_masks(theirs))
    return meter.result(meter.state), meter.table(meter.state)


@pytest.mark.parametrize("present", [1, 3, C])
def test_iou_equals_torchmetrics(present):
    logits, masks = batch(7, 0, present=present)
    found, table = measured(logits, masks)
    oracle = MulticlassJaccardIndex(C, ignore_index=VOID, average="none")
    oracle.update(logits.argmax(1), masks.long())
    each = oracle.compute()
    pixels = oracle.confmat
    union = pixels.sum(0) + pixels.sum(1) - pixels.diag()
    assert found["miou"] == pytest.approx(100 * each[union > 0].mean().item(), abs=1e-4)
    assert found["classes_found"] == (union > 0).sum()
    assert table["confusion"] == pixels.tolist()
    for iou, value, some in zip(table["iou"], each, union, strict=True):
        assert iou == (pytest.approx(100 * value.item(), abs=1e-4) if some else None)
    recall = MulticlassAccuracy(C, ignore_index=VOID, average="none")
    recall.update(logits.argmax(1), masks.long())
    known = [(a, b) for a, b in zip(table["accuracy"], recall.compute(), strict=True) if a]
    assert [a for a, _ in known] == pytest.approx([100 * b.item() for _, b in known], abs=1e-4)
    ids = masks.long()
    entropy = F.cross_entropy(logits.double(), ids, ignore_index=VOID)
    assert found["cross_entropy"] == pytest.approx(entropy.item(), abs=1e-5)
    agree = (logits.argmax(1) == ids)[ids != VOID].double().mean()
    assert found["pixel_accuracy"] == pytest.approx(100 * agree.item())


def test_means_over_images_and_batches():
    logits, masks = batch(5, 3)
    masks[4] = VOID  # nothing to say of this one
    found, _ = measured(logits, masks, 2)

    def by_loop(some: slice) -> float:
        said, truth = logits[some].argmax(1), masks[some].long()
        said = said[truth != VOID]
        truth = truth[truth != VOID]
        pairs = [((said == c) & (truth == c), (said == c) | (truth == c)) for c in range(C)]
        return float(np.mean([100 * (a.sum() / b.sum()).item() for a, b in pairs if b.any()]))

    alone = [by_loop(slice(i, i + 1)) for i in range(4)]
    assert found["miou_images"] == pytest.approx(np.mean(alone), abs=1e-4)
    halves = [by_loop(slice(0, 2)), by_loop(slice(2, 5))]
    assert found["miou_batches"] == pytest.approx(np.mean(halves), abs=1e-4)
    assert found["images"] == 5


def test_boundaries_equal_erosion_class_by_class():
    ndimage = pytest.importorskip("scipy.ndimage")
    logits, masks = batch(4, 8, size=(60, 80))
    said = logits.argmax(1)
    said[0] = 0  # one class on both sides of what is void
    reach = round(BAND * 100)
    agreed, either = np.zeros(C), np.zeros(C)
    for image in range(4):
        void = (masks[image] == VOID).numpy()
        bands = []
        for ids in (masks[image].numpy(), said[image].numpy()):
            ids = np.where(void, VOID, ids)
            square = np.ones((2 * reach + 1, 2 * reach + 1))
            inner = [ndimage.binary_erosion(ids == c, square) for c in range(C)]
            bands.append([(ids == c) & ~inner[c] & ~void for c in range(C)])
        for c in range(C):
            agreed[c] += (bands[0][c] & bands[1][c]).sum()
            either[c] += (bands[0][c] | bands[1][c]).sum()
    found = boundaries(said, from_masks(masks), C)
    assert [counts.tolist() for counts in found] == [agreed.tolist(), either.tolist()]


def test_all_void_counts_nothing():
    logits, masks = batch(2, 0)
    found, table = measured(logits, masks.fill_(VOID))
    assert found["images"] == 2 and table["iou"] == [None] * C
    assert all(found[name] == 0 for name in found if name != "images")


def summed_over(world: int, rank: int) -> tuple[dict, dict]:
    """Every image a batch, dealt to processes in turn."""
    from vision_tutorial.engine import Distributed

    distributed = Distributed(threads=1)
    meter = Overlap(CLASSES)
    logits, masks = batch(7, 5)
    for i in range(rank, 7, world):
        meter.update(logits[i : i + 1], from_masks(masks[i : i + 1]))
    state = distributed.sum(meter.state)
    distributed.close()
    return meter.result(state), meter.table(state)


def test_any_number_of_processes_counts_the_same():
    alone = measured(*batch(7, 5), *range(1, 7))
    assert run_ranks(3, partial(summed_over, 3)) == [alone] * 3

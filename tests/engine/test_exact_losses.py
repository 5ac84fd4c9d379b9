"""A mean over what counts (class weights, void) does not depend on how images are dealt."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import run_ranks
from PIL import Image
from torch import nn
from torch.nn import functional as F

from vision_tutorial import build
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.core.task import VOID, Batch, from_masks
from vision_tutorial.engine import Distributed, evaluate
from vision_tutorial.engine.step import take_step
from vision_tutorial.losses import WeightedSum
from vision_tutorial.recipe.loading import load

WEIGHTS = [0.2, 5.0, 1.0]
BASE = ["threads=1", "ema=null", "clip=null", "augment=[]", "mix=null", "optimizer={sgd: {lr: 1}}"]
LOSSES = {
    "weighted": f"{{cross_entropy: {{class_weights: {WEIGHTS}, label_smoothing: 0.1}}}}",
    "focal": f"{{focal: {{alpha: {WEIGHTS}}}}}",
    "bce": "{bce: {smoothing: 0.1}}",
    "of images": "{dice: {reduce: image, weight: 0.5}, lovasz: {reduce: image, weight: 0.5}}",
    "both": f"{{cross_entropy: {{weight: 0.5, class_weights: {WEIGHTS}}}, label_smoothing: 0.5}}",
}


class Masks:
    """Images whose masks are void in very different shares, and one of them as a whole."""

    name, classes, dense = "masks", ("a", "b", "c"), True

    def __init__(self, n: int = 24, sizes: tuple = ((8, 8),)):
        rng = np.random.default_rng(0)
        self.pairs = []
        for i in range(n):
            height, width = sizes[i % len(sizes)]
            mask = rng.integers(0, 3, (height, width)).astype(np.uint8)
            mask[: [0, height // 2, height - 1, height][i % 4]] = VOID
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            self.pairs.append((Image.fromarray(image), mask))
        self.targets = np.zeros(n, np.int64)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple:
        return self.pairs[index]

    def key(self, index: int) -> str:
        return str(index)


def labels() -> ArraySource:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    return ArraySource("labels", images, rng.integers(0, 3, 24), ("a", "b", "c"))


def recipe(dense: bool, loss: str, **more: int):
    task = "segmentation" if dense else "classification"
    words = [*BASE, f"task={task}", "batch_size=24", f"loss={loss}", "normalize=half"]
    return load("recipes/debug.yaml", [*words, *(f"{k}={v}" for k, v in more.items())]).recipe


def network(dense: bool) -> nn.Module:
    torch.manual_seed(0)
    if dense:
        return nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def steps(parts: int) -> dict:
    """The weights and the loss reported after two steps, by track and loss."""
    distributed, found = Distributed(threads=1), {}
    for dense in (False, True):
        source = Masks() if dense else labels()
        for name, loss in LOSSES.items():
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(build, "model", lambda *_, dense=dense: network(dense))
                wanted = recipe(dense, loss, micro_batch=24 // parts)
                training = build.training_state(wanted, source, distributed)
            data = build.train_pipeline(wanted, source, distributed)
            assert training.accumulation_steps * distributed.world == parts
            for step, batches in enumerate(data.train(0, 2, training.accumulation_steps)):
                result = take_step(training, batches, step, False).read()
            weights = torch.cat([p.detach().flatten() for p in training.model.parameters()])
            found[dense, name] = [*weights.tolist(), result.loss]
    distributed.close()
    return found


@pytest.mark.parametrize(("world", "parts"), [(1, 3), (1, 12), (2, 2), (2, 12), (3, 3), (3, 12)])
def test_a_step_is_the_same_for_all_micro_batches_and_processes(world: int, parts: int) -> None:
    whole = run_ranks(1, lambda rank: steps(1))[0]
    for found in run_ranks(world, lambda rank: steps(parts)):
        for key, values in whole.items():
            assert found[key] == pytest.approx(values, abs=3e-6), key


def test_a_weighted_step_is_that_of_the_mean_over_the_whole_batch() -> None:
    """An oracle in float64: the gradient of Σ w_y (−log p_y) / Σ w_y over all images."""
    distributed, source = Distributed(threads=1), labels()
    wanted = recipe(False, f"{{cross_entropy: {{class_weights: {WEIGHTS}}}}}", micro_batch=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "model", lambda *_: network(False))
        training = build.training_state(wanted, source, distributed)
    data = build.train_pipeline(wanted, source, distributed)
    own = network(False).double()
    images = torch.from_numpy(source.images).permute(0, 3, 1, 2).double() / 127.5 - 1
    log_p = own(images).log_softmax(1)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[torch.from_numpy(source.targets)]
    loss = -(weights * log_p[torch.arange(24), source.targets]).sum() / weights.sum()
    loss.backward()
    (batches,) = data.train(0, 1, 12)
    result = take_step(training, batches, 0, False).read()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    for mine, theirs in zip(training.model.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-6, rtol=0)
    distributed.close()


def test_the_loss_of_an_evaluation_is_the_same_for_all_batches_and_processes() -> None:
    by_image = {"dice": "dice", "ohem": "{ohem: {min_kept: 5, threshold: 0.2}}"}

    def of_rank(rank: int) -> dict:
        distributed, found = Distributed(threads=1), {}
        for dense in (False, True):
            source = Masks() if dense else labels()
            for name, loss in (LOSSES | by_image).items():
                for size in (24, 7, 1):
                    wanted = recipe(dense, loss, eval_batch_size=size)
                    task = build.task(wanted, source.classes)
                    given = (wanted, source, network(dense), task, distributed)
                    found[dense, name, size] = build.evaluation(*given).metrics["loss"]
        distributed.close()
        return found

    (alone,), both = run_ranks(1, of_rank), run_ranks(2, of_rank)
    for found in (alone, *both):
        for (dense, name, _), value in found.items():
            assert value == pytest.approx(alone[dense, name, 24], abs=1e-6), (dense, name)
    source = Masks()  # and it is what a loop over all pixels gives
    images = torch.stack([torch.from_numpy(np.array(image)) for image, _ in source.pairs])
    target = from_masks(torch.from_numpy(np.stack([mask for _, mask in source.pairs])))
    output = network(True).double()(images.permute(0, 3, 1, 2).double() / 127.5 - 1)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    oracle = F.cross_entropy(output, target, weights, label_smoothing=0.1).item()
    assert alone[True, "weighted", 7] == pytest.approx(oracle, abs=1e-6)


def test_images_of_several_sizes_are_evaluated_each_in_its_own() -> None:
    """Those of one size in a batch together, as if they were alone; nothing is padded."""
    distributed, source = Distributed(threads=1), Masks(10, ((8, 8), (5, 9), (8, 8), (12, 4)))
    found = []
    for size in (10, 4, 1):
        wanted = recipe(True, "cross_entropy", eval_batch_size=size)
        task = build.task(wanted, source.classes)
        given = (wanted, source, network(True), task, distributed)
        found.append(build.evaluation(*given))
    assert [made.images for made in found] == [10, 10, 10]
    for made in found[1:]:
        assert made.table == found[0].table
        kept = {k: v for k, v in made.metrics.items() if k != "miou_batches"}
        assert kept == pytest.approx({k: found[0].metrics[k] for k in kept}, abs=1e-6)
    distributed.close()


def test_what_does_not_fit_the_memory_is_evaluated_in_halves(caplog) -> None:
    distributed, source = Distributed(threads=1), labels()
    wanted = recipe(False, "cross_entropy", eval_batch_size=24)
    task, own, sizes = build.task(wanted, source.classes), network(False), []

    def answer(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 7:  # as torch says it, of this machine's memory
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …")
        return own(batch.images)

    given = (wanted, source, own, task, distributed)
    whole, halved = build.evaluation(*given), build.evaluation(*given, answer=answer)
    assert halved.metrics == pytest.approx(whole.metrics, abs=1e-6)
    assert halved.table == whole.table and sizes == [24, 12, 6, 6, 6, 6]
    assert "out of memory at 12 images; evaluating 6" in caplog.text

    def full(batch: Batch) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    with pytest.raises(RuntimeError, match="not enough"):
        build.evaluation(*given, answer=full)
    distributed.close()


def test_a_split_in_which_nothing_counts_has_no_loss() -> None:
    nothing = torch.full((2, 4, 4), -100)
    criterion = WeightedSum(load("recipes/debug.yaml", ["loss=cross_entropy"]).recipe.loss)
    batches = iter([[Batch(torch.zeros(2, 3, 4, 4), nothing)]])
    task = build.task(recipe(True, "cross_entropy"), ("a", "b"))
    alone = SimpleNamespace(any=bool, sum=lambda x: x)
    found = evaluate(
        lambda batch: torch.zeros(2, 2, 4, 4), nn.Identity(), batches, 1, task, criterion, alone
    )
    assert found.metrics["loss"] == 0 and not math.isnan(found.metrics["miou"] or 0.0)

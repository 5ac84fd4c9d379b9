"""No training or evaluation step makes the host wait for a GPU; shown without one.

Tensors of a made-up CUDA device have no values (PyTorch's FakeTensor), so whatever needs one on the
host fails here; copies to the device that a real one would wait for are counted.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_ranks
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vision_tutorial import build, losses
from vision_tutorial.data import pipeline
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.loop import evaluating
from vision_tutorial.engine.step import ASYNC_STEPS, async_steps_of, take_step
from vision_tutorial.recipe.loading import load

GPU = torch.device("cuda", 0)
SIZES = ["batch_size=8", "eval_batch_size=8", "workers=0", "threads=1"]
SMALL = ["model={test_resnet: {stem: cifar}}", "dataset={shapes: {train: 16, test: 8, size: 16}}"]


class MadeUpGpu(TorchDispatchMode):
    """Operations on tensors of a CUDA device that is not there. waits: by operation, how often a
    host would have waited for it."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        to = kwargs.get("device")
        to_gpu = to is not None and torch.device(to).type == "cuda"
        if not to_gpu and not any(isinstance(x, FakeTensor) for x in tensors):
            kwargs.pop("pin_memory", None)
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        from_host = [x for x in tensors if x.device.type == "cpu" and x.dim()]
        on_gpu = to_gpu or any(x.device.type == "cuda" for x in tensors)
        asynchronous = kwargs.get("non_blocking") or (func.__name__ == "copy_.default" and args[2:])
        if from_host and on_gpu and not asynchronous:
            stack = traceback.extract_stack()[:-1]
            frame = next((f for f in stack[::-1] if "/vision_tutorial/" in f.filename), stack[-1])
            where = f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"
            self.waits[f"{where} ({func})"] += 1
        if func.__name__.startswith("_fused_"):  # torch's optimizers; FakeTensor has none
            return None
        return func(*args, **kwargs)


def waits(body: Callable[[MadeUpGpu], None]) -> Counter[str]:
    """Where `body` would have waited for a GPU. In a process of its own: with a made-up device
    autograd has threads, and no process could be forked any more."""

    def on_gpu(rank: int) -> Counter[str]:
        event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
        torch.cuda.Event = lambda **given: event
        torch.cuda.mem_get_info = lambda device: (2**34, 2**34)
        torch.cuda.manual_seed = lambda number: None
        torch.Tensor.pin_memory = lambda tensor: tensor
        torch.nn.Module.to = lambda module, *given, **options: module  # it was made there
        pipeline.ahead = lambda made, device: made
        Distributed.wrap = lambda self, model, *given, **options: model
        with FakeTensorMode(allow_non_fake_inputs=True), MadeUpGpu() as gpu:
            body(gpu)
        return gpu.waits

    (found,) = run_ranks(1, on_gpu)
    return found


MASKS = ["recipes/debug.yaml", "dataset={shapes: {train: 16, test: 8, size: 32, masks: true}}"]
MASKS += ["task=segmentation", "model={fcn: {backbone: test_resnet}}", "augment=[hflip]"]
MASKS += ["mix=null"]
DEBUG = ["recipes/debug.yaml", *SMALL]
WEIGHTS = [1.0] * 9 + [2.0]
RECIPES = {
    "r0": ["recipes/r0.yaml", *SMALL],
    "r4": ["recipes/r4.yaml", *SMALL],
    "r4 in parts": ["recipes/r4.yaml", *SMALL, "micro_batch=4"],
    "r5": ["recipes/r5.yaml", *SMALL],
    "pair": [*DEBUG, "mix={cutmix: {mode: pair}}"],
    "elem": [*DEBUG, "mix={mixup: {mode: elem, weight: 0.5}, cutmix: {mode: elem, weight: 0.5}}"],
    "erasing": [*DEBUG, "augment=[{random_erasing: {p: 1.0}}]"],
    "timm": [*DEBUG, "data.path=timm", "augment=[hflip]"],
    "host": [*DEBUG, "data.memory=host"],
    "weights": [*DEBUG, f"loss={{cross_entropy: {{class_weights: {WEIGHTS}}}}}", "micro_batch=4"],
    "focal": [*DEBUG, f"loss={{focal: {{alpha: {WEIGHTS}}}}}"],
    "bce": [*DEBUG, f"loss={{bce: {{pos_weight: 2.0, class_weights: {WEIGHTS}}}}}"],
    "ema": [*DEBUG, "ema={decay: 0.9}", "clip={agc: 0.01}"],
    "jsd": [*DEBUG, "loss=jsd", "augment=[aug_mix]", "mix=null"],
    "segmentation": [*MASKS, "loss={cross_entropy: 1, dice: 1, ohem: 1}"],
    "mixup": [*DEBUG, "mix={mixup: {alpha: 0.8}}"],
    "lion": [*DEBUG, "optimizer={lion: {lr: 0.01}}"],
    "muon": [*DEBUG, "optimizer={muon: {lr: 0.01}}"],
    "lamb": [*DEBUG, "optimizer={lamb: {lr: 0.01}}"],
    "lovasz": [*MASKS, "loss=lovasz"],
}


def of_gpu(words: list[str]) -> tuple:
    """(recipe, splits, training state, Distributed) of a training on the device."""
    recipe = load(words[0], [*words[1:], *SIZES]).recipe
    distributed = Distributed(recipe.precision, 1)
    distributed.device = GPU
    both = build.data(recipe)
    with torch.device(GPU):
        training = build.training_state(recipe, both.train, distributed)
    return recipe, both, training, distributed


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES)
def test_no_training_step_waits_for_the_gpu(words: list[str]) -> None:
    def steps(gpu: MadeUpGpu) -> None:
        recipe, both, training, distributed = of_gpu(words)

        def backward(*given: object, **options: object) -> None:  # autograd's is torch's own
            for parameter in training.parameters:
                parameter.grad = torch.zeros_like(parameter)

        distributed.backward = backward
        backward()
        training.optimizer.step()  # which makes its state
        training.async_steps = async_steps_of(training)
        assert training.async_steps == ASYNC_STEPS
        plan = build.plan(recipe, both, training, distributed)
        training.model.train()
        gpu.waits.clear()
        for step, batches in enumerate(plan.batches(0, 2, training.accumulation_steps)):
            take_step(training, batches, step, False)

    assert not waits(steps)


@pytest.mark.parametrize("name", ["r4", "ema", "segmentation"])
def test_no_evaluation_batch_waits_for_the_gpu(name: str) -> None:
    def batches(gpu: MadeUpGpu) -> None:
        recipe, both, training, distributed = of_gpu(RECIPES[name])
        data = build.eval_pipeline(recipe, both.val, distributed)
        criterion, meter = losses.WeightedSum(recipe.loss), training.task.meter()
        gpu.waits.clear()
        with evaluating(training.model), torch.no_grad():
            for batch in (one for some in data.evaluation() for one in some):
                output = training.model(batch.images).float()
                criterion.sums(output, batch.target)
                meter.update(output, batch.target)

    assert not waits(batches)


def test_a_wait_is_seen() -> None:
    def copies(gpu: MadeUpGpu) -> None:
        torch.tensor([1.0, 2.0], device=GPU)

    assert sum(waits(copies).values()) == 1

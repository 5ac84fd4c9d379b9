"""No training or evaluation step makes the host wait for a GPU; shown without one.

Tensors of a made-up CUDA device have no values (PyTorch's FakeTensor), so whatever needs one on the
host fails here; copies to the device that a real one would wait for are counted.
"""

import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vision_tutorial import build, losses
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
            ours = [f for f in traceback.extract_stack() if "/vision_tutorial/" in f.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}"
            self.waits[f"{where} ({func})"] += 1
        if func.__name__.startswith("_fused_"):  # torch's optimizers; FakeTensor has none
            return None
        return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch):
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **given: event)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda number: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *given, **options: module)
    monkeypatch.setattr("vision_tutorial.data.pipeline.ahead", lambda made, device: made)
    monkeypatch.setattr(Distributed, "wrap", lambda self, model, *given, **options: model)
    with FakeTensorMode(allow_non_fake_inputs=True), MadeUpGpu() as made:
        yield made


MASKS = ["recipes/debug.yaml", "dataset={shapes: {train: 16, test: 8, size: 32, masks: true}}"]
MASKS += ["task=segmentation", "model={fcn: {backbone: test_resnet}}", "augment=[hflip]", "mix=null"]
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


def of_gpu(words):
    """(recipe, splits, training state, Distributed) of a training on the device."""
    recipe = load(words[0], [*words[1:], *SIZES]).recipe
    distributed = Distributed(recipe.precision, 1)
    distributed.device = GPU
    both = build.data(recipe)
    with torch.device(GPU):
        training = build.training_state(recipe, both.train, distributed)
    return recipe, both, training, distributed


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES)
def test_no_training_step_waits_for_the_gpu(gpu, words):
    recipe, both, training, distributed = of_gpu(words)

    def backward(*given, **options):  # autograd's own threads ask the driver; its work is torch's
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
    assert not gpu.waits


@pytest.mark.parametrize("words", [RECIPES[name] for name in ("r4", "ema", "segmentation")])
def test_no_evaluation_batch_waits_for_the_gpu(gpu, words):
    recipe, both, training, distributed = of_gpu(words)
    data = build.eval_pipeline(recipe, both.val, distributed)
    criterion, meter = losses.WeightedSum(recipe.loss), training.task.meter()
    gpu.waits.clear()
    with evaluating(training.model), torch.no_grad():
        for batches in data.evaluation():
            for batch in batches:
                output = training.model(batch.images).float()
                criterion.sums(output, batch.target)
                meter.update(output, batch.target)
    assert not gpu.waits

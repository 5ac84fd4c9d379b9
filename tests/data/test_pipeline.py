"""The batched path end to end: whichever code carries it out, however it is split up."""

import hashlib

import numpy as np
import pytest
import torch
from data.oracle import drawn
from forked import run_ranks

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.sources import ArraySource, Subset
from vision_tutorial.data import pipeline
from vision_tutorial.data.executors import cpu
from vision_tutorial.data.loader import batched_plan
from vision_tutorial.data.pipeline import DataPipeline, WorkerContext
from vision_tutorial.recipe.loading import load

CPU = torch.device("cpu")
CHAIN = (
    "augment=[{random_resized_crop: {size: 20}}, hflip, color_jitter, auto_augment, "
    "{random_erasing: {p: 0.5}}]"
)


def source(n=48, size=(24, 20)):
    images = drawn(np.random.default_rng(0), n, *size)
    return ArraySource("drawn", images, np.arange(n) % 10, tuple("abcdefghij"))


def recipe(*more):
    return load("recipes/debug.yaml", [CHAIN, "batch_size=16", *more]).recipe


def made(wanted, images=None, training=True, device=CPU, **more):
    return DataPipeline(
        wanted, images or source(), WorkerContext(device, **more), training=training
    )


def batches(wanted, images=None, start=0, stop=6, **more):
    """Raw batches and what the network sees of them."""
    data = made(wanted.model_copy(update={"mix": None}), images, **more)
    raws = data.raw_training(start, stop)
    return [(raw, data.preprocess(raw, start + i)[0]) for i, raw in enumerate(raws)]


def by_item(found):
    """(epoch, index) -> a checksum of what the network sees and is asked for."""
    return {
        tuple(item): hashlib.sha256(
            image.contiguous().numpy().tobytes() + target.numpy().tobytes()
        ).hexdigest()
        for raw, batch in found
        for item, image, target in zip(raw.items.tolist(), batch.images, batch.target, strict=True)
    }


def test_compiled_and_tensor_code_make_the_same_batches(monkeypatch):
    fast = batches(recipe())
    monkeypatch.setattr(cpu, "has_numba", lambda: False)
    slow = batches(recipe())
    for (_, one), (_, other) in zip(fast, slow, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)
        assert one.images.is_contiguous(memory_format=torch.channels_last)
    plain = batches(recipe("channels_last=false"))
    assert torch.equal(plain[0][1].images, fast[0][1].images)
    assert plain[0][1].images.is_contiguous()


def test_a_training_that_resumes_sees_the_same_batches():
    wanted = recipe("mix={cutmix: 1, mixup: 1}")
    through, resumed = list(made(wanted).train(0, 6, 2)), list(made(wanted).train(4, 6, 2))
    for one, other in zip(sum(through[4:], []), sum(resumed, []), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)


def test_images_do_not_depend_on_the_batch_size_or_the_number_of_processes():
    """Each process in a process of its own: what they make together is what one would make."""
    whole = by_item(batches(recipe()))
    for size in (4, 48):
        assert by_item(batches(recipe(f"batch_size={size}"), stop=2 * 48 // size)) == whole
    shares = run_ranks(4, lambda rank: by_item(batches(recipe(), rank=rank, world=4)))
    assert sum(map(len, shares)) == len(whole)
    assert {item: image for share in shares for item, image in share.items()} == whole


@pytest.mark.parametrize("path", ["auto", "timm"])
@pytest.mark.parametrize("chain", ["{random_crop: {size: 8}}", "{random_erasing: {p: 1.0}}"])
def test_each_image_draws_its_own_in_each_epoch(chain, path):
    alike = ArraySource("alike", source(1).images.repeat(48, 0), np.zeros(48, int), ("a", "b"))
    wanted = recipe(f"augment=[{chain}]", f"data.path={path}")
    found = by_item(batches(wanted, images=alike))
    assert len(found) == 96 and len(set(found.values())) > 70


def test_subsets_address_images_by_their_own_index():
    whole, chosen = source(), np.array([40, 3, 3, 17])
    inner = Subset(Subset(whole, np.arange(1, 48)), chosen - 1)
    ((raw,),) = made(recipe("eval_augment=[]"), inner, training=False).raw_evaluation()
    assert np.array_equal(raw.images.permute(0, 2, 3, 1), whole.images[chosen])
    assert raw.target.tolist() == whole.targets[chosen].tolist()


def test_evaluations_see_every_image_once_and_remember_what_fits(monkeypatch):
    wanted = load("recipes/r4.yaml", ["eval_batch_size=10"]).recipe
    whole = source(size=(32, 32))
    seen = []
    for rank in range(3):
        data = made(wanted, whole, training=False, rank=rank, world=3)
        first, again = list(data.raw_evaluation()), list(data.raw_evaluation())
        assert all(a is b for a, b in zip(first, again, strict=True))
        for (raw,) in first:
            seen += zip(raw.items[:, 1].tolist(), raw.images, strict=True)
    assert sorted(i for i, _ in seen) == list(range(48))
    monkeypatch.setattr(pipeline, "KEPT_BYTES", 20_000)
    data = made(wanted, whole, training=False)
    first, again = list(data.raw_evaluation()), list(data.raw_evaluation())
    assert not any(a is b for a, b in zip(first, again, strict=True))
    singly = load("recipes/r4.yaml", ["eval_batch_size=10", "data.path=timm"]).recipe
    for (raw,) in made(singly, whole, training=False).raw_evaluation():
        for (_, i), image in zip(raw.items.tolist(), raw.images, strict=True):
            assert torch.equal(dict(seen)[i], image)


# --- which path --------------------------------------------------------------------------------

NO_FORM = "augment=[{random_crop: {size: 16}}, gaussian_blur]"


def test_the_recipe_chooses_the_path():
    assert batched_plan(recipe()) is not None
    assert batched_plan(recipe("data.path=batched")) is not None
    assert batched_plan(recipe("data.path=timm")) is None
    assert batched_plan(recipe(NO_FORM)) is None
    assert batched_plan(recipe(), copies=2) is None
    with pytest.raises(UserError, match="augment: gaussian_blur .* has no batched form"):
        batched_plan(recipe(NO_FORM, "data.path=batched"))
    with pytest.raises(UserError, match="jsd needs copies of images; data.path=batched has none"):
        batched_plan(recipe("data.path=batched"), copies=2)

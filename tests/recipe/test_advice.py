"""Each check speaks when it should and is silent beside; what is said of losses is so."""

import pytest
import timm.optim
import torch
from torch.nn import functional as F

from vision_tutorial.losses import WeightedSum
from vision_tutorial.recipe.advice import Advice, advice
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.recipe_info import (
    RecipeInfo,
    batch_parts,
    recipe_info,
    smoothing_floor,
)

FOLDER = "dataset={image_folder: {root: x}}"
# what is said, from its key on; below it overrides with which it is said | near ones without
SPEAK = """
model.resnet18.stem: an ImageNet stem on images of 32 px
    model=resnet18 | model={resnet18: {stem: cifar}}
eval_augment: training sees 32 px, evaluation 36 px
    eval_augment=[{resize: {size: [40, 36]}}] | eval_augment=[{center_crop: {size: 32}}]
eval_augment: nothing crops
    FOLDER & eval_augment=[{resize: {size: 32}}] | FOLDER & eval_augment=[{center_crop: {size: 32}}]
augment: color_jitter beside rand_augment
    augment=[color_jitter, rand_augment] | augment=[color_jitter]
normalize: cifar10 normalised by cifar100
    dataset=cifar10 & normalize=cifar100 | dataset=cifar10 & normalize=cifar10
normalize: pretrained weights
    model.test_resnet.pretrained=true |
loss.cross_entropy.label_smoothing: targets are smoothed by 0.1
    loss={cross_entropy: {label_smoothing: 0.1}} | loss=cross_entropy
holdout: the best epoch is chosen on the test
    holdout=0 | holdout=0.1
seed: one seed is one draw
    seed=1 |
loss.jsd: jsd trains on 3 versions
    loss=jsd | loss=bce
loss.focal: with these options focal is cross_entropy
    loss={focal: {gamma: 0}} | loss={focal: {gamma: 0, alpha: [1, 2]}}
loss: 1 cross_entropy + 1 focal is one loss
    loss={cross_entropy: 1, focal: {gamma: 0}} | loss={cross_entropy: 1, focal: 1}
aux_loss.tanimoto: with these options tanimoto is jaccard
    aux_loss=tanimoto | aux_loss={tanimoto: {gamma: 2}}
balance: no weighted sum has two terms
    balance=ema | balance=ema & loss={bce: 1, focal: 1}
balance: the calibration takes 14 steps, the training 14
    balance.calibrate=14 & loss.focal=1 & epochs=1 | balance.calibrate=13 & loss.focal=1 & epochs=1
batch_size: 256 is more than the 255 training images
    subset=255 | subset=256
optimizer.sgd.lr: lr 0.1 was meant for batch_size 256, not 512
    batch_size=512 | batch_size=512 & optimizer.sgd.lr=0.2
optimizer.sgd.lr: lr 10 for batch_size 256
    optimizer.sgd.lr=10 | optimizer.sgd.lr=0.5
optimizer.adam.lr: lr 0.1 is one for SGD
    optimizer={adam: {lr: 0.1}} | optimizer={adam: {lr: 0.01}}
warmup.epochs: 30 epochs of warm-up over 30 epochs
    warmup.epochs=30 | warmup.epochs=29
warmup.lr: the warm-up starts at 1
    warmup={epochs: 1, lr: 1} | warmup={epochs: 1, lr: 0.1}
cooldown.epochs: 30 epochs become 31: 1 of cool-down come on top
    cooldown.epochs=1 |
warmup.mode: 30 epochs become 34: 4 of warm-up in front come on top
    warmup={epochs: 4, mode: front} | warmup={epochs: 4}
schedule_unit: the lr moves once an epoch, 20
    epochs=20 | epochs=20 & schedule_unit=step
ema.decay: the average reaches back 1,000 steps
    ema={decay: 0.999, warmup: false} | ema={decay: 0.9, warmup: false}
ema.decay: the average reaches back 1,000 steps
    ema={decay: 0.999, warmup: false} | ema={decay: 0.999}
optimizer.adam.weight_decay: in adam
    optimizer={adam: {lr: 1e-3, weight_decay: 0.1}} | optimizer={adamw: {lr: 1e-3}}
mix: pairs in a micro-batch of 9 images
    mix=cutmix & micro_batch=9 | mix=cutmix
micro_batch: BatchNorm sees 7 images
    micro_batch=7 | micro_batch=8
precision: fp16 needs a GPU
    precision=fp16 | precision=bf16
"""
SPEAK = SPEAK.strip().replace("FOLDER", FOLDER).splitlines()


@pytest.fixture
def said(tiny):
    """What is said of the tiny recipe with overrides beside one with `base`, by "key: what"."""

    def said(*overrides: str, base: tuple[str, ...] = ()) -> dict[str, Advice]:
        recipe = load(tiny, [*base, *overrides]).recipe
        info = recipe_info(recipe, load(tiny, base).recipe if overrides else None)
        more = {"micro_batch": recipe.micro_batch or 128, "batch_norm": True, "gpu": False}
        items = advice(recipe, RecipeInfo(**{**vars(info), **more}))
        return {f"{item.key}: {item.what}": item for item in items}

    said.loss = lambda text: WeightedSum(load(tiny, [text]).recipe.loss)
    return said


@pytest.mark.parametrize(("start", "overrides"), list(zip(SPEAK[::2], SPEAK[1::2], strict=True)))
def test_advice_is_given_when_it_should(said, start, overrides):
    speaking, silent = (part.split(" & ") for part in overrides.strip().split(" |"))
    silent = [word.strip() for word in silent if word.strip()]
    (item,) = (item for text, item in said(*speaking).items() if text.startswith(start))
    assert item.key.split(".")[0] in Recipe.model_fields
    assert not any(text.endswith(".") for text in item)  # the printer ends the sentence
    assert not any(text.startswith(start) for text in said(*silent))


def test_numbers_in_advice(said):
    assert said() == {}, "of a sound recipe"
    for base, more, do in (
        ((), [], "optimizer.sgd.lr=0.4,"),
        (("optimizer={adamw: {lr: 0.001}}",), [], "optimizer.adamw.lr=0.002,"),
        ((), ["optimizer.sgd.lr=0.2"], None),  # was changed on purpose
    ):
        items = said("batch_size=1024", *more, base=base).items()
        found = [item.do for text, item in items if "was meant for" in text]
        assert found == [] if do is None else found[0].startswith(do)
    texts = said("loss={label_smoothing: {epsilon: 0.2}}", FOLDER)
    assert "cannot fall below 0" in next(text for text in texts if "smoothed" in text)
    for more, alike in (([], True), (["augment=[aug_mix]"], False)):
        why = next(item.why for item in said("loss=jsd", *more).values() if item.key == "loss.jsd")
        assert ("would be alike" in why) == alike
    twice = "loss={focal: {gamma: 0}, cross_entropy: 1}"
    for overrides, step in (
        ([twice], "2 times that of one: Adam divides it out, madgrad takes a step of 1.26"),
        (["loss={label_smoothing: 0.75, cross_entropy: 0.25}"], "sum to 1"),
    ):
        assert step in next(x.why for x in said(*overrides).values() if x.key == "loss")


ALIKE = [
    "{tversky: {alpha: 0.5, beta: 0.5, smooth: 0.75}}",
    "{tversky: {alpha: 1, beta: 1, smooth: 0.75}}",
    "{tanimoto: {smooth: 0.75}}",
    "{focal: {gamma: 0}, cross_entropy: 1}",
    "{cross_entropy: {weight: 3, label_smoothing: 0.1}, focal: {gamma: 0, weight: 0.5}}",
]


@pytest.mark.parametrize("loss", ALIKE)
def test_the_named_loss_has_the_same_value(said, loss):
    items = (item for item in said(f"loss={loss}").values() if item.key.startswith("loss"))
    instead = min(items, key=lambda item: len(item.key)).do.partition(", or")[0]
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 3, dtype=torch.float64)
    ids = torch.randint(5, (4, 3))
    given, other = said.loss(f"loss={loss}"), said.loss(instead)
    torch.testing.assert_close(given(logits, ids)[0], other(logits, ids)[0], rtol=1e-6, atol=0)


def test_madgrads_step_grows_by_the_cube_root():
    moves = []
    for factor in (1.0, 2.0):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = timm.optim.create_optimizer_v2([weight], "madgrad", lr=1e-2, eps=0.0)
        for gradient in ([1.0, -2.0, 3.0], [0.5, 1.0, -1.0]):
            weight.grad = factor * torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
        moves.append(weight.detach() - 1)
    torch.testing.assert_close(moves[1] / moves[0], torch.full((3,), 2 ** (1 / 3)).double())


def test_the_floor_is_what_a_perfect_network_gets():
    best = torch.full((1, 1000), 0.9 / 1000, dtype=torch.float64)
    best[0, 0] += 0.1
    loss = F.cross_entropy(best.log(), torch.tensor([0]), label_smoothing=0.9).item()
    assert smoothing_floor(0.9, 1000) == pytest.approx(loss, rel=1e-12)


def test_micro_batches_of_mixed_images_are_even(tiny):
    for mix, parts in (("mix=", 4), ("mix=cutmix", 6)):  # of 9 images each, or of 6
        recipe = load(tiny, ["batch_size=36", "micro_batch=9", mix]).recipe
        assert batch_parts(recipe, 1, on_gpu=True) == parts

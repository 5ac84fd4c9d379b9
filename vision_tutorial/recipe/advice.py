"""Advice on a recipe that is valid, and perhaps not what was meant.

Each function of `CHECKS` looks at one part of a recipe and yields what may be a mistake, as a text
of three lines: `key: what is so`, why it matters, what to do.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..core.errors import counted
from .fields import Recipe
from .grammar import Term
from .recipe_info import CIFAR, RESIZING, RecipeInfo, smoothing_floor

SGD = {"sgd", "momentum", "nesterov", "sgdw", "nesterovw"}
L2 = {"adam", "nadam", "nadamlegacy", "adamax", "rmsprop", "rmsproptf", "adagrad", "adadelta"}
LEARNED = {"auto_augment", "rand_augment", "trivial_augment", "aug_mix"}
ATTENTION = ("vit", "deit", "swin", "beit", "cait", "mixer")
SMOOTHED = {"cross_entropy": "label_smoothing", "label_smoothing": "epsilon"}
SMALL_IMAGE, SMALL_BATCH, FEW_EPOCHS = 64, 8, 20
TYPICAL_LR = (0.01, 2.0)  # SGD's, per 256 images; Goyal et al. 2017 have 0.1
MOST_ADAM_LR = 0.01


class Advice(NamedTuple):
    """Which key, what is so, why it matters, what to do."""

    key: str
    what: str
    why: str
    do: str


def advice(recipe: Recipe, info: RecipeInfo) -> list[Advice]:
    """What all checks say."""
    found = []
    for text in (text for check in CHECKS for text in check(recipe, info)):
        (key, _, what), why, do = text.partition(": "), *map(str.strip, text.split("\n")[1:3])
        found.append(Advice(key, what.partition("\n")[0], why, do))
    return found


def _images(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    model, side = recipe.model, info.side
    if side and info.eval_side and side != info.eval_side:
        yield f"""eval_augment: training sees {side} px, evaluation {info.eval_side} px
            objects appear in another size, and some networks take one size only
            eval_augment=[{{resize: {{size: {side}}}}}, {{center_crop: {{size: {side}}}}}]"""
    imagenet = model.options.get("stem") == "imagenet" and not model.name.startswith(ATTENTION)
    if imagenet and side and side <= SMALL_IMAGE:
        yield f"""model.{model.name}.stem: an ImageNet stem on images of {side} px
            it shrinks them 4 times; ResNet-50 on CIFAR-100: 62.7 % with it, 80.4 % without
            model.{model.name}.stem=cifar, where the family has it"""
    for key, size, transforms in (
        ("augment", side, recipe.augment),
        ("eval_augment", info.eval_side, recipe.eval_augment),
    ):
        last = [c for c in transforms if c.name.endswith(("crop", "resize"))][-1:]
        by_one_side = last and last[0].name == "resize" and isinstance(last[0].options["size"], int)
        if (size is None or by_one_side) and recipe.dataset.name == "image_folder":
            yield f"""{key}: nothing crops the images to one size
                a batch needs images of one size; `resize` sets the shorter side only
                end {key} with a crop, such as {{center_crop: {{size: 224}}}}"""


def _colours(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    names = {choice.name for choice in recipe.augment}
    if "color_jitter" in names and names & LEARNED:
        yield f"""augment: color_jitter beside {min(names & LEARNED)}: both are applied
            timm skips the jitter when AutoAugment is on, so a timm recipe means one of them
            remove color_jitter to have what timm does"""
    dataset, pretrained = recipe.dataset.name, recipe.model.options.get("pretrained")
    given = recipe.normalize if isinstance(recipe.normalize, str) else "your own"
    if pretrained and given != "imagenet":
        yield f"""normalize: pretrained weights, and images normalised by {given} constants
            most of timm's weights were trained with ImageNet's
            normalize=imagenet, unless the weights want it so"""
    elif not pretrained and dataset in CIFAR and given != dataset:
        yield f"""normalize: {dataset} normalised by {given} constants
            harmless when training from scratch, but not what papers on this data set do
            normalize={dataset}, unless a reference has it so"""


def _results(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    for term in recipe.loss:
        option = SMOOTHED.get(term.name, "")
        if epsilon := term.options.get(option):
            floor = f"{smoothing_floor(epsilon, info.classes):.3f} nats" if info.classes else "0"
            what = f"targets are smoothed by {epsilon:g}: this loss cannot fall below {floor}"
            yield f"""loss.{term.name}.{option}: {what}
                a perfect network has that loss; it cannot be compared with a plain one
                judge by top1 and by cross_entropy, the plain loss of validation"""
        if term.name == "jsd":
            count = term.options["num_splits"]
            varied = {choice.name for choice in recipe.augment} - {*RESIZING, "hflip", "vflip"}
            alike = "; without augmentation beyond crops and flips they would be alike"
            yield f"""loss.jsd: jsd trains on {count} versions of each image
                a step costs {count} times as much{"" if varied else alike}
                count it in; augment with aug_mix, which the loss was made for"""
    if not recipe.holdout:
        looks = info.epochs // recipe.eval_every
        yield f"""holdout: the best epoch is chosen on the test split
            the best of {looks} looks is no estimate of new data
            report `last`, or choose on a part of train: holdout=0.1"""
    if info.reference is not None:
        yield """seed: one seed is one draw
            on CIFAR-100 seeds spread by about 0.4 points: r3 to r5 (+0.37) is noise
            for a claim, train seed=43, seed=44, … too and compare means"""


def _batch(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    if info.steps_per_epoch == 0:
        yield f"""batch_size: {recipe.batch_size} is more than the {info.images} training images
            only whole batches are trained on, so there is none
            batch_size={info.images} or less, or a larger subset"""
    micro = info.micro_batch
    if info.batch_norm and micro and micro < SMALL_BATCH:
        yield f"""micro_batch: BatchNorm sees {counted(micro, "image")} at a time
            accumulation and processes do not help: each forward pass has its own statistics
            a larger micro_batch or batch_size, sync_bn=true on GPUs, or a model without it"""
    if recipe.mix and micro and micro % 2:
        yield f"""mix: pairs in a micro-batch of {counted(micro, "image")}
            the middle one meets itself and stays as it is
            an even batch_size"""


def _optimizer(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    name, options, before = recipe.optimizer.name, recipe.optimizer.options, info.reference
    lr, batch, sgd, key = options["lr"], recipe.batch_size, name in SGD, f"optimizer.{name}"
    if before and before.optimizer.name == name and before.optimizer.options["lr"] == lr:
        factor = batch / before.batch_size
        rule, scaled = "in proportion (Goyal et al. 2017)", lr * factor
        if not sgd:
            rule, scaled = "by its square root", lr * factor**0.5
        if factor != 1:
            yield f"""{key}.lr: lr {lr:g} was meant for batch_size {before.batch_size}, not {batch}
                a step averages {factor:g} times the images, and lr usually follows {rule}
                {key}.lr={scaled:.4g}, or keep it on purpose"""
    low, high = (x * batch / 256 for x in TYPICAL_LR)
    if sgd and not low <= lr <= high:
        yield f"""{key}.lr: lr {lr:g} for batch_size {batch}
            from scratch SGD usually takes about {batch / 2560:.2g}, else less
            check the number of zeros"""
    if "adam" in name and lr > MOST_ADAM_LR:
        yield f"""{key}.lr: lr {lr:g} is one for SGD
            Adam's steps have the length of the lr whatever the gradient; 0.001 is usual
            {key}.lr=0.001"""
    if name in L2 and options.get("weight_decay"):
        yield f"""{key}.weight_decay: in {name} weight decay is a part of the gradient
            large weights with large gradients hardly decay (Loshchilov & Hutter 2019)
            optimizer=adamw for decoupled decay, or {key}.weight_decay=0"""


def _time(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    epochs, warmup, cooldown = recipe.epochs, recipe.warmup, recipe.cooldown.epochs
    smooth = recipe.schedule.name in ("cosine", "poly", "one_cycle", "exponential")
    if smooth and recipe.schedule_unit == "epoch" and epochs <= FEW_EPOCHS:
        yield f"""schedule_unit: the lr moves once an epoch, {counted(epochs, "time")} in all
            a short training gets a staircase instead of a curve
            schedule_unit=step"""
    if warmup.mode == "overlap" and warmup.epochs >= epochs:
        lie = f"{counted(warmup.epochs, 'epoch')} of warm-up over {counted(epochs, 'epoch')}"
        yield f"""warmup.epochs: {lie}
            the schedule never has its turn
            fewer epochs of warm-up, or warmup.mode=front"""
    if warmup.epochs and warmup.lr > recipe.optimizer.options["lr"]:
        yield f"""warmup.lr: the warm-up starts at {warmup.lr:g}, above the lr
            it would fall instead of rise
            warmup.lr={recipe.optimizer.options["lr"] / 10:g}"""
    front = info.epochs - epochs - cooldown
    for what, count in (
        ("warmup.mode: {} of warm-up in front", front),
        ("cooldown.epochs: {} of cool-down", cooldown),
    ):
        if count:
            told = what.format(f"{counted(epochs, 'epoch')} become {info.epochs}: {count}")
            yield f"""{told} come on top
                time and checkpoints count them too
                nothing, if it is meant so"""


def _machine(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    memory = 1 / (1 - recipe.ema.decay) if recipe.ema and not recipe.ema.warmup else 0
    if info.steps and info.steps < 3 * memory:
        steps = f"{counted(round(memory), 'step')}, of {info.steps:,} in all"
        yield f"""ema.decay: the average reaches back {steps}
            the random first weights stay in it
            ema.warmup=true, or a smaller decay"""
    if recipe.precision == "fp16" and info.gpu is False:
        yield """precision: fp16 needs a GPU; this machine would compute in fp32
            numbers will differ a little from a GPU's
            nothing here; on a GPU it is as written"""


def _losses(recipe: Recipe, info: RecipeInfo) -> Iterator[str]:
    heads, balance = {"loss": recipe.loss, "aux_loss": recipe.aux_loss or ()}, recipe.balancing
    for key, terms in heads.items():
        for term in terms:
            if same := _other_name(term):
                name = same.partition(":")[0]
                yield f"""{key}.{term.name}: with these options {term.name} is {name}
                    both have the same value
                    {key}={{{same}}}, or other options if another loss was meant"""
        if not balance:
            yield from _one_cross_entropy(key, terms)
    if balance and all(len(terms) < 2 for terms in heads.values()):
        yield """balance: no weighted sum has two terms
            a weight alone has nothing to be balanced with
            balance=fixed, or a second term"""
    elif balance and balance.calibrate and info.steps and info.steps <= balance.calibrate:
        steps = f"takes {counted(balance.calibrate, 'step')}, the training {info.steps:,}"
        yield f"""balance: the calibration {steps}
            the weights stay as they are given until it is over
            balance={{calibrate: {max(info.steps // 20, 1)}}}, or ema"""


def _one_cross_entropy(key: str, terms: tuple[Term, ...]) -> Iterator[str]:
    """Terms that are cross-entropy against shares of the classes; sums of shares are shares."""
    alike = [(term, epsilon) for term in terms if (epsilon := _smoothing(term)) is not None]
    weight = sum(term.weight for term, _ in alike)
    if len(alike) < 2 or not weight:
        return
    epsilon = sum(term.weight * share for term, share in alike) / weight
    one = f"label_smoothing: {{weight: {weight:.6g}, epsilon: {epsilon:.6g}}}"
    step = "the weights sum to 1, so the size of the step is as with one"
    if not math.isclose(weight, 1):
        step = (
            f"the gradient is {weight:g} times that of one: Adam divides it out, madgrad takes "
            f"a step of {weight ** (1 / 3):.3g} times the size (weight decay aside)"
        )
    yield f"""{key}: {" + ".join(f"{term.weight:g} {term.name}" for term, _ in alike)} is one loss
        each is the cross-entropy against shares of the classes, and shares add up; {step}
        {key}={{{one}}}, or gamma 2 if focal was meant"""


def _smoothing(term: Term) -> float | None:
    """The epsilon with which a term is label smoothing; None if it is another loss."""
    options = term.options
    if term.name == "label_smoothing":
        return options["epsilon"]
    if term.name == "cross_entropy" and options["class_weights"] is None:
        return options["label_smoothing"]
    plain_focal = term.name == "focal" and options["gamma"] == 0 and options["alpha"] is None
    return 0.0 if plain_focal else None


def _other_name(term: Term) -> str | None:
    """Another loss of the same value, as a recipe writes it."""
    options = term.options
    if term.name == "focal" and _smoothing(term) is not None:
        return "cross_entropy: 1"
    if term.name not in ("tanimoto", "tversky") or options["gamma"] != 1:
        return None
    shares = (options.get("alpha", 1), options.get("beta", 1))  # tanimoto has none
    if shares == (0.5, 0.5):
        return f"dice: {{smooth: {2 * options['smooth']:g}}}"
    return f"jaccard: {{smooth: {options['smooth']:g}}}" if shares == (1, 1) else None


CHECKS = (_images, _colours, _results, _batch, _optimizer, _time, _machine, _losses)

"""Advice on a recipe that is valid, and perhaps not what was meant.

A lint is one function (recipe, info) that yields `Advice`; `@lint` puts it on the list.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .fields import Recipe
from .recipe_info import CIFAR, RESIZING, RecipeInfo, smoothing_floor

SGD = {"sgd", "momentum", "nesterov", "sgdw", "nesterovw"}
L2 = {"adam", "nadam", "nadamlegacy", "adamax", "rmsprop", "rmsproptf", "adagrad", "adadelta"}
LEARNED = {"auto_augment", "rand_augment", "trivial_augment", "aug_mix"}
SMOOTHING = {"cross_entropy": "label_smoothing", "label_smoothing": "epsilon"}
SMALL_IMAGE, SMALL_BATCH = 64, 8
FEW_EPOCHS = 20
TYPICAL_LR = (0.01, 2.0)  # SGD's, per 256 images; Goyal et al. 2017 have 0.1
MOST_ADAM_LR = 0.01


class Advice(NamedTuple):
    """Which key, what is so, why it matters, what to do."""

    key: str
    what: str
    why: str
    do: str


Lint = Callable[[Recipe, RecipeInfo], Iterator[Advice]]
LINTS: list[Lint] = []


def lint(function: Lint) -> Lint:
    """Add a lint to the list."""
    LINTS.append(function)
    return function


def advice(recipe: Recipe, info: RecipeInfo) -> list[Advice]:
    """The advice of all lints, in the order of their list."""
    return [item for check in LINTS for item in check(recipe, info)]


# -- network and images --------------------------------------------------------------------------


@lint
def _imagenet_stem(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    small = info.side is not None and info.side <= SMALL_IMAGE
    attention = recipe.model.name.startswith(("vit", "deit", "swin", "beit", "cait", "mixer"))
    if small and recipe.model.options.get("stem") == "imagenet" and not attention:
        yield Advice(
            f"model.{recipe.model.name}.stem",
            f"an ImageNet stem on images of {info.side} px",
            f"most stems shrink them 4 times, to {info.side // 4} px, before the first block; "
            "ResNet-50 on CIFAR-100: 62.7 % with it, 80.4 % without",
            f"model.{recipe.model.name}.stem=cifar, where the family has it",
        )


@lint
def _sizes_differ(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if info.side and info.eval_side and info.side != info.eval_side:
        yield Advice(
            "eval_augment",
            f"training sees {info.side} px, evaluation {info.eval_side} px",
            "objects appear in another size, and some networks take one size only",
            f"eval_augment=[{{resize: {{size: {info.side}}}}}, "
            f"{{center_crop: {{size: {info.side}}}}}]",
        )


@lint
def _sizes_open(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for key, side, transforms in (
        ("augment", info.side, recipe.augment),
        ("eval_augment", info.eval_side, recipe.eval_augment),
    ):
        last = [c for c in transforms if c.name.endswith(("crop", "resize"))][-1:]
        by_one_side = last and last[0].name == "resize" and isinstance(last[0].options["size"], int)
        if (side is None or by_one_side) and recipe.dataset.name == "image_folder":
            yield Advice(
                key,
                "nothing crops the images to one size",
                "a batch needs images of one size; `resize` sets the shorter side only",
                f"end {key} with a crop, such as {{center_crop: {{size: 224}}}}",
            )


@lint
def _jitter_beside_policy(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    names = [choice.name for choice in recipe.augment]
    policies = [name for name in names if name in LEARNED]
    if "color_jitter" in names and policies:
        yield Advice(
            "augment",
            f"color_jitter beside {policies[0]}: both are applied",
            "timm skips the jitter when AutoAugment is on, so a timm recipe means one of them",
            "remove color_jitter to have what timm does",
        )


@lint
def _constants_of_another_set(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    dataset, pretrained = recipe.dataset.name, recipe.model.options.get("pretrained")
    given = recipe.normalize if isinstance(recipe.normalize, str) else "your own"
    if pretrained and given != "imagenet":
        yield Advice(
            "normalize",
            f"pretrained weights, and images normalised by {given} constants",
            "most of timm's weights were trained with ImageNet's",
            "normalize=imagenet, unless the weights want it so",
        )
    elif not pretrained and dataset in CIFAR and given != dataset:
        yield Advice(
            "normalize",
            f"{dataset} normalised by {given} constants",
            "harmless when training from scratch, but not what papers on this data set do",
            f"normalize={dataset}, unless a reference has it so",
        )


# -- what the numbers mean -------------------------------------------------------------------------


@lint
def _label_smoothing(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for term in recipe.loss:
        option = SMOOTHING.get(term.name)
        epsilon = term.options[option] if option else 0
        if not epsilon:
            continue
        floor = "a floor above 0"
        if info.classes:
            floor = f"{smoothing_floor(epsilon, info.classes):.3f} nats"
        yield Advice(
            f"loss.{term.name}.{option}",
            f"targets are smoothed by {epsilon:g}: this loss cannot fall below {floor}",
            "a perfect network has that loss"
            + ("; mixing raises it further" if recipe.mix else "")
            + ". It cannot be compared with a plain one",
            "judge by top1 and by cross_entropy, the plain loss of validation",
        )


@lint
def _chosen_on_test(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if not recipe.holdout:
        yield Advice(
            "holdout",
            "the best epoch is chosen on the test split",
            f"the best of {info.epochs // recipe.eval_every} looks at the test is no estimate "
            "of new data; papers on CIFAR do it all the same",
            "report `last`, or choose on a part of train: holdout=0.1",
        )


@lint
def _one_seed(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if info.reference is not None:
        yield Advice(
            "seed",
            "one seed is one draw",
            "on CIFAR-100 seeds spread by about 0.4 points: r3 to r5 (+0.37) is noise",
            "for a claim, train seed=43, seed=44, … too and compare means",
        )


@lint
def _copies_cost(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for term in recipe.loss:
        if term.name == "jsd":
            count = term.options["num_splits"]
            varied = {choice.name for choice in recipe.augment} - {*RESIZING, "hflip", "vflip"}
            alike = "; without augmentation beyond crops and flips they would be alike"
            yield Advice(
                "loss.jsd",
                f"jsd trains on {count} versions of each image",
                f"a step costs {count} times as much" + ("" if varied else alike),
                "count it in; augment with aug_mix, which the loss was made for",
            )


# -- batch -----------------------------------------------------------------------------------------


@lint
def _more_batch_than_data(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if info.steps_per_epoch == 0:
        yield Advice(
            "batch_size",
            f"{recipe.batch_size} is more than the {info.images} training images",
            "only whole batches are trained on, so there is none",
            f"batch_size={info.images} or less, or a larger subset",
        )


@lint
def _lr_of_another_batch(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    before = info.reference
    if before is None or before.optimizer.name != recipe.optimizer.name:
        return
    lr, factor = recipe.optimizer.options["lr"], recipe.batch_size / before.batch_size
    if factor != 1 and lr == before.optimizer.options["lr"]:
        rule = "in proportion" if recipe.optimizer.name in SGD else "by its square root"
        scaled = lr * (factor if recipe.optimizer.name in SGD else factor**0.5)
        yield Advice(
            f"optimizer.{recipe.optimizer.name}.lr",
            f"lr {lr:g} was meant for batch_size {before.batch_size}, not {recipe.batch_size}",
            f"a step averages {factor:g} times the images; lr usually follows {rule} "
            "(Goyal et al. 2017)",
            f"optimizer.{recipe.optimizer.name}.lr={scaled:.4g}, or keep it on purpose",
        )


@lint
def _unusual_lr(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    name, lr = recipe.optimizer.name, recipe.optimizer.options["lr"]
    low, high = (x * recipe.batch_size / 256 for x in TYPICAL_LR)
    if name in SGD and not low <= lr <= high:
        yield Advice(
            f"optimizer.{name}.lr",
            f"lr {lr:g} for batch_size {recipe.batch_size}",
            "with SGD about 0.1 per 256 images is usual when training from scratch "
            f"(here {0.1 * recipe.batch_size / 256:.2g}); fine-tuning takes less",
            "check the number of zeros",
        )
    if "adam" in name and lr > MOST_ADAM_LR:
        yield Advice(
            f"optimizer.{name}.lr",
            f"lr {lr:g} is one for SGD",
            "Adam's steps have the length of the lr whatever the gradient; 0.001 is usual",
            f"optimizer.{name}.lr=0.001",
        )


@lint
def _small_norm_batches(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    micro = info.micro_batch
    if info.batch_norm and micro and micro < SMALL_BATCH:
        yield Advice(
            "micro_batch",
            f"BatchNorm sees {micro} images at a time",
            "accumulation and processes do not help: each forward pass has its own statistics",
            "a larger micro_batch or batch_size, sync_bn=true on GPUs, or a model without it",
        )


@lint
def _odd_mixing(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if recipe.mix and info.micro_batch and info.micro_batch % 2:
        yield Advice(
            "mix",
            f"pairs in a micro-batch of {info.micro_batch} images",
            "the middle one meets itself and stays as it is",
            "an even batch_size",
        )


# -- time ------------------------------------------------------------------------------------------


@lint
def _steps_of_a_schedule(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    smooth = recipe.schedule.name in ("cosine", "poly", "one_cycle", "exponential")
    if smooth and recipe.schedule_unit == "epoch" and recipe.epochs <= FEW_EPOCHS:
        yield Advice(
            "schedule_unit",
            f"the lr moves once an epoch, {recipe.epochs} times in all",
            "a short training gets a staircase instead of a curve",
            "schedule_unit=step",
        )


@lint
def _warmup_too_long(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if recipe.warmup.mode == "overlap" and recipe.warmup.epochs >= recipe.epochs:
        yield Advice(
            "warmup.epochs",
            f"{recipe.warmup.epochs} epochs of warm-up lie over {recipe.epochs} epochs",
            "the schedule never has its turn",
            "fewer epochs of warm-up, or warmup.mode=front",
        )


@lint
def _warmup_falls(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    lr = recipe.optimizer.options["lr"]
    if recipe.warmup.epochs and recipe.warmup.lr > lr:
        yield Advice(
            "warmup.lr",
            f"the warm-up starts at {recipe.warmup.lr:g}, above the lr of {lr:g}",
            "it would fall instead of rise",
            f"warmup.lr={lr / 10:g}",
        )


@lint
def _epochs_on_top(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    front = info.epochs - recipe.epochs - recipe.cooldown.epochs
    for key, what, count in (
        ("warmup.mode", "warm-up in front", front),
        ("cooldown.epochs", "cool-down", recipe.cooldown.epochs),
    ):
        if count:
            yield Advice(
                key,
                f"{recipe.epochs} epochs are {info.epochs}: {count} of {what} come on top",
                "time and checkpoints count them too",
                "nothing, if it is meant so",
            )


@lint
def _average_of_the_start(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if recipe.ema and info.steps and not recipe.ema.warmup:
        memory = 1 / (1 - recipe.ema.decay)
        if info.steps < 3 * memory:
            yield Advice(
                "ema.decay",
                f"the average reaches back {memory:,.0f} steps, of {info.steps:,} in all",
                "the random first weights stay in it",
                "ema.warmup=true, or a smaller decay",
            )


@lint
def _decay_through_adam(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    name, options = recipe.optimizer.name, recipe.optimizer.options
    if name in L2 and options.get("weight_decay"):
        yield Advice(
            f"optimizer.{name}.weight_decay",
            f"in {name} weight decay is a part of the gradient",
            "it is divided by the gradient's size, so large weights with large gradients "
            "hardly decay (Loshchilov & Hutter 2019)",
            f"optimizer=adamw for decoupled decay, or optimizer.{name}.weight_decay=0",
        )


@lint
def _half_precision_without_gpu(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    if recipe.precision == "fp16" and info.gpu is False:
        yield Advice(
            "precision",
            "fp16 needs a GPU; this machine would compute in fp32",
            "numbers will differ a little from a GPU's",
            "nothing here; on a GPU it is as written",
        )

"""What a recipe implies, known before data is read and before torch is imported."""

import math
import os
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError
from .fields import Recipe
from .grammar import Choice

CPU_MICRO_BATCH = 128  # ResNet-50 with the CIFAR stem: about 6 GB; larger ones are no faster
CIFAR = {"cifar10": 10, "cifar100": 100}  # 50,000 images of 32x32 to train on
RESIZING = ("random_resized_crop", "random_crop", "center_crop", "resize")


@dataclass(frozen=True)
class RecipeInfo:
    """Numbers about a run; None where they are not known (yet)."""

    epochs: int  # with warm-up in front and cool-down
    world: int = 1
    whole: int | None = None  # images of the train split
    images: int | None = None  # of them to train on
    classes: int | None = None
    side: int | None = None  # of a training image, in pixels, as the network sees it
    eval_side: int | None = None
    micro_batch: int | None = None  # images in one forward pass
    batch_norm: bool | None = None
    gpu: bool | None = None
    reference: Recipe | None = None  # what this recipe was made from
    steps_per_epoch: int | None = None

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run."""
        return None if self.steps_per_epoch is None else self.epochs * self.steps_per_epoch


def recipe_info(
    recipe: Recipe,
    reference: Recipe | None = None,
    world: int | None = None,
    train: Any = None,
) -> RecipeInfo:
    """All that can be said with the images to train on, or without; of some the size is known."""
    name, options = recipe.dataset.name, recipe.dataset.options
    whole, classes, side = None, None, None
    if train is not None:
        classes = len(train.classes)
    elif name in CIFAR:
        whole, classes, side = 50_000, CIFAR[name], 32
    elif name == "shapes":
        whole, classes, side = options["train"], 10 + options["masks"], options["size"]
    images = len(train) if train is not None else whole and used(recipe, whole)
    return RecipeInfo(
        epochs=recipe.total_epochs,
        world=world or int(os.environ.get("WORLD_SIZE", 1)),
        whole=whole,
        images=images,
        classes=classes,
        side=side_after(recipe.augment, side),
        eval_side=side_after(recipe.eval_augment, side),
        reference=reference,
        steps_per_epoch=None if images is None else images // recipe.batch_size,
    )


def used(recipe: Recipe, whole: int) -> int:
    """How many of `whole` training images are trained on."""
    left = whole - round(recipe.holdout * whole)
    return min(left, recipe.subset or left)


def side_after(transforms: tuple[Choice, ...], side: int | None) -> int | None:
    """The side of an image, or its shorter one, in pixels after a list of transforms."""
    for choice in transforms:
        if choice.name in RESIZING:
            size = choice.options["size"]
            side = size if isinstance(size, int) else min(size)
        elif choice.name == "random_scale":
            side = None
    return side


def smoothing_floor(epsilon: float, classes: int) -> float:
    """The least softmax cross-entropy, in nats, against targets smoothed by `epsilon`: entropy."""
    rest = epsilon / classes
    own = 1 - epsilon + rest
    return -own * math.log(own) - (classes - 1) * rest * math.log(rest) if epsilon else 0.0


def batch_parts(recipe: Recipe, world: int, on_gpu: bool) -> int:
    """Micro-batches a process takes a step (with shards: shards of the global batch).

    The fewest that keep within `micro_batch`; mixing needs an even number of images in each.
    """
    owners = recipe.shards or world
    share, rest = divmod(recipe.batch_size, owners)
    if owners % world or rest:
        dealt = f"{owners} shards on {world}" if recipe.shards else f"{world}"
        raise UserError(
            f"batch_size {recipe.batch_size} is global and does not divide over {dealt} processes; "
            f"choose a multiple of {owners}, and shards a multiple of the processes."
        )
    if (recipe.mix or recipe.shards) and share % 2 and owners > 1:
        raise UserError(
            f"images are dealt in pairs (mix, shards), and batch_size {recipe.batch_size} gives "
            f"each of {owners} parts an odd number, {share}; choose a multiple of {2 * owners}."
        )
    if recipe.shards:
        refuse_parts(recipe, world, on_gpu)
        return owners
    most = recipe.micro_batch or (share if on_gpu else CPU_MICRO_BATCH)
    pairs = 2 if recipe.mix else 1
    sizes = [n for n in range(1, share + 1) if share % n == 0 and (n % pairs == 0 or n == share)]
    parts = share // max((n for n in sizes if n <= most), default=sizes[0])
    if parts > 1:
        refuse_parts(recipe, world, on_gpu)
    return parts


def refuse_parts(recipe: Recipe, world: int, on_gpu: bool) -> None:
    """UserError if the recipe asks for what cannot be where a step is taken in parts: CUDA graphs,
    which write where an earlier part has left its gradients, or DDP's static graph."""
    graphs = on_gpu and recipe.compile not in (True, False)
    if graphs or (world > 1 and recipe.ddp.static_graph):
        key = f"compile: {recipe.compile}" if graphs else "ddp.static_graph: true"
        raise UserError(
            f"{key} needs each process to take its images in one pass, and here it takes them in "
            "parts. Leave it out, or make that one pass (batch_size, micro_batch, no shards)."
        )


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Whole batches in the training set; what is left over is dropped, another one each epoch."""
    steps = images // recipe.batch_size
    if not steps:
        raise UserError(
            f"batch_size {recipe.batch_size} is more than the {images} training images; "
            "lower batch_size or raise subset."
        )
    return steps

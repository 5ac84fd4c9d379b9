"""What augmentation does to one image: a chain's entries, a policy's operations, the mixers.

Everything is made by the code that training runs; only what is left to chance there (whether an
operation happens at all, a spread around its magnitude) is fixed here, so that it can be seen.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms.autoaugment import _apply_op

from ..core import task as targets
from ..core.errors import UserError
from ..core.randomness import address
from ..core.sources import Source
from ..recipe.fields import Recipe
from ..recipe.grammar import Choice, Term
from ..recipe.notation import scalar
from .augmentation.operation import operation
from .loader import augmented_images, collate, seed_generators
from .pipeline import DataPipeline, WorkerContext, colours, one_size

EPOCHS = 8  # of the whole chain
DRAWS = 4  # of one entry, or one mixer


class Shot(NamedTuple):
    """An image and what was done to it. pixels uint8 (H, W, 3); mask uint8 (H, W), if any."""

    label: str
    pixels: np.ndarray
    mask: np.ndarray | None = None


class Panel(NamedTuple):
    """Shots that belong together."""

    title: str
    shots: list[Shot]


def preview(recipe: Recipe, source: Source) -> list[Panel]:
    """One training image under all of a recipe's augmentation.

    In order: as an evaluation sees it; under the whole chain in the first epochs (the very images
    that training sees); under each entry alone, with each part of a policy; under each mixer.
    """
    index = address(recipe.seed, "microscope") % len(source)
    others = np.flatnonzero(source.targets != source.targets[index])
    partner = int(others[0]) if len(others) else (index + 1) % len(source)
    plain = recipe.model_copy(update={"mix": None, "channels_last": False})
    framed = plain.model_copy(update={"augment": recipe.eval_augment})
    (start,), (other,) = (shots(framed, source, [i], 1, "") for i in (index, partner))
    panels = [Panel("", [start._replace(label=f"{source.name} {source.key(index)}")])]
    if recipe.augment:
        panels.append(Panel("augment", shots(plain, source, [index], EPOCHS, "epoch")))
    for choice in recipe.augment:
        alone = plain.model_copy(update={"augment": (surely(choice),)})
        panels.append(Panel(written(choice), shots(alone, source, [index], DRAWS, "draw")))
        parts = apart(choice, start.pixels, recipe.seed)
        panels += [Panel(f"{choice.name}, its parts", parts)] if parts else []
    of_one_size = framed if other.pixels.shape == start.pixels.shape else plain
    for term in recipe.mix or ():
        alone = of_one_size.model_copy(update={"mix": (surely(replace(term, weight=1.0)),)})
        mixed = shots(alone, source, [index, partner], DRAWS, "draw")
        panels.append(Panel(written(term), mixed))
    return panels


def shots(
    recipe: Recipe, source: Source, indices: Sequence[int], epochs: int, label: str
) -> list[Shot]:
    """The first of these images as training sees it in each epoch, where it differs from before;
    called `label` and the epoch, counted from 1, or by their shares, where images are mixed."""
    images = augmented_images(recipe, source)
    pipeline = DataPipeline(recipe, source, WorkerContext(torch.device("cpu")), training=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in colours(recipe))
    made: dict[bytes, Shot] = {}
    for epoch in range(epochs):
        raw = collate([images[epoch, index] for index in indices])
        if isinstance(raw, UserError):
            raise raw
        (batch,) = pipeline.preprocess(one_size(raw), epoch)
        visible = ((batch.images[0] * std + mean) * 255).round().clamp(0, 255).byte()
        pixels, target = visible.permute(1, 2, 0).contiguous().numpy(), batch.target[0]
        shot = Shot(f"{label} {epoch + 1}", pixels)
        if source.dense:
            masks = targets.to_masks(batch.target)
            shot = shot._replace(mask=masks[0].numpy())
        elif target.dim():
            shot = shot._replace(label=shares(target, source.classes))
        made.setdefault(pixels.tobytes(), shot)
    return list(made.values())


def shares(target: Tensor, classes: Sequence[str]) -> str:
    """What a mixed image is called, by its class map (C,): "0.71 ship + 0.29 dog"."""
    top = target.topk(min(2, len(classes)))
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return " + ".join(f"{value:.2f} {classes[index]}" for value, index in pairs if value > 0.005)


def surely(entry: Choice | Term) -> Choice | Term:
    """The entry with probability 1, where it has one."""
    options = entry.options
    return replace(entry, options={**options, "p": 1.0}) if "p" in options else entry


def written(entry: Choice | Term) -> str:
    """A choice or a term with its options."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in entry.options.items()}
    options = ", ".join(f"{name}={scalar(value)}" for name, value in values.items())
    return f"{entry.name}({options})" if options else entry.name


def apart(choice: Choice, pixels: np.ndarray, seed: int) -> list[Shot]:
    """Pixels (H, W, 3) under each sub-policy or operation of an entry; [] if it has none.

    Each happens surely and at its nominal magnitude; which way (left, right) is drawn by `seed`
    for timm's policies, and positive for torchvision's.
    """
    policy, image = operation(choice).reference, Image.fromarray(pixels)
    policy = policy.transforms[0] if isinstance(policy, tv.RandomChoice) else policy
    if isinstance(policy, timm_policies.AutoAugment):
        return [timms(ops, image, address(seed, n)) for n, ops in enumerate(policy.policy)]
    if isinstance(policy, timm_policies.RandAugment | timm_policies.AugMixAugment):
        return [timms([op], image, address(seed, n)) for n, op in enumerate(policy.ops)]
    if isinstance(policy, tv.AutoAugment):
        space = policy._augmentation_space(10, pixels.shape[:2])
        return [torchvisions(space, ops, image, policy.fill) for ops in policy.policies]
    if isinstance(policy, tv.TrivialAugmentWide):
        count = policy.num_magnitude_bins
        space = policy._augmentation_space(count)
        alone = [[(name, 1.0, count - 1)] for name in space]
        return [torchvisions(space, ops, image, policy.fill) for ops in alone]
    return []


def timms(ops: Sequence[timm_policies.AugmentOp], image: Image.Image, seed: int) -> Shot:
    """timm's operations, one after the other."""
    seed_generators(seed)
    for op in ops:
        sure = copy(op)
        sure.prob, sure.magnitude_std = 1.0, 0
        image = sure(image)
    return Shot(" + ".join(f"{op.name} {op.magnitude:g}" for op in ops), np.asarray(image))


def torchvisions(
    space: dict[str, tuple[Tensor, bool]],
    ops: Sequence[tuple[str, float, int | None]],
    image: Image.Image,
    fill: Sequence[float] | None,
) -> Shot:
    """torchvision's operations (name, probability, place among its magnitudes in `space`)."""
    names = []
    for name, _, place in ops:
        levels = space[name][0]
        level = float(levels[place]) if levels.ndim else 0.0
        image = _apply_op(image, name, level, tv.InterpolationMode.NEAREST, fill)
        names.append(f"{name} {level:.3g}" if levels.ndim else name)
    return Shot(" + ".join(names), np.asarray(image))

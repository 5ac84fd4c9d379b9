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

from ..core import task as targets
from ..core.errors import UserError
from ..core.randomness import address
from ..core.sources import Source
from ..recipe.fields import Recipe
from ..recipe.grammar import Choice, Term
from ..recipe.notation import scalar
from .augmentation.operation import BatchedOp, operation
from .augmentation.policies import signed
from .loader import collate, seed_generators
from .pipeline import DataPipeline, WorkerContext, augmented_images, colours
from .store import carry_out

EPOCHS = 8  # of the whole chain
DRAWS = 4  # of one entry, or one mixer


class Shot(NamedTuple):
    """An image and what was done to it. pixels uint8 (H, W, 3); mask uint8 (H, W), where it has
    one that went along."""

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
    (start,) = shots(framed, source, [index], 1, "")
    panels = [Panel("", [start._replace(label=f"{source.name} {source.key(index)}")])]
    if recipe.augment:
        panels.append(Panel("augment", shots(plain, source, [index], EPOCHS, "epoch")))
    for choice in recipe.augment:
        alone = plain.model_copy(update={"augment": (surely(choice),)})
        panels.append(Panel(written(choice), shots(alone, source, [index], DRAWS, "draw")))
        parts = apart(choice, start.pixels, recipe.seed)
        panels += [Panel(f"{choice.name}, its parts", parts)] if parts else []
    (other,) = shots(framed, source, [partner], 1, "")
    of_one_size = framed if other.pixels.shape == start.pixels.shape else plain
    for term in recipe.mix or ():
        alone = of_one_size.model_copy(update={"mix": (surely(replace(term, weight=1.0)),)})
        made = shots(alone, source, [index, partner], DRAWS, "draw")
        panels.append(Panel(written(term), made))
    return panels


def shots(
    recipe: Recipe, source: Source, indices: Sequence[int], epochs: int, label: str
) -> list[Shot]:
    """The first of these images as training sees it in each epoch, where it differs from before;
    called `label` and the epoch, counted from 1, or by their shares, where images are mixed."""
    images = augmented_images(recipe, source)
    worker = WorkerContext(torch.device("cpu"))
    preprocess = DataPipeline(recipe, source, worker, training=True).preprocessor
    made: dict[bytes, Shot] = {}
    for epoch in range(epochs):
        raw = collate([images[epoch, index] for index in indices])
        if isinstance(raw, UserError):
            raise raw
        batch = preprocess(raw, epoch)
        pixels, target = visible(batch.images[0], colours(recipe)), batch.target[0]
        shot = Shot(f"{label} {epoch + 1}", pixels)
        if source.dense:
            masks = targets.to_masks(targets.to_ids(batch.target))
            shot = shot._replace(mask=masks[0].numpy())
        elif target.dim():
            shot = shot._replace(label=shares(target, source.classes))
        made.setdefault(pixels.tobytes(), shot)
    return list(made.values())


def visible(image: Tensor, colours: tuple[Sequence[float], Sequence[float]]) -> np.ndarray:
    """A normalised image (3, H, W) as people see it: uint8 (H, W, 3)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in colours)
    pixels = (image * std + mean) * 255
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


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


# -- policies, taken apart -------------------------------------------------------------------------


def apart(choice: Choice, pixels: np.ndarray, seed: int) -> list[Shot]:
    """Pixels (H, W, 3) under each sub-policy or operation of an entry; [] if it has none.

    Each happens surely and at its nominal magnitude; which way (left, right) is drawn by `seed`.
    """
    made = operation(choice).reference
    made = made.transforms[0] if isinstance(made, tv.RandomChoice) else made
    if isinstance(made, timm_policies.AutoAugment):
        return [timms(pair, pixels, address(seed, n)) for n, pair in enumerate(made.policy)]
    if isinstance(made, timm_policies.RandAugment | timm_policies.AugMixAugment):
        return [timms([op], pixels, address(seed, n)) for n, op in enumerate(made.ops)]
    if isinstance(made, tv.AutoAugment):
        space = made._augmentation_space(10, pixels.shape[:2])
        return [torchvisions(space, pair, pixels, made.fill) for pair in made.policies]
    if isinstance(made, tv.TrivialAugmentWide):
        space = made._augmentation_space(made.num_magnitude_bins)
        top = made.num_magnitude_bins - 1
        return [torchvisions(space, [(name, 1.0, top)], pixels, made.fill) for name in space]
    return []


def timms(ops: Sequence[timm_policies.AugmentOp], pixels: np.ndarray, seed: int) -> Shot:
    """timm's operations, one after the other."""
    seed_generators(seed)
    image = Image.fromarray(pixels)
    for op in ops:
        sure = copy(op)
        sure.prob, sure.magnitude_std = 1.0, 0
        image = sure(image)
    label = " + ".join(f"{op.name} {op.magnitude:g}" for op in ops)
    return Shot(label, np.asarray(image))


def torchvisions(
    space: dict[str, tuple[Tensor, bool]],
    ops: Sequence[tuple[str, float, int | None]],
    pixels: np.ndarray,
    fill: Sequence[int] | None,
) -> Shot:
    """torchvision's operations (name, probability, place among its magnitudes in `space`)."""
    size, slots, names = pixels.shape[:2], [], []
    for name, _, place in ops:
        codes, args = signed(space, name, place, size)[0]
        slots.append(BatchedOp(codes, args, size, tuple(fill or (0, 0, 0))))
        levels = space[name][0]
        names.append(f"{name} {float(levels[place]):.3g}" if levels.ndim else name)
    made = carry_out(pixels[None], np.zeros(1, np.int64), slots, threads=1)
    return Shot(" + ".join(names), made[0].permute(1, 2, 0).numpy())

"""Runs -> networks with their weights -> answers: what `evaluate` and `predict` share."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import build
from .core import registry
from .core.errors import UserError
from .core.loading import Loaded
from .core.recipe import Recipe
from .core.sources import Source
from .data import feeding
from .engine import Distributed, Evaluation, load_weights
from .engine.restored import put, weights_path
from .segmentation import submission


def common_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """The first of several runs' recipes, if all of them see the same pictures the same way."""
    keys = ("task", "dataset", "holdout", "eval_augment", "normalize", "channels_last")
    for key in keys:
        if len({str(getattr(recipe, key)) for recipe in recipes}) > 1:
            raise UserError(
                f"an ensemble's runs must see the same pictures; their '{key}' differ. "
                "Set it alike for all (--set)."
            )
    return recipes[0]


def networks(
    found: Sequence[tuple[Path, Loaded]], classes: int, which: str, distributed: Distributed
) -> tuple[nn.ModuleList, list[Path]]:
    """The networks of runs with their weights (`best`, `last` or a file's), and where those lie."""
    made, paths = nn.ModuleList(), []
    for run, loaded in found:
        recipe, path = loaded.recipe, weights_path(run, which)
        network = build.model(recipe, classes, weights=False)
        put(network, load_weights(path, "ema" if recipe.ema else "model"), path)
        network = build.placed(recipe, network, distributed)
        distributed.wrap(network, replicate=False)
        made.append(network)
        paths.append(path)
    return made, paths


def refining(recipe: Recipe) -> Callable | None:
    """The recipe's refiners as one function (picture, probabilities) -> probabilities, or None."""
    steps = [registry.refiners.bind(c.name, **c.options) for c in recipe.refine]

    def refine(picture: np.ndarray, probabilities: torch.Tensor) -> torch.Tensor:
        for step in steps:
            probabilities = step(picture, probabilities)
        return probabilities

    return refine if steps else None


def scored(
    recipe: Recipe, source: Source, file: Path, size: int | None, distributed: Distributed
) -> Evaluation:
    """All metrics of the masks in a submission; no network is asked."""
    size = size or submission.SIZE
    masks = submission.read(file, len(source.classes), size)
    submission.check_names(file, masks, map(source.key, range(len(source))))
    order = feeding.eval_order(recipe, source, build.place(recipe, distributed))
    names = ([source.key(index) for _, index in items] for items in order)

    def answer(_: torch.Tensor) -> torch.Tensor:
        ids = torch.from_numpy(np.stack([masks[name] for name in next(names)])).long()
        said = nn.functional.one_hot(ids, len(source.classes)).permute(0, 3, 1, 2)
        return said.to(distributed.device)

    found = build.evaluation(
        recipe,
        source,
        nn.Identity(),
        build.task(recipe, source.classes),
        distributed,
        forward=answer,
        size=size,
    )
    for name in ("loss", "cross_entropy"):  # a mask says nothing of how sure it is
        del found.metrics[name]
    return found

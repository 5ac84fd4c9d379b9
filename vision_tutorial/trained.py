"""Runs -> networks with their weights -> answers: what `evaluate` and `predict` share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import build
from .core import registry
from .core.errors import UserError
from .core.loading import Loaded
from .core.recipe import Recipe
from .core.runs import read_json
from .core.sources import FileSource, Source
from .core.targets import sampled
from .core.task import Task
from .data import feeding
from .engine import Distributed, Evaluation, load_weights
from .engine.infer import refined
from .engine.restored import put, weights_path
from .segmentation import painting, submission  # noqa: F401  (for the verbs)


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


@dataclass(frozen=True)
class Answer:
    """What was said of one picture: probabilities (C,) or (C, h, w), at the evaluation's size."""

    index: int
    key: str
    probabilities: torch.Tensor


def answers(
    recipe: Recipe,
    source: Source,
    task: Task,
    forward: Callable[[torch.Tensor], torch.Tensor],
    distributed: Distributed,
    refine: Callable | None = None,
) -> Iterator[Answer]:
    """What the task's prediction says of every picture of `source`, in order; one process."""
    where = build.place(recipe, distributed)
    finish = feeding.finishing(recipe, where, pixels=refine is not None)
    with torch.inference_mode():
        for raw in feeding.evaluating(recipe, source, where)():
            batch = finish(raw)
            said = task.predict(forward, batch.images)
            if refine:
                said = refined(refine, said.log(), batch.pixels).exp()
            for index, probabilities in zip(raw.items[:, 1].tolist(), said, strict=True):
                yield Answer(index, source.key(index), probabilities)


def classes_of(run: Path, recipe: Recipe) -> tuple[str, ...]:
    """The classes of a run, from its table of them, or else from the data set."""
    if (run / "classes.json").is_file():
        table = read_json(run / "classes.json")
        names = table.get("class") if isinstance(table, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return build.split(recipe, "val").classes


def pictures(paths: Sequence[Path], classes: Sequence[str], dense: bool) -> FileSource:
    """Picture files without targets, as a source; nothing counts in the masks of a dense one."""
    nothing = np.zeros(len(paths), np.int64)
    return FileSource("pictures", paths, nothing, tuple(classes), dense=dense)


def mask_of(probabilities: torch.Tensor, size: tuple[int, int] | None, smooth: bool) -> np.ndarray:
    """Class ids uint8 (H, W) of probabilities (C, h, w), at `size` (height, width) or as they are.

    smooth: resize probabilities, bilinear, and then decide; else decide, and resize by nearest.
    """
    if size and smooth:
        options = {"mode": "bilinear", "align_corners": False}
        probabilities = nn.functional.interpolate(probabilities[None], size, **options)[0]
    ids = probabilities.argmax(0)
    if size and not smooth:
        ids = sampled(ids, *size)
    return ids.byte().cpu().numpy()

"""Runs -> networks with their weights -> answers: what `evaluate` and `predict` share."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import build
from .core import registry
from .core.atomic import read_json
from .core.errors import UserError
from .core.images import image_size, read_image
from .core.sources import FileSource, Source
from .core.task import Task, sampled
from .engine import Distributed, Evaluation, load_weights, put_weights, weights_path
from .recipe.fields import Recipe
from .recipe.loading import Loaded
from .segmentation import pseudo_labels, submission, visualisation  # noqa: F401  (for the commands)


@contextmanager
def opened(
    found: Sequence[tuple[Path, Loaded]], trust: bool, ensemble: bool = False, alone: str = ""
) -> Iterator[Distributed]:
    """Import the runs' files, check their recipes, and set this process and its device up.

    ensemble: all with the first run's precision and threads; else these must be equal. alone: the
    name of a command that runs on one process only.
    """
    first = found[0][1].recipe
    for run, loaded in found:
        recipe = loaded.recipe
        if not ensemble and (recipe.precision, recipe.threads) != (first.precision, first.threads):
            raise UserError(f"{run}: precision or threads differ from the first; name it alone.")
        build.import_files(loaded.imports, trust)
        build.check(recipe)
    distributed = Distributed(first.precision, first.threads, first.deterministic)
    try:
        if alone and distributed.world > 1:
            raise UserError(f"{alone} runs on one process; start it without torchrun.")
        with distributed.peers():
            yield distributed
    finally:
        distributed.close()


def common_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """The first of several runs' recipes, if all of them see the same images the same way."""
    for key in ("task", "dataset", "holdout", "eval_augment", "normalize", "channels_last"):
        if len({str(getattr(recipe, key)) for recipe in recipes}) > 1:
            raise UserError(
                f"an ensemble's runs must see the same images; their '{key}' differ. "
                "Set it alike for all (--set)."
            )
    return recipes[0]


def check_options(task: Task, args: argparse.Namespace) -> None:
    """UserError for options that only make sense where every pixel has an answer."""
    for option in () if task.dense else ("size", "window", "submission", "overlays", "smooth"):
        if getattr(args, option, None):
            raise UserError(f"--{option} is for masks; this run names one class per image.")


def networks(
    found: Sequence[tuple[Path, Loaded]], classes: int, which: str, distributed: Distributed
) -> tuple[nn.ModuleList, list[Path]]:
    """The networks of runs with their weights (`best`, `last` or a file's), and where those lie."""
    paths = [weights_path(run, which) for run, _ in found]
    made = nn.ModuleList()
    for (_, loaded), path in zip(found, paths, strict=True):
        recipe = loaded.recipe
        network = build.model(recipe, classes, weights=False)
        put_weights(network, load_weights(path, "ema" if recipe.ema else "model"), path)
        network = build.place_model(recipe, network, distributed)
        distributed.wrap(network, replicate=False)
        made.append(network)
    return made, paths


def refining(recipe: Recipe) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """The recipe's refiners as one function, or None: logits (B, C, H, W) and pixels uint8
    (B, 3, H, W) -> logarithms of the refined probabilities."""
    steps = [registry.refiners.build(c.name, **c.options) for c in recipe.refine]

    def refine(output: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        made = []
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
        for image, probabilities in zip(images, output.float().softmax(1).cpu(), strict=True):
            for step in steps:
                probabilities = step(image, probabilities)
            made.append(torch.as_tensor(probabilities))
        refined = torch.stack(made)
        return refined.clamp(min=torch.finfo(refined.dtype).tiny).log().to(output.device)

    return refine if steps else None


def scored(
    recipe: Recipe, source: Source, file: Path, size: int | None, distributed: Distributed
) -> Evaluation:
    """All metrics of the masks in a submission; no network is asked."""
    size, classes = size or submission.SIZE, len(source.classes)
    masks = submission.read(file, classes, size)
    submission.check_names(file, masks, map(source.key, range(len(source))))
    data = build.eval_pipeline(recipe, source, distributed)
    order = data.eval_order()

    def answer(_: torch.Tensor) -> torch.Tensor:
        ids = np.stack([masks[source.key(index)] for _, index in next(order).tolist()])
        one_hot = nn.functional.one_hot(torch.from_numpy(ids).long(), classes)
        return one_hot.permute(0, 3, 1, 2).to(distributed.device)

    given = (recipe, source, nn.Identity(), build.task(recipe, source.classes), distributed)
    found = build.evaluation(*given, forward=answer, data=data, size=size)
    for name in ("loss", "cross_entropy"):  # a mask says nothing of how sure it is
        del found.metrics[name]
    return found


@dataclass(frozen=True)
class Answer:
    """What was said of one image: probabilities (C,) or (C, h, w), at the evaluation's size.

    target: its class id, or ids (h, w). pixels uint8 (3, h, w), where they were asked for.
    """

    index: int
    key: str
    probabilities: torch.Tensor
    target: torch.Tensor
    pixels: torch.Tensor | None = None


def answers(
    recipe: Recipe,
    source: Source,
    task: Task,
    forward: Callable[[torch.Tensor], torch.Tensor],
    distributed: Distributed,
    refine: Callable | None = None,
    pixels: bool = False,
) -> Iterator[Answer]:
    """What the task's prediction says of every image of `source`, in order; one process.

    pixels: the images too, as the network saw them.
    """
    data = build.eval_pipeline(recipe, source, distributed)
    order = data.eval_order()
    batches = data.evaluation(pixels=pixels or refine is not None)
    with torch.inference_mode():
        for items, batch in zip(order, batches, strict=True):
            said = task.predict(forward, batch.images)
            if refine:
                said = refine(said.log(), batch.pixels).exp()
            seen = batch.pixels if pixels else [None] * len(said)
            rows = zip(items.tolist(), said, batch.target, seen, strict=True)
            for (_, index), probabilities, target, image in rows:
                yield Answer(index, source.key(index), probabilities, target, image)


def classes_of(run: Path, recipe: Recipe) -> tuple[str, ...]:
    """The classes of a run, from its table of them, or else from the data set."""
    if (run / "classes.json").is_file():
        table = read_json(run / "classes.json")
        names = table.get("class") if isinstance(table, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return build.split(recipe, "val").classes


def images(paths: Sequence[Path], classes: Sequence[str], dense: bool) -> FileSource:
    """Image files without targets, as a source; nothing counts in the masks of a dense one."""
    nothing = np.zeros(len(paths), np.int64)
    return FileSource("images", paths, nothing, tuple(classes), dense=dense)


def mask_of(probabilities: torch.Tensor, size: tuple[int, int] | None, smooth: bool) -> np.ndarray:
    """Class ids uint8 (H, W) of probabilities (C, h, w), at `size` (height, width) or as they are.

    smooth: resize probabilities, bilinear, and then decide; else decide, and resize by nearest.
    """
    if size and smooth:
        probabilities = _at_size(probabilities, size)
    ids = probabilities.argmax(0)
    if size and not smooth:
        ids = sampled(ids, *size)
    return ids.byte().cpu().numpy()


def write_pseudo_labels(
    folder: Path,
    answers: Iterable[Answer],
    paths: Sequence[Path],
    recipe: Recipe,
    report: pseudo_labels.PseudoLabelReport,
) -> list[str]:
    """Make `folder` a data set of the images whose answers are sure enough; what to tell.

    Evaluation images among them are entered in the report, and told.
    """
    both = build.data(recipe)
    train, val = both.train, both.val
    masks = (train[i][1] for i in range(len(train)))
    report.labelled = pseudo_labels.class_pixels(masks, len(report.classes))
    shown = ((path.name, np.asarray(read_image(path))) for path in paths)
    known = ((val.key(i), np.asarray(val[i][0])) for i in range(len(val)))
    report.leaks = pseudo_labels.leaked_images(shown, known)
    said = (
        (paths[answer.index], _at_size(answer.probabilities, image_size(paths[answer.index])[::-1]))
        for answer in answers
    )
    pseudo_labels.write_folder(folder, said, report)
    return [report.summary(), *filter(None, [report.leak_warning()])]


def _at_size(probabilities: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    options = {"mode": "bilinear", "align_corners": False}
    return nn.functional.interpolate(probabilities[None], size, **options)[0]

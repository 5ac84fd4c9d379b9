"""What a run leaves to look at: curves, confusion matrix, a training batch, predictions, a CSV."""

import csv
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import build
from .core.atomic import replacing
from .core.names import CSV
from .core.sources import Subset
from .core.task import VOID, to_masks
from .data.pipeline import mean_std
from .engine import evaluating
from .recipe.fields import Recipe
from .report import plots
from .runs.reader import read
from .segmentation.visualisation import PALETTE

IMAGES, MASKS = 16, 8  # of a training batch, and of predictions
_PIXELS = 384  # of an image's longer side, at most


def leave(run: Path, recipe: Recipe, splits: Any, training: Any, logger: Any, say: Any) -> None:
    """Draw it, and send the images to the loggers. What fails does not undo a training. Nothing is
    drawn where VISION_TUTORIAL_ARTIFACTS is 0."""
    if os.environ.get("VISION_TUTORIAL_ARTIFACTS") == "0":
        return
    try:
        for name, pixels in draw(run, recipe, splits, training).items():
            logger.image(name, pixels)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        say(f"artifacts: not all are drawn ({type(error).__name__}: {text})")


@torch.no_grad()
def draw(run: Path, recipe: Recipe, splits: Any, training: Any) -> dict[str, np.ndarray]:
    """Draw all of it into the run's folder; the images by name, uint8 (H, W, 3).

    training: what learned, with the weights of its last step.
    """
    found, drawn = read(run), {}
    _write_csv(run / "metrics.csv", found.rows)
    figures = {"curves": plots.curves(found)}
    names, matrix = found.classes.get("class"), found.classes.get("confusion")
    if names and matrix and len(names) == len(matrix):
        unit = "pixels" if training.task.dense else "images"
        figures["confusion"] = plots.confusion(matrix, names, unit)
    batch, predicted = "images of the first batch, as the network sees them", "validation images"
    for name, title, shown, columns in (
        ("train_batch", batch, _training_images, 4),
        ("val_predictions", f"{predicted}, after the last epoch", _predictions, 6),
    ):
        images = list(shown(recipe, splits, training))
        if training.task.dense:
            rows, legend = plots.rows_of(images, columns), _legend(splits.train.classes, images)
            figures[name] = plots.grid(rows, title, legend, width=2.4)
        else:
            figures[name] = plots.grid(plots.rows_of(images, 8), title)
    for name, figure in figures.items():
        drawn[name] = plots.save(figure, run / f"{name}.png")
    return drawn


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", **CSV) as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _legend(classes: Sequence[str], images: Sequence[tuple]) -> list[tuple[str, list[int]]]:
    """The names and colours that are in the masks among the images."""
    masks = [pixels.reshape(-1, 3) for pixels, text in images if text != "image"]
    there = np.unique(np.concatenate(masks), axis=0).tolist()
    colours = [*PALETTE[: len(classes)].tolist(), PALETTE[VOID].tolist()]
    named = zip((*classes, "void"), colours, strict=True)
    return [(name, colour) for name, colour in named if colour in there]


def _training_images(recipe: Recipe, splits: Any, training: Any) -> Iterator[tuple]:
    """The first images of the first step: augmented, mixed, with their targets in words."""
    source, most = splits.train, MASKS if training.task.dense else IMAGES
    data = build.train_pipeline(
        recipe.model_copy(update={"workers": 0}), source, training.distributed
    )
    (batches,) = data.train(0, 1, training.accumulation_steps)
    images, targets = batches[0].images[:most], batches[0].target[:most]
    for image, target in zip(_pixels(recipe, images), targets, strict=True):
        if training.task.dense:
            yield _small(image), "image"
            yield _small(PALETTE[to_masks(target).cpu().numpy()]), "mask"
        else:
            shares = target if target.ndim else torch.arange(len(source.classes)) == target.cpu()
            words = plots.share_words(source.classes, shares.float().tolist())
            yield image, words.replace(" + ", "\n+ ")


def _predictions(recipe: Recipe, splits: Any, training: Any) -> Iterator[tuple]:
    """Validation images, from all over the split, with what the network says of them."""
    distributed, task, source = training.distributed, training.task, splits.val
    most = min(len(source), (MASKS if task.dense else IMAGES) * distributed.world)
    some = Subset(source, np.linspace(0, len(source) - 1, most).round().astype(np.int64))
    data = build.eval_pipeline(recipe.model_copy(update={"workers": 0}), some, distributed)
    with training.ema.applied_to(training.model), evaluating(training.model):
        for batch in chain.from_iterable(data.evaluation()):
            shown = _pixels(recipe, batch.images)
            said = task.predict(training.model, batch.images)
            for image, answer, target in zip(shown, said, batch.target, strict=True):
                if task.dense:
                    yield _small(image), "image"
                    yield _small(PALETTE[to_masks(target).cpu().numpy()]), "truth"
                    yield _small(PALETTE[answer.argmax(0).cpu().numpy()]), "prediction"
                else:
                    best, name = int(answer.argmax()), source.classes
                    share = f"{name[best]} {float(answer.max()):.2f}"
                    right = best == int(target)
                    yield image, share if right else f"✗ {share}\nnot {name[int(target)]}"


def _pixels(recipe: Recipe, images: Tensor) -> np.ndarray:
    """Normalised images (B, 3, H, W) as they were: uint8 (B, H, W, 3)."""
    mean, std = mean_std(recipe)
    plain = images.detach().float().cpu() * std + mean
    return plain.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _small(pixels: np.ndarray) -> np.ndarray:
    step = -(-max(pixels.shape[:2]) // _PIXELS)
    return pixels[::step, ::step]

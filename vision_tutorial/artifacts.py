"""What a run leaves to look at: curves, confusion matrix, a training batch, predictions, a CSV."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import build
from .core.atomic import replacing
from .core.names import CSV
from .core.task import VOID, to_masks
from .data.pipeline import colours
from .engine import evaluating
from .recipe.fields import Recipe
from .report import plots
from .runs.reader import read
from .segmentation.visualisation import PALETTE

IMAGES = 16  # of a training batch, and of predictions
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
    dense, classes = training.task.dense, splits.train.classes
    for name, title, images, columns in (
        ("train_batch", "one batch of training, as the network sees it", _training_images, 8),
        ("val_predictions", "validation images, after the last epoch", _predictions, 9),
    ):
        source = splits.train if name == "train_batch" else splits.val
        shown = list(images(recipe, source, training))
        rows = plots.rows_of(shown, columns if dense else 8)
        figures[name] = plots.grid(rows, title, _legend(classes, shown) if dense else ())
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
    named = zip(
        (*classes, "void"), [*PALETTE[: len(classes)].tolist(), PALETTE[VOID].tolist()], strict=True
    )
    return [(name, colour) for name, colour in named if colour in there]


def _training_images(recipe: Recipe, source: Any, training: Any) -> Iterator[tuple]:
    """The first images of the first step: augmented, mixed, with their targets in words."""
    data = build.train_pipeline(
        recipe.model_copy(update={"workers": 0}), source, training.distributed
    )
    (batches,) = data.train(0, 1, training.accumulation_steps)
    images, targets = batches[0].images[:IMAGES], batches[0].target[:IMAGES]
    for image, target in zip(_pixels(recipe, images), targets, strict=True):
        if training.task.dense:
            yield _small(image), "image"
            yield _small(PALETTE[to_masks(target).cpu().numpy()]), "mask"
        else:
            shares = target if target.ndim else torch.arange(len(source.classes)) == target.cpu()
            yield image, plots.share_words(source.classes, shares.float().tolist())


def _predictions(recipe: Recipe, source: Any, training: Any) -> Iterator[tuple]:
    """The first validation images with what the network says of them."""
    distributed, task = training.distributed, training.task
    data = build.eval_pipeline(recipe, source, distributed)
    left = IMAGES
    with training.ema.applied_to(training.model), evaluating(training.model):
        for batch in data.first_evaluation():
            shown = _pixels(recipe, batch.images[:left])
            said = task.predict(training.model, batch.images[:left])
            left -= len(shown)
            for image, answer, target in zip(shown, said, batch.target, strict=False):
                if task.dense:
                    truth, ids = (
                        to_masks(target).cpu().numpy(),
                        answer.argmax(0).byte().cpu().numpy(),
                    )
                    for text, pixels in (
                        ("image", image),
                        ("truth", PALETTE[truth]),
                        ("prediction", PALETTE[ids]),
                    ):
                        yield _small(pixels), text
                else:
                    best, name = int(answer.argmax()), source.classes
                    share = f"{name[best]} {float(answer.max()):.2f}"
                    right = best == int(target)
                    yield image, share if right else f"✗ {share}, not {name[int(target)]}"


def _pixels(recipe: Recipe, images: Tensor) -> np.ndarray:
    """Normalised images (B, 3, H, W) as they were: uint8 (B, H, W, 3)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in colours(recipe))
    plain = images.detach().float().cpu() * std + mean
    return (plain * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _small(pixels: np.ndarray) -> np.ndarray:
    step = -(-max(pixels.shape[:2]) // _PIXELS)
    return pixels[::step, ::step]

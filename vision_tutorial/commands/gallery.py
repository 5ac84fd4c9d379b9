"""A run's gallery: what its network says of images, and what augmentation does to one."""

import argparse
import heapq
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.cli_types import positive_count
from ..core.errors import UserError, exit_code, run_main, short
from ..core.randomness import generator
from ..core.sources import take
from ..recipe.loading import Loaded, load
from ..report import gallery_files
from ..report.gallery_files import Gallery, GalleryAnswer, Group, Mask, Tile, Writer
from ..runs.run_folder import recipe_file

RIGHT, WRONG = 12, 24  # images of a classification run
WORST, AT_RANDOM = 6, 6  # images of a segmentation run
_NAMED = 3  # classes that are listed for each image


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial gallery",
        description="Images that a run's network gets right and wrong, its confusion matrix, and "
        "a preview of its augmentation, in RUN/gallery, where `report` finds them.",
    )
    add = made.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run folder, made by `train`")
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    add("--split", choices=("val", "test", "train"), default="val", help="default: %(default)s")
    add("--most", type=positive_count, metavar="N", help="look at N images only, drawn at random")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial gallery`."""
    args = parser().parse_args(argv)
    return run_main(lambda: _gallery(args))


def _gallery(args: argparse.Namespace) -> int:
    """Make the gallery of each run; one that fails does not keep the others from theirs."""
    found = [(Path(run), load(recipe_file(Path(run)))) for run in args.runs]
    from .. import inference  # after the recipes are known to be good: this takes seconds

    code = 0
    with inference.opened(found, args.trust_imports, alone="gallery") as distributed:
        for run, loaded in found:
            try:
                print(_make(run, loaded, args, distributed), flush=True)
            except UserError as error:
                print(f"error: {run}: {' '.join(str(error).split())}", file=sys.stderr)
                code = exit_code(error)
    return code


def _make(run: Path, loaded: Loaded, args: argparse.Namespace, distributed: Any) -> Path:
    from .. import build, engine, inference
    from ..data.preview import preview

    recipe = loaded.recipe
    both = build.data(recipe, distributed)
    source = {"train": both.train, "val": both.val}.get(args.split)
    if source is None:
        source = build.split(recipe, "test", distributed)
    if args.most and args.most < len(source):
        source = take(source, args.most, recipe.seed)
    network, (weights,) = inference.networks(
        [(run, loaded)], len(source.classes), args.weights, distributed
    )
    network.eval()
    task = build.task(recipe, source.classes)
    forward = engine.prediction_function(network)
    said = inference.answers(recipe, source, task, forward, distributed, pixels=task.dense)
    writer = Writer(run)
    parts = (_masks if task.dense else _labels)(said, source, task, writer)
    panels = preview(recipe, both.train)
    gallery = Gallery(
        weights=short(os.path.relpath(weights, run), 300),
        split=args.split,
        images=len(source),
        classes=tuple(short(name, 80) for name in source.classes),
        microscope=tuple(_preview_group(panel, writer) for panel in panels),
        **parts,
    )
    return writer.finish(gallery)


def _preview_group(panel: Any, writer: Writer) -> Group:
    tiles = []
    for label, pixels, mask in panel.shots:
        shown = pixels if mask is None else _overlay(pixels, mask)
        tiles.append(Tile(image=writer.keep(shown), label=short(label, 200)))
    return Group(title=short(panel.title, 300), tiles=tuple(tiles))


# -- classification --------------------------------------------------------------------------------


def _labels(said: Iterable[Any], source: Any, task: Any, writer: Writer) -> dict[str, Any]:
    """Right answers at random, the most confident wrong ones, and the confusion matrix."""
    classes = len(source.classes)
    matrix = np.zeros((classes, classes), np.int64)
    right, wrong = [], []  # (index, truth, [(class, probability), …])
    for answer in said:
        shares, ids = answer.probabilities.float().nan_to_num(0).topk(min(_NAMED, classes))
        pairs = list(zip(ids.tolist(), shares.tolist(), strict=True))
        truth = int(answer.target)
        matrix[truth, pairs[0][0]] += 1
        (right if pairs[0][0] == truth else wrong).append((answer.index, truth, pairs))
    lot = generator(0, "gallery").permutation(len(right))[:RIGHT]
    sure = sorted(wrong, key=lambda a: -a[2][0][1])[:WRONG]
    small = classes <= gallery_files.MOST_CLASSES
    return {
        "confusion": tuple(map(tuple, matrix.tolist())) if small else (),
        "right": tuple(_kept_answer(right[place], source, writer) for place in lot),
        "wrong": tuple(_kept_answer(answer, source, writer) for answer in sure),
    }


def _kept_answer(answer: tuple[int, int, list], source: Any, writer: Writer) -> GalleryAnswer:
    index, truth, pairs = answer
    names = source.classes
    return GalleryAnswer(
        image=writer.keep(np.asarray(source[index][0])),
        key=short(source.key(index), 200),
        truth=short(names[truth], 80),
        said=tuple((short(names[i], 80), min(max(share, 0.0), 1.0)) for i, share in pairs),
    )


# -- segmentation ----------------------------------------------------------------------------------


def _masks(said: Iterable[Any], source: Any, task: Any, writer: Writer) -> dict[str, Any]:
    """The images with the lowest mean IoU, and some at random: image, truth, prediction."""
    from ..core.task import to_masks
    from ..inference import mask_of
    from ..segmentation.visualisation import PALETTE

    lot = set(generator(0, "gallery").permutation(len(source))[:AT_RANDOM].tolist())
    drawn: list[tuple] = []
    worst: list[tuple] = []  # (IoU, index, what is shown), the lowest first
    for answer in said:
        meter = task.meter()
        meter.update(answer.probabilities[None], answer.target[None])
        result = meter.result(meter.state)
        iou = result["miou"] if result["classes_found"] else None
        image, truth = answer.pixels.permute(1, 2, 0), to_masks(answer.target)
        prediction = mask_of(answer.probabilities, None, False)
        shown = (iou, answer.key, image.cpu().numpy(), truth.cpu().numpy(), prediction)
        if answer.index in lot:
            drawn.append(shown)
        if iou is not None:
            worst = heapq.nsmallest(WORST, [*worst, (iou, answer.index, shown)])
    colours = zip(source.classes, PALETTE.tolist(), strict=False)
    return {
        "worst": tuple(_kept_mask(shown, writer) for _, _, shown in worst),
        "masks": tuple(_kept_mask(shown, writer) for shown in drawn),
        "palette": tuple(
            (short(name, 80), "#{:02x}{:02x}{:02x}".format(*rgb)) for name, rgb in colours
        ),
    }


def _kept_mask(shown: tuple, writer: Writer) -> Mask:
    iou, key, image, *masks = shown
    overlays = (_overlay(image, mask) for mask in masks)
    images = tuple(writer.keep(pixels) for pixels in (image, *overlays))
    return Mask(images=images, key=short(key, 200), iou=iou)


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    from ..segmentation import visualisation

    return np.asarray(visualisation.overlay(image, mask))

"""Images that a run's network gets right and wrong, its confusion matrix, and a preview of its
augmentation, in RUN/gallery, where `report` finds them.
"""

import argparse
import heapq
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..core.cli_types import loading, positive_count
from ..core.errors import UserError, exit_code, short
from ..core.randomness import generator
from ..core.sources import take
from ..recipe.command_line import Parser
from ..recipe.loading import Loaded, load
from ..report import gallery_files
from ..report.gallery_files import Gallery, GalleryAnswer, Group, Mask, Tile, Writer
from ..runs.run_folder import recipe_file
from . import entry_point

RIGHT, WRONG = 12, 24  # images of a classification run
WORST, AT_RANDOM = 6, 6  # images of a segmentation run
_NAMED = 3  # classes that are listed for each image


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial gallery", description=__doc__)
    add = made.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run folder, made by `train`")
    add("--weights", default="best", metavar="best|last|FILE", help="default: %(default)s")
    add("--split", choices=("val", "test", "train"), default="val", help="default: %(default)s")
    add("--most", type=positive_count, metavar="N", help="look at N images only, drawn at random")
    text = "classification: where each image speaks for the class that was said (needs captum)"
    add("--grad-cam", action="store_true", help=text)
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    # as evaluate and predict have them
    made.set_defaults(tta="none", window=None, stride=None, ensemble=None, no_refine=True)
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Make the gallery of each run; one that fails does not keep the others from theirs."""
    found = [(Path(run), load(recipe_file(Path(run)))) for run in args.runs]
    with loading():  # after the recipes are known to be good
        from .. import inference

    code = 0
    with inference.opened(found, args, alone="gallery") as distributed:
        for run, loaded in found:
            try:
                print(_make(run, loaded, args, distributed), flush=True)
            except UserError as error:
                print(f"error: {run}: {' '.join(str(error).split())}", file=sys.stderr)
                code = exit_code(error)
    return code


def _make(run: Path, loaded: Loaded, args: argparse.Namespace, distributed: Any) -> Path:
    from .. import build, inference
    from ..data.preview import preview

    recipe, both = loaded.recipe, build.data(loaded.recipe)
    splits = {"train": both.train, "val": both.val}
    source = splits.get(args.split) or build.split(recipe, "test")
    if args.most and args.most < len(source):
        source = take(source, args.most, recipe.seed)
    predictor = inference.Predictor([(run, loaded)], recipe, source, args, distributed)
    writer, dense = Writer(run), predictor.task.dense
    if args.grad_cam and dense:
        raise UserError("--grad-cam is for classification; masks show where each class is.")
    maps = predictor.grad_cams if args.grad_cam else None
    parts = _masks(predictor, source, writer) if dense else _labels(predictor, source, writer, maps)
    panels = []
    for panel in preview(recipe, both.train):
        tiles = []
        for label, pixels, mask in panel.shots:
            shown = pixels if mask is None else _overlay(pixels, mask)
            tiles.append(Tile(image=writer.keep(shown), label=short(label, 200)))
        panels.append(Group(title=short(panel.title, 300), tiles=tuple(tiles)))
    gallery = Gallery(
        weights=short(os.path.relpath(predictor.weights[0], run), 300),
        split=args.split,
        images=len(source),
        classes=tuple(short(name, 80) for name in source.classes),
        microscope=tuple(panels),
        **parts,
    )
    return writer.finish(gallery)


def _labels(predictor: Any, source: Any, writer: Writer, maps: Any = None) -> dict[str, Any]:
    """Right answers at random, the most confident wrong ones, and the confusion matrix. maps:
    image numbers and class ids -> images with what spoke for the class, uint8 (H, W, 3)."""
    names = source.classes
    matrix = np.zeros((len(names), len(names)), np.int64)
    right, wrong = [], []  # (index, truth, [(class, probability), …])
    for answer in predictor.answers():
        shares, ids = answer.probabilities.float().nan_to_num(0).topk(min(_NAMED, len(names)))
        pairs = list(zip(ids.tolist(), shares.tolist(), strict=True))
        truth = int(answer.target)
        matrix[truth, pairs[0][0]] += 1
        (right if pairs[0][0] == truth else wrong).append((answer.index, truth, pairs))

    def kept(index: int, truth: int, pairs: list[tuple[int, float]]) -> GalleryAnswer:
        shown = writer.keep(cams[index]) if maps else None
        return GalleryAnswer(
            grad_cam=shown,
            image=writer.keep(np.asarray(source[index][0])),
            key=short(source.key(index), 200),
            truth=short(names[truth], 80),
            said=tuple((short(names[i], 80), min(max(share, 0.0), 1.0)) for i, share in pairs),
        )

    lot = generator(0, "gallery").permutation(len(right))[:RIGHT]
    sure = sorted(wrong, key=lambda a: -a[2][0][1])[:WRONG]
    chosen = {index: pairs[0][0] for index, _, pairs in (*(right[n] for n in lot), *sure)}
    cams = dict(zip(chosen, maps(chosen), strict=True)) if maps else {}
    small = len(names) <= gallery_files.MOST_CLASSES
    return {
        "confusion": tuple(map(tuple, matrix.tolist())) if small else (),
        "right": tuple(kept(*right[place]) for place in lot),
        "wrong": tuple(kept(*answer) for answer in sure),
    }


def _masks(predictor: Any, source: Any, writer: Writer) -> dict[str, Any]:
    """The images with the lowest mean IoU, and some at random: image, truth, prediction."""
    from ..core.task import VOID, to_masks
    from ..inference import mask_of
    from ..segmentation import visualisation

    lot = set(generator(0, "gallery").permutation(len(source))[:AT_RANDOM].tolist())
    drawn: list[tuple] = []
    worst: list[tuple] = []  # (IoU, index, what is shown), the lowest first
    for answer in predictor.answers(pixels=True):
        meter = predictor.task.meter()
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

    def kept(iou: float | None, key: str, image: np.ndarray, *masks: np.ndarray) -> Mask:
        shown = (writer.keep(visualisation.PALETTE[mask], mask=True) for mask in masks)
        return Mask(images=(writer.keep(image), *shown), key=short(key, 200), iou=iou)

    colours = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in visualisation.PALETTE.tolist()]
    named = [*zip(source.classes, colours, strict=False), ("void", colours[VOID])]
    return {
        "worst": tuple(kept(*shown) for _, _, shown in worst),
        "masks": tuple(kept(*shown) for shown in drawn),
        "palette": tuple((short(name, 80), colour) for name, colour in named),
    }


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    from ..segmentation import visualisation

    return np.asarray(visualisation.overlay(image, mask))

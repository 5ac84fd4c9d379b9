"""The predictions of a run's network: labels, or masks and what is made of them (overlays, a
submission, pseudo labels). Several runs predict as one (--ensemble).
"""

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ..core.atomic import check_folder, is_stdout, make_folder, replacing, write_text
from ..core.cli_types import add_looks, loading, share
from ..core.errors import UserError, counted, visible
from ..core.images import image_size, images_in, no_images, read_image
from ..core.names import CSV
from ..recipe.command_line import Parser
from ..recipe.loading import load
from ..runs.run_folder import recipe_file
from ..tables.table import inert
from . import entry_point

_TOP = 5  # classes that are written of each image

# The folder from which the images are called, they, each once, and what is skipped.
_Images = tuple[Path, list[Path], Counter[str]]


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial predict", description=__doc__)
    add, flag = made.add_argument, partial(made.add_argument, action="store_true")
    add("runs", nargs="+", metavar="RUN", help="a run folder; or key.sub=value for its recipe")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--on", nargs="+", metavar="PATH", help="image files, or folders of them")
    what.add_argument(
        "--split",
        choices=("val", "test", "train"),
        help="of the run's data set; its truth is written too",
    )
    add("-o", "--output", required=True, metavar="DIR", help="the folder to write to")
    add_looks(made)
    made.takes_overrides = True  # among its runs
    flag("--skip-unreadable", help="with --on: leave damaged files out")
    flag("--overlays", help="masks: write them laid over the images, too")
    add("--submission", metavar="FILE", help="masks: write the contest's CSV (--size is 256 there)")
    flag("--smooth", help="masks: resize probabilities, then decide")
    flag("--pseudo-labels", help="masks: make DIR a data set of sure answers")
    add("--min-confidence", type=share, default=0.0, metavar="P", help="of a pseudo label, on mean")
    add("--pixel-threshold", type=share, default=0.0, metavar="P", help="below it a pixel is void")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Write the predictions, and say where."""
    if len(args.runs) > 1 and not args.ensemble:
        raise UserError("several runs predict as one: add --ensemble soft or hard.")
    found = [(Path(run), load(recipe_file(Path(run)), args.set)) for run in args.runs]
    images = _image_files(args.on) if args.on else None  # before the seconds that torch takes
    check_folder(Path(args.output))
    with loading():  # after the recipes are known to be good
        from .. import build, inference
    from ..core.sources import notices

    with inference.opened(found, args, alone="predict") as distributed:
        recipe = found[0][1].recipe
        if args.split:
            source = build.split(recipe, args.split)
        else:
            source = _source(found[0][0], recipe, images, args.skip_unreadable)
            if source.dense:  # masks keep their size, so each is its own batch
                recipe = recipe.model_copy(update={"eval_batch_size": 1})
        predictor = inference.Predictor(found, recipe, source, args, distributed)
        for line in notices(source):
            print(line, file=sys.stderr)
        console = {"console": Console(stderr=True), "disable": args.json}
        answers = track(predictor.answers(), "predicting", len(source), **console)
        write = _write_labels
        if source.dense:
            write = _write_pseudo_labels if args.pseudo_labels else _write_masks
        result = write(answers, source, recipe, args)
    where = sys.stderr if args.submission and is_stdout(args.submission) else sys.stdout
    print(json.dumps(result, indent=2) if args.json else result["said"], file=where)
    return 0


def _image_files(given: Sequence[str]) -> _Images:
    paths: list[Path] = []
    skipped: Counter[str] = Counter()
    for path in map(Path, given):
        if path.is_dir():
            inside = images_in(path, path, "predict", skipped, follow_links=True)
            if not inside:
                raise no_images(path, "predict", skipped)
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise UserError(f"no {path}; name an image, or a folder of images.")
    alone = len(given) == 1 and os.path.isdir(given[0])
    homes = given if alone else [os.path.dirname(os.path.abspath(path)) for path in given]
    root = os.path.commonpath(map(os.path.abspath, homes))
    unique = {os.path.abspath(path): path for path in paths}
    return Path(root), list(unique.values()), skipped


def _source(run: Path, recipe: Any, images: _Images, skip: bool) -> Any:
    """Images without targets; their classes are those of the run's table, or of its data set."""
    from .. import build, inference
    from ..core.sources import FileSource

    root, paths, skipped = images
    names = inference.class_names(run, recipe)
    dense = build.task(recipe, names).dense
    nothing = np.zeros(len(paths), np.int64)  # nothing counts in the masks of a dense one
    source = FileSource("images", paths, nothing, names, dense=dense, root=root)
    return source.checked("predict", skipped, skip, "--skip-unreadable")


def _mask_names(source: Any) -> list[str]:
    """The file of each image's mask: its name as .png; the whole name and .png where two would
    share one."""
    keys = [source.key(index) for index in range(len(source))]
    both = [(str(PurePath(key).with_suffix(".png")), f"{key}.png") for key in keys]
    counts = Counter(name for names in both for name in set(names))
    return [whole if counts[plain] > 1 else plain for plain, whole in both]


def _write_labels(answers: Iterable, source: Any, recipe: Any, args: argparse.Namespace) -> dict:
    """Write predictions.csv: each image's likeliest classes; of a split its own label, too."""
    most = min(_TOP, len(source.classes))
    path = make_folder(Path(args.output)) / "predictions.csv"
    count = 0
    with replacing(path) as temporary, temporary.open("w", **CSV) as file:
        rows = csv.writer(file)
        heads = [f"{kind}{i}" for i in range(1, most + 1) for kind in ("class", "p")]
        known = ["truth"] * bool(args.split)
        rows.writerow(["image", *known, *heads])
        for answer in answers:
            row = [answer.key, *[source.classes[int(answer.target)]] * len(known)]
            row = [inert(visible(text)) for text in row]
            values, ids = answer.probabilities.topk(most)
            for value, id in zip(values.tolist(), ids.tolist(), strict=True):
                row += [inert(visible(source.classes[id])), f"{value:.6f}"]
            rows.writerow(row)
            count += 1
    return {"images": count, "predictions": str(path), "said": f"{counted(count, 'image')}: {path}"}


def _write_masks(answers: Iterable, source: Any, recipe: Any, args: argparse.Namespace) -> dict:
    """Write masks as palette PNGs, of a split its own too, and what else was asked for."""
    import torch

    from .. import inference
    from ..core.task import sampled
    from ..segmentation import submission, visualisation

    folder, names = make_folder(Path(args.output)), _mask_names(source)
    places = {"masks": str(folder / "masks")}
    if args.split:
        places["truth"] = str(folder / "truth")
    if args.overlays:
        places["overlays"] = str(folder / "overlays")

    def written() -> Iterator[tuple[str, Any]]:
        for answer in answers:
            image, truth = source[answer.index]
            size = (args.size, args.size) if args.size else image.size[::-1]
            mask = inference.mask_of(answer.probabilities, size, args.smooth or not args.size)
            name = names[answer.index]
            visualisation.save(visualisation.image_of(mask), folder / "masks" / name)
            if args.split:
                ids = sampled(torch.from_numpy(np.array(truth)), *mask.shape).numpy()
                visualisation.save(visualisation.image_of(ids), folder / "truth" / name)
            if args.overlays:
                shown = image.resize(mask.shape[::-1])
                laid = visualisation.overlay(np.asarray(shown), mask)
                visualisation.save(laid, folder / "overlays" / name)
            yield answer.key, answer.probabilities

    if args.submission:
        size = (args.size or submission.SIZE,) * 2
        rows = ((key, inference.mask_of(x, size, args.smooth)) for key, x in written())
        count = submission.write(Path(args.submission), rows)
        places["submission"] = args.submission
    else:
        count = sum(1 for _ in written())
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in source.classes))
    text = ", ".join(f"{what} in {where}" for what, where in places.items())
    return {"images": count, **places, "said": f"{counted(count, 'image')}: {text}"}


def _write_pseudo_labels(answers: Iterable, source: Any, recipe: Any, args: Any) -> dict:
    """Make the output folder a data set of the images whose answers are certain enough."""
    from .. import build, inference
    from ..segmentation import pseudo_labels

    if args.split or args.size or args.submission or args.overlays:
        raise UserError(
            "--pseudo-labels looks at unlabelled images (--on) at their own size; leave out "
            "--split, --size, --submission and --overlays."
        )
    rule = (args.min_confidence, args.pixel_threshold)
    report = pseudo_labels.PseudoLabelReport(source.classes, args.runs, *rule)
    both, paths = build.data(recipe), source.paths
    masks = (both.train[i][1] for i in range(len(both.train)))
    report.labelled = pseudo_labels.class_pixels(masks, len(source.classes))
    shown = ((source.key(i), np.asarray(read_image(path))) for i, path in enumerate(paths))
    known = ((both.val.key(i), np.asarray(both.val[i][0])) for i in range(len(both.val)))
    report.leaks = pseudo_labels.leaked_images(shown, known)
    said = (
        (paths[x.index], inference.at_size(x.probabilities, image_size(paths[x.index])[::-1]))
        for x in answers
    )
    pseudo_labels.write_folder(Path(args.output), said, report, source.root)
    facts = {name: value for name, value in report.plain().items() if name != "images"}
    text = [*report.messages(), f"pseudo labels: {args.output}"]
    return {"folder": args.output, **facts, "said": "\n".join(text)}

"""The Python face: `import vision_tutorial as vt`, then `vt.train`, `vt.load`, `vt.evaluate`, …

What can be mended is a `UserError` of one line, as on the command line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import build, inference
from . import train as training
from .commands import evaluate as evaluating
from .core.atomic import plain
from .core.cli_types import looks
from .core.errors import UserError, counted, unknown
from .core.images import read_image
from .core.task import VOID
from .recipe.fields import written
from .recipe.loading import load as load_recipe
from .runs.reader import Run, collect, read
from .runs.run_folder import recipe_file
from .segmentation.visualisation import image_of, overlay
from .tables import comparison, table
from .tables.layouts import LAYOUTS, View

AnyImage = str | PathLike | Image.Image | np.ndarray | torch.Tensor
AnyRun = str | PathLike | Run


def train(
    recipe: str | PathLike,
    *,
    runs: str | PathLike = "runs",
    id: str | None = None,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    quiet: bool = False,
    trust_imports: bool = False,
    **overrides: Any,
) -> Run:
    """Train what a recipe says, here, on one process; the run.

    recipe: a file, a name such as "quickstart", or the folder of a run to continue. overrides:
    values of its keys; with dots, `**{"optimizer.sgd.lr": 0.1}`. The others: options of
    `vision-tutorial train`. Stopped (Ctrl-C), its status is "preempted", and it can be continued.
    """
    words = [str(recipe), "--runs", str(runs)]
    for option, value in {"--id": id, "--minutes": minutes, "--steps": steps}.items():
        words += [option, str(value)] if value is not None else []
    flags = {"--resume": resume, "--quiet": quiet, "--trust-imports": trust_imports}
    words += [flag for flag, given in flags.items() if given]
    words += [f"{key}={written(value)}" for key, value in overrides.items()]
    _, run = training.train(training.parser().parse_intermixed_args(words))
    return read(run)


def load(run: AnyRun, **options: Any) -> "Model":
    """The network of a run with its best weights, to look at images.

    options: of `vision-tutorial predict`, such as weights="last", tta="hflip", window=256.
    """
    return Model(_folder(run), **options)


def predict(run: AnyRun, images: Any, **options: Any) -> Any:
    """`load(run, **options).predict(images)`."""
    return load(run, **options).predict(images)


def evaluate(run: AnyRun, split: str = "val", **options: Any) -> dict[str, Any]:
    """Metrics of a run's weights on a split: {"images": …, "metrics": {…}, "classes": {…}, …}.

    options: of `vision-tutorial evaluate`, such as weights="last", tta="hflip".
    """
    folder = _folder(run)
    args = looks(split=split, submission=None, **options)
    found = [(folder, load_recipe(recipe_file(folder), args.set))]
    with inference.opened(found, args, alone="evaluate") as distributed:
        return plain(evaluating.evaluate_one(found, args, distributed))


def compare(runs: Iterable[AnyRun], layout: str = "generic", **options: Any) -> "Comparison":
    """Many runs as one table, which shows itself in a notebook.

    runs: run folders, folders that hold them, patterns, or what `train` returned. layout: of
    `vision-tutorial compare`. options: `lang`, `every` (all keys), `spread`; see `View`.
    """
    given = [runs] if isinstance(runs, str | PathLike | Run) else list(runs)
    found, complaints = collect(_folder(run) if isinstance(run, Run) else run for run in given)
    if not found:
        raise UserError(f"no run in {', '.join(map(str, given))}. {' '.join(complaints)}")
    if layout not in LAYOUTS:
        raise UserError(unknown("layout", layout, LAYOUTS))
    return Comparison(LAYOUTS[layout](View(comparison.rows_of(found), **options)), complaints)


@dataclass(frozen=True)
class Comparison:
    """A table of runs. left_out: a line for each folder that holds no whole run."""

    table: table.Table
    left_out: Sequence[str] = ()

    def __str__(self) -> str:
        return table.plain_text(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table.html_table(self.table)

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary a line; mean and spread over seeds as columns of their own."""
        titles, rows = table.uniform(self.table)
        return [dict(zip(titles, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Labels:
    """What was said of one image: a probability for each class. `str()` shows the likeliest."""

    classes: Sequence[str]
    probabilities: np.ndarray  # float32 (C,), which sum to 1

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.classes[int(self.probabilities.argmax())]

    def top(self, count: int = 5) -> dict[str, float]:
        """The likeliest classes with their probabilities, from the first on."""
        order = self.probabilities.argsort()[::-1][:count]
        return {self.classes[i]: float(self.probabilities[i]) for i in order}

    def __str__(self) -> str:
        return ", ".join(f"{name} {share:.1%}" for name, share in self.top(3).items())


@dataclass(frozen=True)
class PixelLabels:
    """What was said of each pixel of one image."""

    classes: Sequence[str]
    ids: np.ndarray  # uint8 (H, W), at the image's own size
    image: Image.Image = field(repr=False)

    def overlay(self, strength: float = 0.5) -> Image.Image:
        """The image with each class's colour laid over it."""
        return overlay(np.asarray(self.image), self.ids, strength)

    def to_pil(self) -> Image.Image:
        """The ids as a palette image."""
        return image_of(self.ids)

    def shares(self) -> dict[str, float]:
        """The classes that are there, with their share of the pixels, the largest first."""
        counts = np.bincount(self.ids.ravel(), minlength=len(self.classes)) / self.ids.size
        order = counts.argsort()[::-1]
        return {self.classes[i]: float(counts[i]) for i in order if counts[i]}

    def _repr_png_(self) -> bytes:
        return self.overlay()._repr_png_()


class Model:
    """A trained network. `network` is the torch module, `classes` their names, `recipe` its own."""

    def __init__(self, folder: Path, **options: Any):
        args = looks(**options)
        loaded = load_recipe(recipe_file(folder), args.set)
        self.folder, self.recipe = folder, loaded.recipe
        with inference.opened([(folder, loaded)], args, alone="load") as self._distributed:
            self.classes = inference.class_names(folder, self.recipe)
            nothing = _Images([], self.classes, build.task(self.recipe, self.classes).dense)
            given = (self.recipe, nothing, args, self._distributed)
            self._predictor = inference.Predictor([(folder, loaded)], *given)
        self.network = self._predictor.networks[0]

    def __repr__(self) -> str:
        classes = counted(len(self.classes), "class")
        return f"Model({str(self.folder)!r}: {self.recipe.model.name}, {classes})"

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> Any:
        """Labels or a PixelLabels of an image, or a list of them of several.

        An image is a path, a PIL image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or
        (1, H, W): uint8 from 0 to 255, or floating point from 0 to 1. It is resized and cropped by
        the recipe's `eval_augment`. UserError for what is no image.
        """
        single = isinstance(images, AnyImage) and getattr(images, "ndim", 3) <= 3
        shown = [as_image(image) for image in ([images] if single else images)]
        dense = self._predictor.task.dense
        batch = {"eval_batch_size": 1} if dense else {}  # masks keep their size
        recipe = self.recipe.model_copy(update=batch)
        source = _Images(shown, self.classes, dense)
        said = []
        if shown:
            for answer in self._predictor.answers(asked=(recipe, source, self._distributed)):
                image, probabilities = shown[answer.index], answer.probabilities.float().cpu()
                if dense:
                    ids = inference.mask_of(probabilities, image.size[::-1], smooth=True)
                    said.append(PixelLabels(self.classes, ids, image))
                else:
                    said.append(Labels(self.classes, probabilities.numpy()))
        return said[0] if single else said


def as_image(given: AnyImage) -> Image.Image:
    """One image as RGB. UserError for what is none."""
    if isinstance(given, str | PathLike):
        return read_image(Path(given))
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.permute(1, 2, 0) if given.ndim == 3 else given).numpy()
    pixels = np.asarray(given)
    if np.issubdtype(pixels.dtype, np.floating) and pixels.size:
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(
                "an image of floating-point numbers has to be in 0 … 1, before `normalize`."
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if pixels.dtype != np.uint8 or not pixels.size or pixels.shape[2:] not in ((), (3,)):
        raise UserError(
            f"given {pixels.dtype} of shape {tuple(pixels.shape)}; an image is uint8 or floating "
            "point, an array (H, W, 3) or a tensor (3, H, W)."
        )
    return Image.fromarray(pixels).convert("RGB")


class _Images:
    """Images in memory, without targets, as the evaluation wants its source."""

    name, notices, left_out = "images", (), ()

    def __init__(self, images: Sequence[Image.Image], classes: Sequence[str], dense: bool):
        self.images, self.classes, self.dense = images, tuple(classes), dense
        self.targets = np.zeros(len(images), np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = self.images[index]
        return image, np.full(image.size[::-1], VOID, np.uint8) if self.dense else 0


def _folder(run: AnyRun) -> Path:
    folder = run.folder if isinstance(run, Run) else Path(run)
    if folder is None:
        raise UserError(f"{run.name}/{run.id} was read from wandb; its weights are not here.")
    return folder

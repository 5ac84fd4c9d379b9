"""Runs -> networks with their weights -> answers: what `evaluate`, `predict`, `gallery` share."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import build, checks
from .classification import label_files
from .core import registry
from .core.atomic import read_json
from .core.errors import UserError
from .core.sources import Source, Subset
from .core.task import Batch, Task, sampled
from .engine import (
    Distributed,
    Evaluation,
    load_weights,
    prediction_function,
    put_weights,
    weights_path,
)
from .recipe.fields import Recipe
from .recipe.loading import Loaded
from .segmentation import submission

_FOR_MASKS = ("size", "window", "submission", "overlays", "smooth", "pseudo_labels")
_SEEN_ALIKE = ("task", "dataset", "holdout", "eval_augment", "normalize", "channels_last")


@contextmanager
def opened(
    found: Sequence[tuple[Path, Loaded]], args: argparse.Namespace, alone: str = ""
) -> Iterator[Distributed]:
    """Import the runs' files, check their recipes, and set this process and its device up.

    args: of the command. The runs of an ensemble must see the same images the same way; others
    have one precision and number of threads. alone: the name of a command for one process only.
    """
    first = found[0][1].recipe
    for run, loaded in found:
        for key in _SEEN_ALIKE if args.ensemble else ("precision", "threads"):
            if getattr(loaded.recipe, key) != getattr(first, key):
                raise UserError(
                    f"{run}: its '{key}' is not that of the first run; change it ({key}=…), "
                    "or name this run alone."
                )
        build.import_files(loaded.imports, args.trust_imports)
        checks.check(loaded.recipe)
    distributed = Distributed(first.precision, first.threads, first.deterministic, first.shards)
    try:
        if alone and distributed.world > 1:
            raise UserError(f"{alone} runs on one process; start it without torchrun.")
        with distributed.peers():
            yield distributed
    finally:
        distributed.close()


def network_of(run: Path, loaded: Loaded, classes: int, weights: str | Path) -> nn.Module:
    """The network of a run with its weights (`best`, `last` or a file), on the CPU."""
    path = weights if isinstance(weights, Path) else weights_path(run, weights)
    network = build.model(loaded.recipe, classes, weights=False)
    put_weights(network, load_weights(path, "ema" if loaded.recipe.ema else "model"), path)
    return network


def class_names(run: Path, recipe: Recipe) -> tuple[str, ...]:
    """The classes that a run learned: those of its table, or of its data set."""
    file = run / "classes.json"
    table = read_json(file) if file.is_file() else None
    names = table.get("class") if isinstance(table, dict) else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return build.split(recipe, "val").classes


def task_of(recipe: Recipe, source: Source, args: argparse.Namespace) -> Task:
    """The task; UserError for options of the command that only masks have."""
    made = build.task(recipe, source.classes)
    for option in () if made.dense else _FOR_MASKS:
        if getattr(args, option, None):
            option = option.replace("_", "-")
            raise UserError(f"--{option} is for masks; this run names one class per image.")
    return made


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


Asked = tuple[Recipe, Source, Distributed]


class Predictor:
    """The networks of some runs with their weights, asked as one about `source`."""

    def __init__(
        self,
        found: Sequence[tuple[Path, Loaded]],
        recipe: Recipe,
        source: Source,
        args: argparse.Namespace,
        distributed: Distributed,
    ):
        """args: with the options of `add_looks`."""
        self.task = task_of(recipe, source, args)
        self.asked = (recipe, source, distributed)
        self.weights = [weights_path(run, args.weights) for run, _ in found]
        self.networks = nn.ModuleList()
        for (run, loaded), path in zip(found, self.weights, strict=True):
            network = network_of(run, loaded, len(source.classes), path)
            self.networks.append(build.place_model(loaded.recipe, network, distributed))
            distributed.wrap(self.networks[-1], replicate=False)
        looks = (args.tta, args.window, args.stride, args.ensemble or "soft")
        self.forward = prediction_function(self.networks, *looks)
        self.refine = None if args.no_refine else refining(recipe)

    def evaluation(self, size: int | None, refine: Callable | None = None) -> Evaluation:
        """All metrics, on all processes. refine: of `refining`, for the probabilities."""
        recipe, source, distributed = self.asked
        given = (recipe, source, self.networks, self.task, distributed)
        answer = lambda batch: self.forward(batch.images)  # noqa: E731
        return build.evaluation(*given, answer=answer, size=size, refine=refine)

    def answers(self, pixels: bool = False, asked: Asked | None = None) -> Iterator[Answer]:
        """What is said of every image, in order; one process. pixels: the images as seen, too.
        asked: about another source than the first."""
        recipe, source, distributed = asked or self.asked
        data = build.eval_pipeline(recipe, source, distributed)
        rounds = data.evaluation(pixels=pixels or self.refine is not None)
        self.networks.eval()
        with torch.inference_mode():
            for batch in chain.from_iterable(rounds):
                said = self.task.predict(self.forward, batch.images)
                if self.refine:
                    said = self.refine(said.log(), batch.pixels).exp()
                seen = batch.pixels if pixels else [None] * len(said)
                rows = zip(batch.items.tolist(), said, batch.target, seen, strict=True)
                for (_, index), probabilities, target, image in rows:
                    yield Answer(index, source.key(index), probabilities, target, image)

    def grad_cams(self, chosen: Mapping[int, int]) -> Iterator[np.ndarray]:
        """Images as the first network sees them, uint8 (H, W, 3), half under the colours of their
        `grad_cam`. chosen: the number of an image -> a class id."""
        from matplotlib import colormaps

        recipe, source, distributed = self.asked
        part = Subset(source, np.array(list(chosen), dtype=np.int64))
        classes = torch.tensor(list(chosen.values()), device=distributed.device)
        data, network = build.eval_pipeline(recipe, part, distributed), self.networks.eval()[0]
        for batch in chain.from_iterable(data.evaluation(pixels=True)):
            wanted = classes[batch.items[:, 1].to(classes.device)]
            maps = grad_cam(network, batch.images.clone(), wanted).cpu().numpy()
            for pixels, heat in zip(batch.pixels.cpu().numpy(), maps, strict=True):
                colours = 255 * colormaps["inferno"](heat)[..., :3]
                yield (0.5 * pixels.transpose(1, 2, 0) + 0.5 * colours).round().astype(np.uint8)


def grad_cam(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Where images (B, 3, H, W) speak for classes (B,): (B, H, W), 0 to 1, by the last feature map
    and its gradient (Grad-CAM, Selvaraju et al. 2017, 1610.02391), through captum.

    UserError without captum, or for a network without such a map.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise UserError("--grad-cam needs the package captum: pip install captum.") from error
    cam = LayerGradCam(network, _last_feature_map(network, images[:1]))
    maps = cam.attribute(images, classes, relu_attributions=True).detach().float()
    maps = nn.functional.interpolate(maps, images.shape[2:], mode="bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _last_feature_map(network: nn.Module, image: torch.Tensor) -> nn.Module:
    """The last module whose output (B, C, h, w) has more than one position; UserError where the
    last such output is no map of channels, as in transformers."""
    found: list[tuple[nn.Module, torch.Size]] = []

    def look(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim() > 2 and output[0, 0].numel() > 1:
            found.append((module, output.shape))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    width = getattr(network, "num_features", None)
    if not found or len(found[-1][1]) != 4 or found[-1][1][1] != width == found[-1][1][3]:
        raise UserError(
            "--grad-cam needs a network whose last layers are maps of channels, as a ResNet's; "
            "leave it out for a transformer."
        )
    return found[-1][0]


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
    recipe: Recipe, source: Source, args: argparse.Namespace, distributed: Distributed
) -> Evaluation:
    """All metrics of the masks in a submission; no network is asked."""
    task, file = task_of(recipe, source, args), Path(args.submission)
    size, classes = args.size or submission.SIZE, len(source.classes)
    masks = submission.read(file, classes, map(source.key, range(len(source))), size)

    def answer(batch: Batch) -> torch.Tensor:
        ids = np.stack([masks[source.key(index)] for _, index in batch.items.tolist()])
        one_hot = nn.functional.one_hot(torch.from_numpy(ids).long(), classes)
        return one_hot.permute(0, 3, 1, 2).to(distributed.device)

    given = (recipe, source, nn.Identity(), task, distributed)
    found = build.evaluation(*given, answer=answer, size=size)
    for name in ("loss", "cross_entropy"):  # a mask says nothing of how sure it is
        del found.metrics[name]
    return found


def score_file(recipe: Recipe, source: Source, path: Path, distributed: Distributed) -> float:
    """The headline metric of a submission's CSV, in per cent: of masks mIoU, of labels top-1."""
    if source.dense:
        args = argparse.Namespace(**dict.fromkeys(_FOR_MASKS) | {"submission": path})
        return scored(recipe, source, args, distributed).metrics["miou"]
    truth = zip(map(source.key, range(len(source))), source.targets.tolist(), strict=True)
    return label_files.top1(path, source.classes, truth)


def mask_of(probabilities: torch.Tensor, size: tuple[int, int] | None, smooth: bool) -> np.ndarray:
    """Class ids uint8 (H, W) of probabilities (C, h, w), at `size` (height, width) or as they are.

    smooth: resize probabilities, bilinear, and then decide; else decide, and resize by nearest.
    """
    if size and smooth:
        probabilities = at_size(probabilities, size)
    ids = probabilities.argmax(0)
    if size and not smooth:
        ids = sampled(ids, *size)
    return ids.byte().cpu().numpy()


def at_size(probabilities: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Probabilities (C, h, w) as (C, *size), bilinear; size is (height, width)."""
    resize = nn.functional.interpolate
    return resize(probabilities[None], size, mode="bilinear", align_corners=False)[0]

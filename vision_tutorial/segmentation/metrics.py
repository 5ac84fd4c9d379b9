"""Metrics of segmentation: mean IoU, IoU of each class, boundary IoU, confusion matrix.

All metrics are sums that are exact in any order, most from one confusion matrix, summed over
batches and processes. Beside it stand the means over images and over batches, which logs tend to
mix up with it, and the overlap along boundaries.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.registry import tasks
from ..core.task import IGNORE, Task, exact_sum, tally, to_device, wide

BAND = 0.02  # width of a boundary, in diagonals of the image (Cheng et al. 2021)
_SUMS = ("images", "counted", "batches", "iou_of_images", "iou_of_batches", "entropy")


class Overlap:
    """Mean IoU over the data set, per-class IoU, pixel accuracy, boundary IoU, confusion matrix.

    state float64 (6 + C² + 2C,): _SUMS; pixels of class i that were called j, at i·C + j; per class
    pixels in which the boundaries agree, then those of either.
    """

    headline = "miou"
    higher_is_better = True

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        n = len(classes)
        self.state = torch.zeros(len(_SUMS) + n * n + 2 * n, dtype=torch.float64)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. output (B, C, H, W) logits; target ids (B, H, W), IGNORE where void."""
        output = output.float()
        predicted, counts = output.argmax(1), target != IGNORE
        entropy = F.cross_entropy(output, target, ignore_index=IGNORE, reduction="none")
        # pixels by (true class, predicted class) of each image, (B, C, C)
        n, classes = len(target), len(self.classes)
        image = torch.arange(n, device=target.device).view(n, 1, 1)
        cells = (image * classes + target.clamp(min=0)) * classes + predicted
        matrices = tally(counts.flatten(), cells.flatten(), n * classes * classes)
        matrices = matrices.view(n, classes, classes)
        of_images, some = _mean_iou(matrices), counts.flatten(1).any(1)
        sums = [
            wide(torch.tensor(float(n), device=output.device)),
            wide(some.sum()),
            wide(some.any().float()),
            exact_sum(of_images.where(some.to(of_images.device), 0)),
            exact_sum(_mean_iou(matrices.sum(0))),
            exact_sum(entropy.where(counts, 0)),
        ]
        pair = boundaries(predicted, target, classes)
        mine = torch.cat([torch.stack(sums), matrices.sum(0).flatten(), *pair])
        self.state = to_device(self.state, mine.device) + mine

    def result(self, state: Tensor) -> dict[str, float]:
        """In per cent: miou (over the data set), miou_images, miou_batches, boundary_iou,
        pixel_accuracy, mean_accuracy (of classes). cross_entropy in nats a pixel; classes_found,
        how many classes the means are over; `images` counted."""
        sums, matrix, agreed, either = self._parts(state)
        pixels, hits = matrix.sum().item(), matrix.diagonal()
        union, truth = _unions(matrix), matrix.sum(1)
        return {
            "miou": 100 * _mean_where(hits / union, union > 0),
            "miou_images": 100 * sums["iou_of_images"] / max(sums["counted"], 1),
            "miou_batches": 100 * sums["iou_of_batches"] / max(sums["batches"], 1),
            "boundary_iou": 100 * _mean_where(agreed / either, either > 0),
            "pixel_accuracy": 100 * hits.sum().item() / max(pixels, 1),
            "mean_accuracy": 100 * _mean_where(hits / truth, truth > 0),
            "cross_entropy": sums["entropy"] / max(pixels, 1),
            "classes_found": int((union > 0).sum()),
            "images": sums["images"],
        }

    def table(self, state: Tensor) -> dict[str, list[Any]]:
        """Per class: name, true pixels; IoU, accuracy (recall), precision and boundary IoU in per
        cent, None where they are 0/0; `confusion`, its pixels by the class they were given."""
        _, matrix, agreed, either = self._parts(state)
        hits = matrix.diagonal()
        return {
            "class": list(self.classes),
            "pixels": [int(n) for n in matrix.sum(1).tolist()],
            "iou": _percent(hits, _unions(matrix)),
            "accuracy": _percent(hits, matrix.sum(1)),
            "precision": _percent(hits, matrix.sum(0)),
            "boundary_iou": _percent(agreed, either),
            "confusion": [[int(n) for n in row] for row in matrix.tolist()],
        }

    def _parts(self, state: Tensor) -> tuple[dict[str, float], Tensor, Tensor, Tensor]:
        """_SUMS by name, the confusion matrix (C, C), pixels of agreed and of either boundary."""
        n = len(self.classes)
        sums, matrix, agreed, either = state.cpu().split([len(_SUMS), n * n, n, n])
        return dict(zip(_SUMS, sums.tolist(), strict=True)), matrix.view(n, n), agreed, either


def _unions(matrix: Tensor) -> Tensor:
    """Pixels that are or were called each class, of a confusion matrix (…, C, C) -> (…, C)."""
    return matrix.sum(-1) + matrix.sum(-2) - matrix.diagonal(dim1=-2, dim2=-1)


def _mean_iou(matrix: Tensor) -> Tensor:
    """Mean IoU over the classes with a union, of confusion matrices (…, C, C); 0 without any."""
    union = _unions(matrix)
    iou = matrix.diagonal(dim1=-2, dim2=-1) / union.clamp(min=1)
    return iou.sum(-1) / (union > 0).sum(-1).clamp(min=1)


def boundaries(predicted: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Per class, pixels in both boundaries and pixels in either (Cheng et al. 2021, 2103.16562).

    A boundary is the pixels of a class that are within BAND diagonals (at least a pixel) of
    another class or the border, by square neighbourhoods. Void pixels are void in the prediction
    too, and are not counted. ids (B, H, W) -> float64 (C,), (C,).
    """
    void = target == IGNORE
    predicted = predicted.masked_fill(void, IGNORE)
    reach = max(1, round(BAND * math.hypot(*target.shape[1:])))
    truth, found = (_edge(ids, reach) & ~void for ids in (target, predicted))
    pairs = (truth & found & (target == predicted), target), (truth, target), (found, predicted)
    agreed, true, called = (
        tally(where.flatten(), ids.clamp(min=0).flatten(), classes) for where, ids in pairs
    )
    return agreed, true + called - agreed


def _edge(ids: Tensor, reach: int) -> Tensor:
    """Whether another class, or the border, is within `reach` pixels along both axes; ids (B, H, W)
    -> bool, in one pass for all classes."""
    values = F.pad(ids.float()[:, None], [reach] * 4, value=-1.0)  # no class beyond the border
    lowest, highest = (
        F.max_pool2d(F.max_pool2d(sign * values, (1, 2 * reach + 1), 1), (2 * reach + 1, 1), 1)
        for sign in (-1, 1)
    )
    return (highest[:, 0] != ids) | (-lowest[:, 0] != ids)


def _mean_where(values: Tensor, where: Tensor) -> float:
    return values[where].mean().item() if where.any() else 0.0


def _percent(part: Tensor, total: Tensor) -> list[float | None]:
    """100 part / total, None for 0/0; (C,) each."""
    return [100 * a / b if b else None for a, b in zip(part.tolist(), total.tolist(), strict=True)]


@tasks.register
def segmentation(classes: Sequence[str]) -> Task:
    """A class for every pixel: mean IoU over the data set, per class, along boundaries."""
    return Task(classes, Overlap, dense=True)

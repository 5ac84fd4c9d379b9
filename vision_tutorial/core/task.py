"""What both tracks share: Task and Meter, exact sums, and the two forms of a target.

A target is class ids, integers (B, *S) with `IGNORE` where nothing counts, or a class map, float
(B, C, *S): one distribution over C classes per position, all zero where nothing counts.

Metrics are sums, exact whatever the split over batches and processes. Counts are whole numbers.
Real-valued sums (a loss) are in fixed point, 2^-24 a step: float64 adds multiples of 2^-24 without
rounding up to 2^29, so the order of addition cannot matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .images import VOID

Parts = dict[str, Tensor]
Criterion = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Parts]]
# Not segmentation's 255, which is a real class id in ImageNet; masks are translated when they load.
IGNORE = -100
QUANTUM = 2.0**-24


@dataclass
class Batch:
    """Ready for the model. images float (B, 3, H, W); target ids (B, *S) or map (B, C, *S).

    pixels: the images before they were normalised, uint8 (B, 3, H, W), where they were asked for.
    items: int64 (B, 2), the (epoch, index) of each image, on the CPU.
    versions: of each image, one after the other; images of the data set count once in `len`.
    """

    images: Tensor
    target: Tensor
    pixels: Tensor | None = None
    items: Tensor | None = None
    versions: int = 1

    def __len__(self) -> int:
        return len(self.target) // self.versions

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two smaller ones, of a batch of one version."""
        rows = (self.images, self.target, self.pixels, self.items)
        cut = (len(self) + 1) // 2
        front, back = (
            [value if value is None else value[part] for value in rows]
            for part in (slice(cut), slice(cut, None))
        )
        return Batch(*front), Batch(*back)


class Meter(Protocol):
    """Metrics as sums: `state` is one float64 tensor of counts that can be added over ranks."""

    headline: str
    higher_is_better: bool
    state: Tensor

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. output (B, C, *S) logits; target ids (B, *S)."""

    def result(self, state: Tensor) -> dict[str, float]:
        """The metrics that these counts mean, and `images`, how many items were counted."""

    def table(self, state: Tensor) -> dict[str, list[Any]]:
        """The per-class table, by column."""


@dataclass(frozen=True)
class Task:
    """What a track adds to the engine. dense: targets are (B, H, W) instead of (B,)."""

    classes: Sequence[str]
    metrics: Callable[[Sequence[str]], Meter]
    dense: bool

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        criteria: Mapping[str, Criterion],
        shares: Mapping[str, Tensor],
    ) -> tuple[Tensor, Parts]:
        """Forward, and a criterion for each head: the total to differentiate, its parts to log.

        With an auxiliary head: `main`, `aux`, the terms of each, those of the second as `aux/…`.
        shares: of each criterion, this batch's part in the means over a whole step.
        """
        output = model(batch.images)
        if "aux_loss" not in criteria:
            return criteria["loss"](output, batch.target, shares.get("loss"))
        main, main_parts = criteria["loss"](output[0], batch.target, shares.get("loss"))
        aux, aux_parts = criteria["aux_loss"](output[1], batch.target, shares.get("aux_loss"))
        heads = {"main": main.detach(), "aux": aux.detach()}
        named = {f"aux/{name}": value for name, value in aux_parts.items()}
        return main + aux, {**heads, **main_parts, **named}

    def meter(self) -> Meter:
        """A fresh meter."""
        return self.metrics(self.classes)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """Class probabilities (B, C, *S) of images (B, 3, H, W)."""
        return model(images).float().softmax(1)


def to_device(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """`values` on `device`. The host does not wait for the copy to a GPU: only pinned memory is
    copied so, and torch keeps it until the copy is through."""
    values = torch.as_tensor(values)
    on_gpu = device.type == "cuda"
    if on_gpu and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=on_gpu)


def wide(values: Tensor) -> Tensor:
    """float64, on the device where it has it (a Mac's GPU has not)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def exact(values: Tensor) -> Tensor:
    """`values` in float64, rounded to the fixed point, so that their sums are exact."""
    return (wide(values.detach()) / QUANTUM).round() * QUANTUM


def exact_sum(values: Tensor) -> Tensor:
    """The sum of `values` (any shape) as a float64 scalar that is the same in any order."""
    return exact(values).sum()


def tally(values: Tensor, classes: Tensor, count: int) -> Tensor:
    """The sum of `values` (N,) for each class id below `count`; float64 (count,).

    Unlike bincount it does not ask the device how many classes there are, and wait.
    """
    values = wide(values)
    sums = torch.zeros(count, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, classes.to(values.device), values)


def is_map(target: Tensor) -> bool:
    """Whether `target` is a class map (floating point) rather than class ids."""
    return target.is_floating_point()


def to_map(target: Tensor, classes: int) -> Tensor:
    """Class ids (B, *S) -> one-hot class map float32 (B, classes, *S); a map passes through."""
    if is_map(target):
        return target
    ids = torch.arange(classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
    return (target.unsqueeze(1) == ids).float()


def from_masks(masks: Tensor) -> Tensor:
    """Masks uint8 (B, H, W) as they lie in files -> class ids int64, IGNORE where they are VOID."""
    return masks.long().masked_fill_(masks == VOID, IGNORE)


def to_masks(target: Tensor) -> Tensor:
    """Both forms of a dense target -> masks uint8 (B, H, W) as they lie in files, of the largest
    share; VOID where nothing counts."""
    ids = target.argmax(1) if is_map(target) else target
    return ids.where(valid(target), VOID).to(torch.uint8)


def sampled(values: Tensor, height: int, width: int) -> Tensor:
    """(…, H, W) -> (…, height, width) by nearest neighbours, row ⌊i·H/height⌋, as OpenCV and
    torch's `interpolate` choose it; the same pixels of logits and of ids."""
    rows, columns = (
        (torch.arange(wanted, device=values.device) * side).div(wanted, rounding_mode="floor")
        for side, wanted in zip(values.shape[-2:], (height, width), strict=True)
    )
    return values[..., rows[:, None], columns]


def valid(target: Tensor) -> Tensor:
    """Which positions count; bool (B, *S) for both forms."""
    return (target != 0).any(1) if is_map(target) else target != IGNORE

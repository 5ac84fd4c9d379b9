"""The two protocols through which the engine sees a track: Task and Meter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Parts = dict[str, Tensor]
Criterion = Callable[[Tensor, Tensor], tuple[Tensor, Parts]]


@dataclass
class Batch:
    """Ready for the model. images float (B, 3, H, W); target ids (B, *S) or map (B, C, *S).

    pixels: the images before they were normalised, uint8 (B, 3, H, W), where they were asked for.
    versions: of each image, one after the other; images of the data set count once in `len`.
    """

    images: Tensor
    target: Tensor
    pixels: Tensor | None = None
    versions: int = 1

    def __len__(self) -> int:
        return len(self.target) // self.versions


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


class Task(Protocol):
    """What a track adds to the engine; three methods, and no fourth.

    dense: whether targets have a place in the image, (B, H, W) instead of (B,).
    """

    dense: bool

    def loss(
        self, model: nn.Module, batch: Batch, criteria: Mapping[str, Criterion]
    ) -> tuple[Tensor, Parts]:
        """Forward and criterion: the total to differentiate, and its named parts to log."""

    def meter(self) -> Meter:
        """A fresh meter."""

    def predict(self, model: nn.Module, images: Tensor) -> Any:
        """What the model says of images (B, 3, H, W)."""

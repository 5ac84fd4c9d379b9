"""What the engine needs to know of segmentation: a loss, a meter, a prediction."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..core.registry import tasks
from ..core.task import Batch, Criterion, Parts
from .metrics import Overlap


class Segmentation:
    """Task: a class for every pixel, by a main head and perhaps an auxiliary one."""

    dense = True

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)

    def loss(
        self, model: nn.Module, batch: Batch, criteria: Mapping[str, Criterion]
    ) -> tuple[Tensor, Parts]:
        """Forward, and a criterion for each head. images (B, 3, H, W); target ids (B, H, W) or
        class map (B, C, H, W). With an auxiliary head the parts are `main`, `aux`, and the terms of
        each, those of the second as `aux/…`."""
        output = model(batch.images)
        if "aux_loss" not in criteria:
            return criteria["loss"](output, batch.target)
        main, main_parts = criteria["loss"](output[0], batch.target)
        aux, aux_parts = criteria["aux_loss"](output[1], batch.target)
        heads = {"main": main.detach(), "aux": aux.detach()}
        named = {f"aux/{name}": value for name, value in aux_parts.items()}
        return main + aux, {**heads, **main_parts, **named}

    def meter(self) -> Overlap:
        """A fresh meter."""
        return Overlap(self.classes)

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """Class probabilities (B, C, H, W) of images (B, 3, H, W)."""
        return model(images).float().softmax(1)


@tasks.register
def segmentation(classes: Sequence[str]) -> Segmentation:
    """A class for every pixel: mean IoU over the data set, per class, along boundaries."""
    return Segmentation(classes)

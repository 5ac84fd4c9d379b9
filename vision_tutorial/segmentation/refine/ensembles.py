"""Several runs, one answer: the mean of their probabilities, or the majority of their masks."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...core.errors import UserError
from .maps import checked


def soft_vote(probabilities: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The mean of probabilities (C, H, W), one map a run; weights: what each run counts.

    Returns float32 (C, H, W). UserError if there are no runs, if their shapes or the number of
    weights differ, or if no weight is above 0.
    """
    maps = [checked(values) for values in probabilities]
    _same_shape([tuple(values.shape) for values in maps])
    weights = [1.0] * len(maps) if weights is None else weights
    if len(weights) != len(maps) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(
            f"weights {list(weights)} for {len(maps)} runs; give each a number from 0 up, "
            "and one of them more than 0."
        )
    return sum(w / sum(weights) * values for w, values in zip(weights, maps, strict=True))


def hard_vote(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The majority of masks of class ids (H, W), one a run, the best run first.

    Of the classes with the most votes at a pixel, the one for which the earliest run voted. An
    ignored pixel (255) is a vote like any other. UserError if there are no masks or sizes differ.
    """
    _same_shape([np.shape(mask) for mask in masks])
    ballots = np.stack(masks)
    votes = np.stack([(ballots == ballot).sum(0) for ballot in ballots])
    winner = votes.argmax(0)  # the first run of those whose class has the most votes
    return np.take_along_axis(ballots, winner[np.newaxis], 0)[0]


def _same_shape(shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) != 1:
        raise UserError(
            f"an ensemble of {len(shapes)} runs with the shapes {sorted(set(shapes))}; give at "
            "least one, all with the same classes and of one size (resize them first)."
        )

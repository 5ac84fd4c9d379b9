"""Several looks at an image, or several networks: each way is a forward function made of others.

All average probabilities and return their logarithm. What a network says of every pixel is turned
back before it is averaged; what it says of the image needs no turning.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError

Forward = Callable[[Tensor], Tensor]
SCALES = (0.1, 4.0)


def prediction_function(
    networks: Sequence[Forward],
    tta: str = "none",
    window: int | None = None,
    stride: int | None = None,
    ensemble: str = "soft",
) -> Forward:
    """One forward function of some networks: each through windows and looks, then together."""
    windows = [sliding_window(n, window, stride) if window else n for n in networks]
    each = [test_time_augmentation(forward, tta) for forward in windows]
    return majority_vote(each) if ensemble == "hard" else mean_probability(each)


def test_time_augmentation(forward: Forward, words: str) -> Forward:
    """`forward` seen through the looks that `words` name: `none`, or `hflip` and scales, such as
    `hflip,0.75,1.25`. The image as it is always counts as one of them.

    UserError for a word that is neither.
    """
    mirrored, scales = parse_tta(words)
    pairs = list(product(scales, (False, True) if mirrored else (False,)))
    if pairs == [(1.0, False)]:
        return forward
    return mean_probability([_transformed(forward, *pair) for pair in pairs])


def parse_tta(words: str) -> tuple[bool, list[float]]:
    """Whether to mirror, and the scales, 1 among them."""
    mirrored, scales = False, [1.0]
    for word in [] if words == "none" else words.split(","):
        if word == "hflip":
            mirrored = True
            continue
        try:
            scale = float(word)
        except ValueError:
            scale = math.nan
        if not SCALES[0] <= scale <= SCALES[1]:
            raise UserError(
                f"--tta: '{word}' is no look; write none, hflip, or scales from {SCALES[0]:g} to "
                f"{SCALES[1]:g}, such as hflip,0.75,1.25."
            )
        scales.append(scale)
    return mirrored, sorted(set(scales))


def _transformed(forward: Forward, scale: float, mirrored: bool) -> Forward:

    def look(images: Tensor) -> Tensor:
        size = images.shape[-2:]
        if scale != 1:
            smaller = [max(1, round(scale * side)) for side in size]
            images = F.interpolate(images, smaller, mode="bilinear", align_corners=False)
        output = forward(images.flip(-1) if mirrored else images)
        if output.dim() == 2:
            return output
        output = output.flip(-1) if mirrored else output
        if scale == 1:
            return output
        return F.interpolate(output.float(), size, mode="bilinear", align_corners=False)

    return look


def mean_probability(forwards: Sequence[Forward]) -> Forward:
    """The logarithm of the mean probability: a soft ensemble."""
    if len(forwards) == 1:
        return forwards[0]

    def mean(images: Tensor) -> Tensor:
        total = forwards[0](images).float().log_softmax(1)
        for forward in forwards[1:]:  # one at a time: memory for two of them
            total = torch.logaddexp(total, forward(images).float().log_softmax(1))
        return total - math.log(len(forwards))

    return mean


def majority_vote(forwards: Sequence[Forward]) -> Forward:
    """Each gives its class one vote: a hard ensemble. The returned scores are the votes; among
    classes with the most, the one that the earliest voted for is a fraction ahead."""

    def count(images: Tensor) -> Tensor:
        votes: Tensor | None = None
        for place, forward in enumerate(forwards):
            output = forward(images)
            votes = torch.zeros_like(output, dtype=torch.float32) if votes is None else votes
            # a half, a quarter, …: later voters together never outweigh an earlier one
            vote = votes.new_full((), 1 + 0.5 ** (place + 2))
            chosen = output.argmax(1, keepdim=True)
            votes.scatter_add_(1, chosen, vote.expand_as(chosen))
        return votes

    return count


def sliding_window(forward: Forward, size: int, stride: int | None = None) -> Forward:
    """`forward` of windows of size x size pixels, `stride` apart (two thirds of a window), whose
    probabilities are averaged where they overlap; for networks that answer for every pixel.

    An image smaller than a window is seen whole. UserError for a stride that leaves gaps.
    """
    step = stride or max(1, 2 * size // 3)
    if step > size:
        raise UserError(
            f"--stride: {step} leaves gaps between windows of {size}; use {size} at most."
        )

    def slide(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        total, times = None, images.new_zeros(1, 1, height, width)
        for top, left in product(starts(height, size, step), starts(width, size, step)):
            part = (..., slice(top, top + size), slice(left, left + size))
            said = forward(images[part]).float().softmax(1)
            if total is None:
                total = said.new_zeros(*said.shape[:2], height, width)
            total[part] += said
            times[part] += 1
        return (total / times).log()

    return slide


def starts(length: int, size: int, step: int) -> list[int]:
    """Where windows begin so that they cover `length`; the last one ends with it."""
    last = max(length - size, 0)
    return [*range(0, last, step), last]

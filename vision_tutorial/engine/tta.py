"""Several looks at an image, or several networks: each way is a forward function made of others.

All average probabilities, those of pixels turned back, and return their logarithm.
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
    """One forward function of some networks: each through windows and looks, then together.

    tta: `none`, or `hflip` and scales, such as `hflip,0.75,1.25`; the image as it is always counts
    as one of the looks. window, stride: of `sliding_window`. ensemble: the mean probability
    ("soft") or a vote ("hard"). UserError for a word that is no look.
    """
    looks = parse_tta(tta)
    each = []
    for network in networks:
        forward = sliding_window(network, window, stride) if window else network
        each.append(mean_probability([_transformed(forward, *look) for look in looks]))
    return majority_vote(each) if ensemble == "hard" else mean_probability(each)


def parse_tta(words: str) -> list[tuple[float, bool]]:
    """The looks, as pairs (scale, whether mirrored)."""
    given = set() if words == "none" else set(words.split(","))
    scales = {1.0}
    for word in given - {"hflip"}:
        try:
            scales.add(float(word))
        except ValueError:
            scales.add(math.nan)
        if not all(SCALES[0] <= scale <= SCALES[1] for scale in scales):
            raise UserError(
                f"--tta: '{word}' is no look; write none, hflip, or scales from {SCALES[0]:g} to "
                f"{SCALES[1]:g}, such as hflip,0.75,1.25."
            )
    return list(product(sorted(scales), (False, True) if "hflip" in given else (False,)))


def _transformed(forward: Forward, scale: float, mirrored: bool) -> Forward:
    def look(images: Tensor) -> Tensor:
        size = images.shape[-2:]
        if scale != 1:
            images = _resized(images, [max(1, round(scale * side)) for side in size])
        output = forward(images.flip(-1) if mirrored else images)
        if output.dim() == 2:
            return output
        output = output.flip(-1) if mirrored else output
        return output if scale == 1 else _resized(output.float(), size)

    return look if scale != 1 or mirrored else forward


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


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
        votes: Tensor | float = 0.0
        for place, forward in enumerate(forwards):
            output = forward(images)
            # a half, a quarter, …: later voters together never outweigh an earlier one
            vote = torch.full_like(output, 1 + 0.5 ** (place + 2), dtype=torch.float32)
            votes = torch.zeros_like(vote).scatter_(1, output.argmax(1, keepdim=True), vote) + votes
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

    def starts(length: int) -> list[int]:
        last = max(length - size, 0)
        return [*range(0, last, step), last]

    def slide(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        total, times = None, images.new_zeros(1, 1, height, width)
        for top, left in product(starts(height), starts(width)):
            part = (..., slice(top, top + size), slice(left, left + size))
            said = forward(images[part]).float().softmax(1)
            if total is None:
                total = said.new_zeros(*said.shape[:2], height, width)
            total[part] += said
            times[part] += 1
        return (total / times).log()

    return slide

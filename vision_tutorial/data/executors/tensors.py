"""Carry out slots on whole batches with torch: any device, to the bits of Pillow 13 on x86-64.

Jobs are made on the host, from the numbers of the slots alone, and travel to the device in one
copy; nothing here waits for the device. Only the images that ask for an operation pay for it.

Two rules keep the bits. Where rounding shows, each float operation is a step of its own (a fused
multiply-add would round once), and tensors are divided by tensors or powers of two (by any other
number CUDA multiplies with its rounded reciprocal). All else is exact, in any order of adding.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.task import to_device
from ..augmentation.operation import BatchedOp, Filter, Op

WEIGHT_ONE = 2.0**22  # a weight of 1, in the units that Pillow's resize rounds weights to
FIXED_ONE = 2.0**16  # one pixel, in the units of Pillow's nearest affine transform


class Job(NamedTuple):
    """One operation on the images `rows` (n,): run(images (n, 3, H, W), *cargo on the device).

    cargo: arrays whose bytes are a multiple of 8, so that they can share one buffer.
    """

    run: Callable[..., Tensor]
    rows: np.ndarray
    cargo: tuple[np.ndarray, ...] = ()


def apply(images: Tensor, slots: Sequence[BatchedOp]) -> Tensor:
    """Carry out `slots` in order. images uint8 (B, 3, H, W) -> uint8 (B, 3, h, w), same device.

    `images` are never written to, but are themselves the result where there is nothing to do.
    """
    if not len(images):
        size = slots[-1].size if slots else images.shape[2:]
        return images.new_empty(*images.shape[:2], *size)
    plans: list[list[Job]] = [[] for _ in slots]
    for slot, jobs in zip(slots, plans, strict=True):
        for ops, planner in PLANNERS.items():
            rows = np.flatnonzero(np.isin(slot.codes, ops))
            if rows.size:
                jobs += planner(slot, rows)
        touched = np.concatenate([np.empty(0, np.int64), *(job.rows for job in jobs)])
        if jobs and len(touched) < len(images):
            jobs.append(Job(lambda some: some, np.setdiff1d(np.arange(len(images)), touched)))
    plans = [jobs for jobs in plans if jobs]
    arrays = []
    for jobs in plans:
        arrays.append(np.argsort(np.concatenate([job.rows for job in jobs])))
        arrays += [array for job in jobs for array in (job.rows, *job.cargo)]
    sent = iter(_sent(arrays, images.device) if arrays else ())
    for jobs in plans:
        images = _carried_out(images, jobs, sent)
    return images


def _sent(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on `device`, after one copy that the host does not wait for."""
    sizes = [array.nbytes for array in arrays]
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    pieces = to_device(np.concatenate(parts), device).split(sizes)
    return [
        piece.view(getattr(torch, array.dtype.name)).view(array.shape)
        for piece, array in zip(pieces, arrays, strict=True)
    ]


def _carried_out(images: Tensor, jobs: Sequence[Job], sent: Iterator[Tensor]) -> Tensor:
    """One slot's jobs on images (B, 3, H, W), each image in one of them: (B, 3, h, w).

    sent: the place (B,) of each image in the jobs' results, one behind the other, then what each
    job has. (To write the results to their rows would be a sort, where algorithms have to be
    deterministic.)
    """
    places = next(sent)
    made = []
    for job in jobs:
        rows, *numbers = islice(sent, 1 + len(job.cargo))
        some = images if len(jobs) == 1 else images.index_select(0, rows)
        made.append(job.run(some, *numbers))
    return made[0] if len(jobs) == 1 else torch.cat(made).index_select(0, places)


# -- crop and resize -------------------------------------------------------------------------------


def _plan_resample(slot: BatchedOp, rows: np.ndarray) -> list[Job]:
    """Nearest by tables; the two smooth filters side by side in one job of matrix products."""
    start, extent, kind = slot.args[rows, :2], slot.args[rows, 2:4], slot.args[rows, 4]
    scale, nearest = extent / slot.size, kind == Filter.NEAREST
    # As Pillow 13 has it: height first where it loses over twice as many pixels as width does.
    fewer = extent - slot.size
    tall = (fewer[:, 0] > 0) & (fewer[:, 0] > 2 * fewer[:, 1])
    jobs = []
    for height_first, chosen in ((False, ~nearest & ~tall), (True, ~nearest & tall)):
        if chosen.any():
            stretch = np.maximum(scale[chosen], 1.0)
            support = kind[chosen, None] * stretch  # a Filter's number is its reach in pixels
            cubic = np.broadcast_to(kind[chosen, None] == Filter.BICUBIC, stretch.shape)
            axes = (start[chosen], extent[chosen], scale[chosen], support, 1.0 / stretch, cubic)
            taps = 2 * int(np.ceil(support.max())) + 1
            run = partial(_resampled, size=slot.size, taps=taps, height_first=height_first)
            jobs.append(Job(run, rows[chosen], (np.stack(axes, 1),)))
    if nearest.any():
        down, across = (
            start[nearest, axis, None] + np.floor(_positions(0.0, scale[nearest, axis], length))
            for axis, length in enumerate(slot.size)
        )
        jobs.append(_move(slot, rows[nearest], down, across))
    return jobs


def _resampled(
    images: Tensor, axes: Tensor, *, size: tuple[int, int], taps: int, height_first: bool
) -> Tensor:
    """Crops of images (n, 3, H, W) resized to `size`, antialiased; axes, taps: see `_weights`."""
    count, _, height, width = images.shape
    both = _weights(axes, max(size), max(height, width), taps)
    rows, columns = both[:, 0, : size[0], :height], both[:, 1, : size[1], :width].mT
    # (n, H, 3, W) serves both passes: the products before and after it are views.
    canvas = images.permute(0, 2, 1, 3).to(torch.float64, memory_format=torch.contiguous_format)
    for vertical in (height_first, not height_first):
        if vertical:
            sums = rows @ canvas.view(count, height, -1)
        else:
            sums = canvas.view(count, -1, width) @ columns
        canvas = sums.add_(0.5).clamp_(0, 255).floor_()
    canvas = canvas.view(count, size[0], 3, size[1]).permute(0, 2, 1, 3)
    return canvas.to(torch.uint8, memory_format=torch.contiguous_format)


def _weights(axes: Tensor, out: int, length: int, taps: int) -> Tensor:
    """How much each of `length` pixels gives to each of `out` results, float64 (n, 2, out, length).

    axes float64 (n, 6, 2), of height and width: start and extent of the crop, pixels a result,
    reach of the filter, by what it is shrunk, whether it is cubic. taps: the most pixels that any
    result takes. Weights are multiples of 2^-22, so that sums of weighted grey levels are exact.
    What an axis has fewer of than `out` and `length` is beyond its end, and means nothing.
    """
    start, extent, scale, support, shrink, cubic = axes[..., None].unbind(1)
    ramp = torch.arange(max(out, taps), dtype=torch.float64, device=axes.device)
    centre = (ramp[:out] + 0.5) * scale
    first = (centre - support + 0.5).trunc().clamp_(min=0)
    end = torch.minimum((centre + support + 0.5).trunc(), extent)
    pixel = first[..., None] + ramp[:taps]  # (n, 2, out, taps)
    d = ((pixel - centre[..., None] + 0.5) * shrink[..., None]).abs()
    near = (1.5 * d - 2.5) * d * d + 1  # Keys' cubic with a = -0.5
    far = (((d - 5) * d + 8) * d - 4) * -0.5
    bicubic = torch.where(d < 1, near, torch.where(d < 2, far, 0))
    value = torch.where(cubic[..., None] > 0, bicubic, (1 - d).clamp_(min=0))
    value = torch.where(pixel < end[..., None], value, 0)
    total = value[..., 0]
    for k in range(1, taps):  # in Pillow's order: here the rounding shows
        total = total + value[..., k]
    value = value / total[..., None] * WEIGHT_ONE
    value = (value + torch.copysign(torch.full_like(value, 0.5), value)).trunc() / WEIGHT_ONE
    # Taps beyond the end weigh nothing; they find their place behind the last pixel.
    place = (pixel + start[..., None]).clamp_(max=length + taps - 1).long()
    dense = value.new_zeros(*value.shape[:3], length + taps)
    return dense.scatter_(3, place, value)[..., :length]


# -- windows and affine maps -----------------------------------------------------------------------


def _plan_window(slot: BatchedOp, rows: np.ndarray) -> list[Job]:
    """A window of the padded image, by tables."""
    top, left = slot.args[rows, :2].T[..., None].astype(np.int64)
    down, across = top + np.arange(slot.size[0]), left + np.arange(slot.size[1])
    return [_move(slot, rows, slot.rows[down], slot.columns[across])]


def _plan_affine(slot: BatchedOp, rows: np.ndarray) -> list[Job]:
    """One job for each filter; nearest by tables where nothing is turned or sheared."""
    # Pillow leaves fixed point for positions beyond 32768 pixels; no augmentation goes there.
    matrix, kind = slot.args[rows, :6].reshape(-1, 2, 3), slot.args[rows, 6]
    nearest = kind == Filter.NEAREST
    straight = nearest & (matrix[:, 0, 1] == 0) & (matrix[:, 1, 0] == 0)
    jobs = []
    for chosen, run in (
        (kind == Filter.BILINEAR, partial(_affine_smooth, reach=(0, 1), blend=_linear_blend)),
        (kind == Filter.BICUBIC, partial(_affine_smooth, reach=(-1, 0, 1, 2), blend=_cubic_blend)),
        (nearest & ~straight, _affine_fixed),
    ):
        if chosen.any():
            jobs.append(Job(run, rows[chosen], (matrix[chosen], _colour(slot))))
    if straight.any():
        (a, _, c), (_, e, f) = matrix[straight].transpose(1, 2, 0)
        down, across = _positions(f, e, slot.size[0]), _positions(c, a, slot.size[1])
        jobs.append(_move(slot, rows[straight], down, across))
    return jobs


def _positions(start: np.ndarray | float, step: np.ndarray, count: int) -> np.ndarray:
    """Where `count` pixel centres come from, float64 (n, count); start and step (n,).

    As in Pillow, one step after the other is added, and rounding errors with it.
    """
    terms = np.repeat(step[:, None], count, axis=1)
    terms[:, 0] = start + step * 0.5
    return np.add.accumulate(terms, axis=1)


def _move(slot: BatchedOp, rows: np.ndarray, down: np.ndarray, across: np.ndarray) -> Job:
    """Fetch pixels from rows `down` (n, h), columns `across` (n, w), or slot.fill from outside."""
    # Clipped, since no whole number can hold the positions of a wild matrix.
    down, across = (np.floor(table.clip(-1, 2**31)).astype(np.int64) for table in (down, across))
    return Job(_moved, rows, (down[:, None, :, None], across[:, None, None], _colour(slot)))


def _colour(slot: BatchedOp) -> np.ndarray:
    return np.array(slot.fill, np.int64).reshape(1, 3, 1, 1)


def _moved(images: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    """images (n, C, H, W) at int64 rows (n, 1, h, 1 or w) and columns (n, 1, 1 or h, w).

    -> (n, C, h, w); fill (1, 3, 1, 1) where the image has no such row or column. C is 3 or 1.
    """
    channels, height, width = images.shape[1:]
    image = torch.arange(len(images), device=rows.device)[:, None, None, None]
    channel = torch.arange(channels, device=rows.device)[:, None, None]
    row, column = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    inside, fill = (row == rows) & (column == columns), fill[:, :channels].to(torch.uint8)
    return torch.where(inside, images[image, channel, row, column], fill)


def _affine_fixed(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Nearest pixels of images (n, 3, H, W) in 16.16 fixed point; arguments: `_affine_smooth`."""
    y, x = (torch.arange(length, device=matrix.device) for length in images.shape[-2:])
    a, b, c = matrix[..., None, None].unbind(2)
    a, b, c = ((n * FIXED_ONE + 0.5).floor().long() for n in (a, b, c + a * 0.5 + b * 0.5))
    columns, rows = ((c + b * y[:, None] + a * x) >> 16).split(1, 1)
    return _moved(images, rows, columns, fill)


def _affine_smooth(
    images: Tensor, matrix: Tensor, fill: Tensor, *, reach: Sequence[int], blend: Callable
) -> Tensor:
    """Images (n, 3, H, W) under matrix float64 (n, 2, 3); fill (1, 3, 1, 1) lies around them.

    reach: which pixels around a position are blended, counted from the one before it.
    """
    height, width = images.shape[-2:]
    ramp = torch.arange(max(height, width), dtype=torch.float64, device=matrix.device) + 0.5
    a, b, c = matrix[..., None, None].unbind(2)
    x, y = (a * ramp[:width] + b * ramp[:height, None] + c).unbind(1)  # (n, H, W) each
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    (rows, down), (columns, across) = (
        _taps_around(position, reach, length) for position, length in ((y, height), (x, width))
    )
    index = rows[:, :, None] * width + columns[:, None]  # (n, taps down, taps across, H, W)
    found = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, 3, -1))
    found = found.view(-1, 3, *index.shape[1:])
    lines = blend([tap.double() for tap in found.unbind(3)], across[:, None, None])
    result = blend(lines.unbind(2), down[:, None]).clamp_(0, 255)
    return torch.where(inside[:, None], result.to(torch.uint8), fill.to(torch.uint8))


def _taps_around(position: Tensor, reach: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """Pixels at `reach` from the one before each position float64 (n, H, W), and its distance.

    -> int64 (n, T, H, W), moved to the edge where they are outside 0 .. length - 1; (n, H, W).
    """
    position = position - 0.5
    low = position.floor()
    taps = torch.stack([low + step for step in reach], 1).clamp_(0, length - 1)
    return taps.long(), position - low


def _linear_blend(taps: Sequence[Tensor], share: Tensor) -> Tensor:
    """Between two neighbours; share in [0, 1), all of them float64."""
    first, second = taps
    return first + (second - first) * share


def _cubic_blend(taps: Sequence[Tensor], share: Tensor) -> Tensor:
    """Between the middle two of four neighbours; share in [0, 1), all of them float64."""
    before, first, second, after = taps
    p1 = second - before
    p2 = 2 * (before - first) + second - after
    p3 = first - before - second + after
    return first + share * (p1 + share * (p2 + share * p3))


# -- colours ---------------------------------------------------------------------------------------

VALUES = np.arange(256.0)
KNOWN_TABLES = {  # arguments (n, 1) -> what each value becomes, (n, 256) below 256; in `Op`'s order
    Op.POSTERIZE: lambda bits, _: VALUES - VALUES % 2.0 ** (8 - bits.clip(0, 8)),
    Op.SOLARIZE: lambda threshold, _: np.where(VALUES < threshold, VALUES, 255 - VALUES),
    Op.SOLARIZE_ADD: lambda add, _: np.where(VALUES < 128, (VALUES + add).clip(0, 255), VALUES),
    Op.BRIGHTNESS: lambda f, _: (np.float32(f) * np.float32(VALUES)).clip(0, 255),
    Op.LINEAR: lambda f, shift: np.floor(f * VALUES + shift + 0.5).clip(0, 255),
}


def _plan_tables(slot: BatchedOp, rows: np.ndarray) -> list[Job]:
    """One job for all: tables of known numbers come along, the others are made on the device."""
    rows = rows[np.argsort(slot.codes[rows], kind="stable")]  # by op, in the order of `Op`
    codes, (numbers, shifts) = slot.codes[rows], slot.args[rows, :2].T[..., None]
    known = [table(numbers[codes == op], shifts[codes == op]) for op, table in KNOWN_TABLES.items()]
    counts = [np.count_nonzero(codes == op) for op in (Op.CONTRAST, Op.AUTOCONTRAST, Op.EQUALIZE)]
    cargo = (np.concatenate(known).astype(np.uint8), numbers[codes == Op.CONTRAST])
    return [Job(partial(_tabulated, counts=counts), rows, cargo)]


def _tabulated(images: Tensor, known: Tensor, factors: Tensor, *, counts: Sequence[int]) -> Tensor:
    """images (n, 3, H, W), each through its own three tables.

    The first have tables `known`, uint8 (k, 256); then come counts[0] images to contrast by
    `factors` (counts[0], 1), counts[1] to autocontrast and counts[2] to equalize.
    """
    values = images.flatten(2).long()
    _, *others = values.split([len(known), *counts])
    makers = partial(_contrast_tables, factors=factors), _autocontrast_tables, _equalize_tables
    tables = [known[:, None].expand(-1, 3, -1)]
    tables += [make(some) for make, some in zip(makers, others, strict=True) if len(some)]
    return torch.cat(tables).gather(2, values).view_as(images)


def _contrast_tables(values: Tensor, factors: Tensor) -> Tensor:
    """Away from the mean grey by factors float64 (n, 1). values int64 (n, 3, N) -> (n, 3, 256)."""
    pixels = values.shape[2]
    total = _luma(values.float()).sum(2, dtype=torch.float64).long()
    mean = torch.div(2 * total + pixels, 2 * pixels, rounding_mode="floor")  # half goes up
    ramp = torch.arange(256, dtype=torch.float32, device=values.device)
    return _blended(mean[..., None].float(), ramp, factors).expand(-1, 3, -1)


def _autocontrast_tables(values: Tensor) -> Tensor:
    """From each channel's darkest to brightest. values int64 (n, 3, N) -> uint8 (n, 3, 256)."""
    low, high = values.amin(2, keepdim=True).double(), values.amax(2, keepdim=True).double()
    ramp = torch.arange(256, dtype=torch.float64, device=values.device)
    scale = torch.full_like(low, 255) / (high - low)
    stretched = (ramp * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, ramp).to(torch.uint8)


def _equalize_tables(values: Tensor) -> Tensor:
    """Each channel's values spread evenly. values int64 (n, 3, N) -> uint8 (n, 3, 256)."""
    counts = values.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, counts.new_ones(1).expand_as(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    # Zero where there is but one value, or too few pixels: such a channel stays as it is.
    step = torch.div(values.shape[2] - brightest, 255, rounding_mode="floor")
    before = counts.cumsum(2) - counts + torch.div(step, 2, rounding_mode="floor")
    spread = torch.div(before, step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    ramp = torch.arange(256, device=values.device)
    return torch.where(step > 0, spread, ramp).to(torch.uint8)


def _colored(images: Tensor, factors: Tensor) -> Tensor:
    """images (n, 3, H, W) away from their grey by factors float64 (n, 1)."""
    images = images.float()
    return _blended(_luma(images), images, factors)


def _sharpened(images: Tensor, factors: Tensor) -> Tensor:
    """images (n, 3, H, W) away from their smoothed selves by factors float64 (n, 1)."""
    smooth = images.float()
    images = smooth.clone()
    lines = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    sums = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * images[..., 1:-1, 1:-1]
    # Half a grey level is never a whole number of 13ths, so no rounding of floats shows here.
    smooth[..., 1:-1, 1:-1] = ((sums + 6.5) / 13).floor_()  # the outermost pixels stay
    return _blended(smooth, images, factors)


def _luma(values: Tensor) -> Tensor:
    """Grey of float32 (n, 3, *S) as (n, 1, *S); every number is below 2^24, so all is exact."""
    red, green, blue = values.split(1, 1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor_()


def _blended(plain: Tensor, full: Tensor, factors: Tensor) -> Tensor:
    """plain + factors (full - plain), clipped and cut to uint8; in float32, as Pillow blends."""
    factors = factors.float().view(-1, *[1] * (plain.dim() - 1))
    return (plain + factors * (full - plain)).clamp_(0, 255).to(torch.uint8)


PLANNERS = {
    (Op.RESAMPLE,): _plan_resample,
    (Op.WINDOW,): _plan_window,
    (Op.HFLIP,): lambda slot, rows: [Job(partial(torch.flip, dims=(3,)), rows)],
    (Op.VFLIP,): lambda slot, rows: [Job(partial(torch.flip, dims=(2,)), rows)],
    (Op.AFFINE,): _plan_affine,
    (*KNOWN_TABLES, Op.CONTRAST, Op.AUTOCONTRAST, Op.EQUALIZE): _plan_tables,
    (Op.COLOR,): lambda slot, rows: [Job(_colored, rows, (slot.args[rows, :1],))],
    (Op.SHARPNESS,): lambda slot, rows: [Job(_sharpened, rows, (slot.args[rows, :1],))],
}

"""Gaussian filters of many dimensions in linear time, on the permutohedral lattice.

Adams, Baek, Davis 2010, "Fast high-dimensional filtering using the permutohedral lattice". Points
give their values to the vertices of the simplex around them (splat), neighbouring vertices are
blurred along every axis (½, 1, ½), and the points read the result back (slice). All three are
products with sparse matrices, for which torch's `embedding_bag` is fast and knows every device.
"""

from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError


class _Sparse(NamedTuple):
    """A matrix by rows. columns int32 and entries float32, both (rows, n); or both (K,), with
    starts int32 (rows,), where rows differ in length."""

    columns: Tensor
    entries: Tensor
    starts: Tensor | None = None

    def times(self, values: Tensor) -> Tensor:
        """The product with values float32 (columns, C): float32 (rows, C)."""
        return F.embedding_bag(
            self.columns, values, self.starts, mode="sum", per_sample_weights=self.entries
        )


@dataclass(frozen=True)
class _Lattice:
    """The filter K over N points, through V vertices: slice · blurs · splat."""

    splat: _Sparse  # (V, N)
    blurs: tuple[_Sparse, ...]  # (V, V), one for each of the d + 1 axes
    slice: _Sparse  # (N, V)

    def filter(self, values: Tensor) -> Tensor:
        """Σ_j k(f_i, f_j) values_j, times a constant. values float32 (N, C) -> (N, C)."""
        values = self.splat.times(values)
        for blur in self.blurs:
            values = blur.times(values)
        return self.slice.times(values)

    def normalized(self, weight: float) -> "_Lattice":
        """weight · D^-½ K D^-½ where D holds the row sums of K; the constant drops out."""
        ones = torch.ones_like(self.slice.entries[:, :1])
        scale = self.filter(ones).rsqrt()
        given = self.splat.entries * scale.squeeze(1)[self.splat.columns]
        taken = self.slice.entries * (weight * scale)
        return _Lattice(
            self.splat._replace(entries=given), self.blurs, self.slice._replace(entries=taken)
        )


def lattice(features: Tensor) -> _Lattice:
    """The filter with k(f, g) ≈ exp(-|f - g|² / 2) over the points float32 (d, N), where 1 is a
    standard deviation. UserError if they lie too far apart for the vertices to be numbered.
    """
    d = len(features)
    height = _embedded(features)
    radix = _radix(height)
    corner, rank, offsets = _enclosing(height)
    # Vertex k is the corner plus k on every axis, less d + 1 on the k axes of the highest ranks.
    by_rank = torch.zeros_like(rank).scatter_(0, rank, radix.expand_as(rank))
    back = by_rank.flip(0).cumsum(0).roll(1, 0)
    back[0] = 0
    k = torch.arange(d + 1, device=features.device).unsqueeze(1)
    keys = (d + 1) * ((corner * radix).sum(0) - back) + k * radix.sum()
    # Its share is how far the axis of rank d - k lies ahead of the next (barycentric coordinates).
    sorted_offsets = torch.empty_like(offsets).scatter_(0, rank, offsets)
    shares = (sorted_offsets - sorted_offsets.roll(-1, 0)).flip(0)
    shares[0] += 1
    return _assembled(keys, shares, radix)


def _embedded(features: Tensor) -> Tensor:
    """Points (d, N) in the plane of d + 1 coordinates with sum 0; 1 is the period of the lattice.

    Scaled so that splat, blur and slice together have the variance of a Gaussian of 1.
    """
    height, above = [], torch.zeros_like(features[0])
    for j in range(len(features), 0, -1):
        scaled = features[j - 1] * (sqrt(2 / 3) / sqrt(j * (j + 1)))
        height.append(above - j * scaled)
        above = above + scaled
    return torch.stack([above, *reversed(height)])


def _radix(height: Tensor) -> Tensor:
    """int64 (d + 1, 1): Σ coordinate · radix is another number for each vertex and neighbour.

    The last coordinate follows from the others, so its radix is 0. UserError if they are too many.
    """
    d = len(height) - 1
    low, high = height.amin(1).tolist(), height.amax(1).tolist()
    # Vertices lie up to d from a corner, their neighbours d further, and a corner 1 from its point.
    spans = [(d + 1) * (b - a + 2) + 4 * d + 1 for a, b in zip(low, high, strict=True)]
    # As far as float32 tells apart hundredths (NaN is not), and int64 the products.
    if not (max(map(abs, low + high)) < 2**16 and prod(spans[:d]) < 2**62):
        raise UserError(
            "the standard deviations of the Gaussian are too small for an image of this size and "
            "these colours: the lattice between its pixels is too fine. Give larger ones."
        )
    radix = [prod(ceil(span) for span in spans[:j]) for j in range(d)]
    return torch.tensor([*radix, 0], device=height.device).unsqueeze(1)


def _enclosing(height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point: corner and rank int64, offsets float32, all (d + 1, N).

    corner, in periods, is the vertex whose coordinates are all multiples of d + 1; offsets lead
    from it to the point; rank is their order, the largest first.
    """
    d = len(height) - 1
    nearest = height.round()
    offsets = height - nearest
    corner = nearest.long()
    rank = torch.zeros_like(corner)
    for i in range(d):
        for j in range(i + 1, d + 1):
            behind = offsets[i] < offsets[j]
            rank[i] += behind
            rank[j] += ~behind
    # Rounding may have left the plane: as many axes as the sum is off go one period back or on.
    rank += corner.sum(0)
    step = (rank < 0).long() - (rank > d).long()
    return corner + step, rank + (d + 1) * step, offsets - step


def _assembled(keys: Tensor, shares: Tensor, radix: Tensor) -> _Lattice:
    """The matrices, from the keys int64 of every point's vertices and its shares, (d + 1, N)."""
    corners, n = keys.shape
    ordered, order = keys.flatten().sort(stable=True)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    starts = first.nonzero().squeeze(1)
    numbers = torch.empty_like(order).scatter_(0, order, first.cumsum(0) - 1)
    vertices = ordered[starts]
    steps = [int(radix.sum() - corners * r) for r in radix]
    return _Lattice(
        splat=_Sparse((order % n).int(), shares.flatten()[order], starts.int()),
        blurs=tuple(_blur(vertices, step) for step in steps),
        slice=_Sparse(numbers.view(corners, n).T.int().contiguous(), shares.T.contiguous()),
    )


def _blur(vertices: Tensor, step: int) -> _Sparse:
    """1 for each vertex itself, ½ for those `step` before and after it, where there are such.

    vertices: ascending keys int64 (V,).
    """
    itself = torch.arange(len(vertices), device=vertices.device)
    after = torch.searchsorted(vertices, vertices + step).clamp(max=len(vertices) - 1)
    there = vertices[after] == vertices + step
    columns = itself.unsqueeze(1).repeat(1, 3)
    entries = torch.zeros_like(columns, dtype=torch.float32)
    entries[:, 0] = 1
    before, after = itself[there], after[there]
    columns[before, 1], entries[before, 1] = after, 0.5
    columns[after, 2], entries[after, 2] = before, 0.5
    return _Sparse(columns.int(), entries)

"""Dense CRF: probabilities redrawn along the edges of the image, by mean field.

Its Gaussian filters of many dimensions take linear time, on the permutohedral lattice (Adams, Baek,
Davis 2010). Points give their values to the vertices of the simplex around them (splat),
neighbouring vertices are blurred along every axis (½, 1, ½), and the points read the result back
(slice). All three are products with sparse matrices, for which torch's `embedding_bag` is fast and
knows every device.
"""

from math import ceil, prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError, check_range
from ..core.registry import refiners

_FLOOR = 1e-5  # of a probability: a class that the network rules out can still be brought back


@refiners.register
def dense_crf(
    image: np.ndarray,
    probabilities: Tensor,
    *,
    iterations: int = 10,
    gaussian_weight: float = 3.0,
    gaussian_xy: float = 1.0,
    bilateral_weight: float = 4.0,
    bilateral_xy: float = 67.0,
    bilateral_rgb: float = 3.0,
) -> Tensor:
    """Fully connected CRF with Gaussian edges (Krähenbühl & Koltun 2011, arXiv 1210.5644).

    Every pixel draws all others towards its class (Potts): with `gaussian_weight` those near by,
    with `bilateral_weight` those near by and of its colour. `_xy` and `_rgb` are standard
    deviations in pixels and in grey levels (of 255); weight 0 leaves a kernel out. The defaults
    are DeepLab v2's for ResNet-101; also common: gaussian_xy 3, bilateral_weight 10, bilateral_xy
    80, bilateral_rgb 13. Kernels are normalised symmetrically and hold the pixel itself, as in the
    authors' code.

    image uint8 RGB (H, W, 3), not normalised; probabilities (C, H, W) on any device, clipped at
    1e-5. Returns probabilities float32 (C, H, W) there. UserError if these do not fit. On a CPU,
    512x512 pixels and 12 classes take 0.26 GB of memory (measured by benchmarks/crf.py).
    """
    weights = {"gaussian_weight": gaussian_weight, "bilateral_weight": bilateral_weight}
    widths = {"gaussian_xy": gaussian_xy, "bilateral_xy": bilateral_xy}
    check_range("dense_crf", "[0, inf)", iterations=iterations, **weights)
    check_range("dense_crf", "(0, inf)", **widths, bilateral_rgb=bilateral_rgb)
    probabilities = checked(probabilities)
    image, expected = np.asarray(image), (*probabilities.shape[1:], 3)
    if image.dtype != np.uint8 or image.shape != expected:
        raise UserError(
            f"dense_crf: the image is {image.dtype}, {image.shape}; for these probabilities it "
            f"needs uint8 RGB pixels {expected}, as they were before any normalisation."
        )
    colours = torch.tensor(image, device=probabilities.device).flatten(0, 1).T.float()
    rows, columns = (torch.arange(n, device=colours.device) for n in probabilities.shape[1:])
    places = torch.cartesian_prod(rows, columns).flip(1).T  # x, y (2, H·W)
    both = torch.cat([places / bilateral_xy, colours / bilateral_rgb])
    pairs = (places / gaussian_xy, gaussian_weight), (both, bilateral_weight)
    kernels = [lattice(features).normalized(weight) for features, weight in pairs if weight]
    unary = probabilities.clamp(min=_FLOOR).log().flatten(1)
    start, found = unary.T.contiguous(), unary.softmax(0)
    for _ in range(iterations):
        rows = found.T.contiguous()
        scores = sum((kernel.filter(rows) for kernel in kernels), start)
        found = scores.T.softmax(0)  # ten times as fast as along the short rows
    return found.view_as(probabilities)


def checked(probabilities: Tensor) -> Tensor:
    """Probabilities (C, H, W), or an array of them, as float32; UserError if they are none."""
    found = torch.as_tensor(probabilities).detach()
    if found.ndim != 3 or not found.numel() or not found.is_floating_point():
        raise UserError(f"given {found.dtype} {tuple(found.shape)}; give probabilities (C, H, W).")
    low, high = found.min().item(), found.max().item()
    if not (0 <= low and high <= 1.001):  # not so for NaN either; sums of halves may exceed 1
        raise UserError(f"given {low:.4g} to {high:.4g}; take the softmax for probabilities.")
    return found.float()


# -- the lattice -----------------------------------------------------------------------------------


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


class _Lattice(NamedTuple):
    """The filter K over N points, through V vertices: slice · blurs · splat."""

    splat: _Sparse  # (V, N)
    blurs: list[_Sparse]  # (V, V), one for each of the d + 1 axes
    slice: _Sparse  # (N, V)

    def filter(self, values: Tensor) -> Tensor:
        """Σ_j k(f_i, f_j) values_j, times a constant. values float32 (N, C) -> (N, C)."""
        for matrix in (self.splat, *self.blurs, self.slice):
            values = matrix.times(values)
        return values

    def normalized(self, weight: float) -> "_Lattice":
        """weight · D^-½ K D^-½ where D holds the row sums of K; the constant drops out."""
        ones = torch.ones_like(self.slice.entries[:, :1])
        scale = self.filter(ones).rsqrt()
        given = self.splat.entries * scale.squeeze(1)[self.splat.columns]
        taken = self.slice.entries * (weight * scale)
        return self._replace(
            splat=self.splat._replace(entries=given), slice=self.slice._replace(entries=taken)
        )


def lattice(features: Tensor) -> _Lattice:
    """The filter with k(f, g) ≈ exp(-|f - g|² / 2) over the points float32 (d, N), where 1 is a
    standard deviation. UserError if they lie too far apart for the vertices to be numbered.
    """
    d, n = features.shape
    # Points in the plane of d + 1 coordinates with sum 0, where 1 is the period of the lattice;
    # scaled so that splat, blur and slice together have the variance of a Gaussian of 1.
    height, above = [], torch.zeros_like(features[0])
    for j in range(d, 0, -1):
        scaled = features[j - 1] * (sqrt(2 / 3) / sqrt(j * (j + 1)))
        height.append(above - j * scaled)
        above = above + scaled
    height = torch.stack([above, *reversed(height)])
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
    # Vertices in the order of their keys, each with the points that it serves.
    ordered, order = keys.flatten().sort(stable=True)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    starts = first.nonzero().squeeze(1)
    vertices = ordered[starts]
    numbers = torch.empty_like(order).scatter_(0, order, first.cumsum(0) - 1)
    return _Lattice(
        _Sparse((order % n).int(), shares.flatten()[order], starts.int()),
        [_blur(vertices, int(radix.sum() - (d + 1) * r)) for r in radix],
        _Sparse(numbers.view(d + 1, n).T.int().contiguous(), shares.T.contiguous()),
    )


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
        raise UserError("dense_crf: standard deviations too small for this image; enlarge them.")
    radix = [prod(ceil(span) for span in spans[:j]) for j in range(d)]
    return torch.tensor([*radix, 0], device=height.device).unsqueeze(1)


def _enclosing(height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point: corner and rank int64, offsets float32, all (d + 1, N).

    corner, in periods, is the vertex whose coordinates are all multiples of d + 1; offsets lead
    from it to the point; rank is their order, the largest first.
    """
    d = len(height) - 1
    corner = height.round().long()
    offsets = height - height.round()
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


def _blur(vertices: Tensor, step: int) -> _Sparse:
    """1 for each vertex itself, ½ for those `step` before and after it, where there are such.

    vertices: ascending keys int64 (V,).
    """
    after = torch.searchsorted(vertices, vertices + step).clamp(max=len(vertices) - 1)
    before = (vertices[after] == vertices + step).nonzero().squeeze(1)
    after = after[before]
    columns = torch.arange(len(vertices), device=vertices.device).unsqueeze(1).repeat(1, 3)
    entries = torch.zeros_like(columns, dtype=torch.float32)
    entries[:, 0] = 1
    columns[before, 1], entries[before, 1] = after, 0.5
    columns[after, 2], entries[after, 2] = before, 0.5
    return _Sparse(columns.int(), entries)

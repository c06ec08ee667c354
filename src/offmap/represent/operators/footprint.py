"""Projection matrices of pixels that are squares: exact areas for parallel rays, trapezoid footprints for fans."""

import math
import warnings
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = tuple[Tensor, Tensor]
"""A sparse matrix and its transpose, in CSR form."""


def primitive(t: Float[Tensor, "*k"], corners: Float[Tensor, "4 p"]) -> Float[Tensor, "*k"]:
    """Integral up to t of a trapezoid of height one with rising corners."""
    a, b, c, d = corners
    up, down = (b - a).clamp_min(1e-12), (d - c).clamp_min(1e-12)
    rising = 0.5 * torch.minimum((t - a).clamp_min(0), up).square() / up
    flat = torch.minimum((t - b).clamp_min(0), c - b)
    falling = 0.5 * (down - torch.minimum((d - t).clamp_min(0), down).square() / down)
    total: Tensor = rising + flat + torch.where(t > c, falling, torch.zeros_like(falling))
    return total


def projection(
    views: Iterable[tuple[Float[Tensor, "4 p"], Float[Tensor, " p"]]], pixels: int, bins: int, *, dtype: torch.dtype, device: str
) -> Matrix:
    """The matrix ``(V bins, P)`` whose entries are the integrals of footprints over the bins of a detector.

    Args:
        views: for each view, the corners of every pixel's footprint on the detector in bins (the first bin covers [0, 1]) in rising
            order, and its height.
        pixels: P.
        bins: of the detector.
    """
    rows, columns, weights = [], [], []
    count = 0
    for view, (corners, height) in enumerate(views):
        first = corners[0].floor()
        span = math.ceil(float((corners[3] - first).max()))
        edges = first + torch.arange(span + 1, dtype=torch.float64)[:, None]
        sums = primitive(edges, corners) * height
        weight, bin_ = sums[1:] - sums[:-1], edges[:-1].long()
        keep = (weight > 1e-12) & (bin_ >= 0) & (bin_ < bins)
        pixel = torch.arange(pixels).expand_as(bin_)
        rows.append(view * bins + bin_[keep])
        columns.append(pixel[keep])
        weights.append(weight[keep])
        count = view + 1
    index = torch.stack([torch.cat(rows), torch.cat(columns)])
    return _both(index, torch.cat(weights).to(dtype), (count * bins, pixels), device)


def _both(index: Tensor, values: Tensor, shape: tuple[int, int], device: str) -> Matrix:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        one = torch.sparse_coo_tensor(index, values, shape, check_invariants=False).coalesce()
        other = torch.sparse_coo_tensor(index.flip(0), values, shape[::-1], check_invariants=False).coalesce()
        return one.to_sparse_csr().to(device), other.to_sparse_csr().to(device)


def centres(height: int, width: int) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Positions of the pixels about the middle of the image, in pixels: to the right, and up."""
    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    up, right = torch.meshgrid((height - 1) / 2 - rows, columns - (width - 1) / 2, indexing="ij")
    return right.flatten(), up.flatten()

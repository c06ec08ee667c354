"""A box from its gradients and its border: Poisson blending (Perez et al., Poisson Image Editing, SIGGRAPH 2003, eq. 3)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def from_gradients(own: Float[np.ndarray, "*s"], slopes: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "*s"]:
    """The rectangle or cuboid with the border of ``own`` whose inside has gradients as near as can be to those that are given.

    Solved exactly: sine transforms diagonalise the Laplacian of next neighbours with fixed borders.

    Args:
        own: gives the outermost pixels; 3 or more along each axis.
        slopes: for each axis, the differences of pixels that follow each other along it, one fewer than ``own`` has there.
    """
    from scipy import fft

    axes = range(own.ndim)
    inner = tuple(slice(1, -1) for _ in axes)
    load = np.zeros([n - 2 for n in own.shape])
    for axis, slope in enumerate(slopes):
        load -= np.diff(slope, axis=axis)[_but(inner, axis, slice(None))]
    for axis in axes:
        for end in (0, -1):
            load[_but((slice(None),) * own.ndim, axis, end)] += own[_but(inner, axis, end)]
    total = np.zeros(load.shape)
    for axis, n in enumerate(load.shape):
        line = 2.0 - 2.0 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))
        total += line.reshape([-1 if i == axis else 1 for i in axes])
    result = own.astype(np.float64)
    result[inner] = fft.idstn(fft.dstn(load, type=1) / total, type=1)
    return result


def _but(index: tuple[slice, ...], axis: int, own: slice | int) -> tuple[slice | int, ...]:
    """The index with another entry for one axis."""
    return (*index[:axis], own, *index[axis + 1 :])

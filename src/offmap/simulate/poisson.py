"""A rectangle from its gradients and its border: Poisson blending (Perez et al., Poisson Image Editing, SIGGRAPH 2003, eq. 3)."""

import numpy as np
from jaxtyping import Float


def from_gradients(
    own: Float[np.ndarray, "h w"], down: Float[np.ndarray, "g w"], right: Float[np.ndarray, "h v"]
) -> Float[np.ndarray, "h w"]:
    """The rectangle with the border of ``own`` whose inside has gradients as near as can be to those that are given.

    Solved exactly: sine transforms diagonalise the five-point Laplacian with fixed borders.

    Args:
        own: gives the outermost pixels; 3 x 3 or larger.
        down: differences of rows that follow each other, ``(h - 1, w)``.
        right: differences of columns that follow each other, ``(h, w - 1)``.
    """
    from scipy import fft

    inside = tuple(n - 2 for n in own.shape)
    load = -(np.diff(down, axis=0)[:, 1:-1] + np.diff(right, axis=1)[1:-1])
    load[0] += own[0, 1:-1]
    load[-1] += own[-1, 1:-1]
    load[:, 0] += own[1:-1, 0]
    load[:, -1] += own[1:-1, -1]
    vertical, horizontal = (2.0 - 2.0 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in inside)
    result = own.astype(np.float64)
    result[1:-1, 1:-1] = fft.idstn(fft.dstn(load, type=1) / (vertical[:, None] + horizontal[None, :]), type=1)
    return result

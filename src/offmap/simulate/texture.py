"""Smooth random fields, from which corruptions, lesions and phantoms are made."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def smooth_field(shape: Sequence[int], scale: float, rng: np.random.Generator) -> Float[np.ndarray, "*s"]:
    """White noise blurred with a Gaussian of ``scale`` pixels; mean 0, standard deviation 1 over the field."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(rng.standard_normal(shape), scale, mode="wrap")
    field -= field.mean()
    return np.asarray(field / max(float(field.std()), 1e-12))


def fractal_field(shape: Sequence[int], exponent: float, rng: np.random.Generator) -> Float[np.ndarray, "*s"]:
    """Noise with the power spectrum ``|frequency| ** -exponent``; mean 0, standard deviation 1 over the field.

    Natural and tissue textures have exponents near 2 to 3; 0 is white noise.
    """
    squares = [np.fft.fftfreq(n).reshape([-1 if i == axis else 1 for i in range(len(shape))]) ** 2 for axis, n in enumerate(shape)]
    frequency = np.sqrt(sum(squares[1:], squares[0]))
    frequency.flat[0] = np.inf
    field = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape)) * frequency ** (-exponent / 2)).real
    return np.asarray(field / max(float(field.std()), 1e-12))


def rise(values: Float[np.ndarray, "*s"], start: float, stop: float) -> Float[np.ndarray, "*s"]:
    """0 up to ``start``, 1 from ``stop`` on, a smooth step between (falling where ``start > stop``)."""
    t = np.clip((values - start) / (stop - start), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)

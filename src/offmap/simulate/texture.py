"""Smooth random fields, from which corruptions, lesions and phantoms are made."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def smooth_field(shape: Sequence[int], scale: float, rng: np.random.Generator) -> Float[np.ndarray, "*s"]:
    """White noise blurred with a Gaussian of ``scale`` pixels (periodic); mean 0, standard deviation 1 over the field."""
    return _filtered(shape, np.exp(-2.0 * np.pi**2 * scale**2 * _frequencies(shape)), rng)


def fractal_field(shape: Sequence[int], exponent: float, rng: np.random.Generator) -> Float[np.ndarray, "*s"]:
    """Noise with the power spectrum ``|frequency| ** -exponent``; mean 0, standard deviation 1 over the field.

    Natural and tissue textures have exponents near 2 to 3; 0 is white noise.
    """
    squared = _frequencies(shape)
    squared.flat[0] = 1.0
    return _filtered(shape, squared ** (-exponent / 4), rng)


def rise(values: Float[np.ndarray, "*s"], start: float, stop: float) -> Float[np.ndarray, "*s"]:
    """0 up to ``start``, 1 from ``stop`` on, a smooth step between (falling where ``start > stop``)."""
    t = np.clip((values - start) / (stop - start), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _frequencies(shape: Sequence[int]) -> Float[np.ndarray, "*f"]:
    """Squared frequency in cycles per pixel, on the grid of a real Fourier transform."""
    lines = [np.fft.rfftfreq(n) if axis == len(shape) - 1 else np.fft.fftfreq(n) for axis, n in enumerate(shape)]
    squares = [(line**2).reshape([-1 if i == axis else 1 for i in range(len(shape))]) for axis, line in enumerate(lines)]
    return np.asarray(sum(squares[1:], squares[0]))


def _filtered(shape: Sequence[int], gain: Float[np.ndarray, "*f"], rng: np.random.Generator) -> Float[np.ndarray, "*s"]:
    """White noise with its frequencies weighted; mean 0, standard deviation 1."""
    axes = tuple(range(len(shape)))
    gain.flat[0] = 0.0
    field = np.fft.irfftn(np.fft.rfftn(rng.standard_normal(shape), axes=axes) * gain, s=tuple(shape), axes=axes)
    return np.asarray(field / max(float(field.std()), 1e-12))

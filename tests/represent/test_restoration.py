"""Differences of images: SSIM against a naive computation, features against the built-in encoder's own maps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.nets.autoencoder import Restored
from offmap.represent.restoration import DIFFERENCES, normalised, perceptual_errors, perceptual_maps

pytest.importorskip("monai", reason="needs the extra [generative]")


def pair(channels: int = 1, sides: tuple[int, ...] = (14, 9)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, channels, *sides, generator=rng)
    return x, (x + 0.1 * torch.randn(x.shape, generator=rng)).clamp(0, 1)


def naive_ssim(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At each position, images continued by their border, after Wang et al. 2004."""
    grid = np.arange(11) - 5.0
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    one, other = np.pad(x, 5, mode="edge"), np.pad(y, 5, mode="edge")
    whole, part = np.zeros_like(x), np.zeros_like(x)
    for i, j in np.ndindex(x.shape):
        a, b = one[i : i + 11, j : j + 11], other[i : i + 11, j : j + 11]
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
        cov = (window * (a - ma) * (b - mb)).sum()
        part[i, j] = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
        whole[i, j] = part[i, j] * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
    return 1 - whole, 1 - part


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_and_its_contrast_are_the_formulas_at_every_position(channels: int) -> None:
    x, y = pair(channels)
    expected = [[naive_ssim(a, b) for a, b in zip(i.double().numpy(), j.double().numpy(), strict=True)] for i, j in zip(x, y, strict=True)]
    for k, measure in enumerate(("ssim", "ssim_contrast")):
        found = DIFFERENCES[measure](x, Restored(y))
        whole = np.stack([np.mean([channel[k] for channel in image], axis=0) for image in expected])
        np.testing.assert_allclose(found[:, 0].numpy(), whole, rtol=1e-3, atol=1e-4)


def test_contrast_does_not_see_brightness_and_ssim_does() -> None:
    x = 0.3 + 0.2 * pair()[0]
    brighter = Restored(x + 0.3)
    assert float(DIFFERENCES["ssim_contrast"](x, brighter).abs().max()) < 1e-3
    assert float(DIFFERENCES["ssim"](x, brighter).mean()) > 0.1


def test_differences_of_pixels_and_volumes() -> None:
    x, y = pair(3)
    torch.testing.assert_close(DIFFERENCES["l1"](x, Restored(y))[:, 0], (x - y).abs().mean(dim=1))
    torch.testing.assert_close(DIFFERENCES["l2"](x, Restored(y))[:, 0], (x - y).square().mean(dim=1))
    volumes = pair(1, (6, 5, 7))
    assert all(DIFFERENCES[m](volumes[0], Restored(volumes[1])).shape == (2, 1, 6, 5, 7) for m in ("l1", "l2", "ssim", "ssim_contrast"))


def test_errors_of_the_expected_size_are_one_where_they_are_normalised() -> None:
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    variance = torch.linspace(0.001, 0.1, 64).expand(1, 1, 64, 64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = normalised(x, Restored(x + variance.sqrt() * noise, variance.log()))
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ConfigError, match="uncertainty = true"):
        normalised(x, Restored(x))


def test_perceptual_errors_are_norms_of_the_differences_of_the_encoders_maps() -> None:
    encoder, (x, y) = BuiltinEncoder.shipped(), pair(1, (64, 70))
    names = frozenset(f"feature_map.{layer}" for layer in encoder.layers)
    one, other = encoder.encode(x, names), encoder.encode(y, names)
    expected = [
        np.sqrt(((one[n] - other[n]).double().numpy() ** 2).sum(axis=1)).mean(axis=(1, 2)) for n in sorted(names, key=order(encoder))
    ]
    np.testing.assert_allclose(perceptual_errors(encoder, x, y).numpy(), np.stack(expected, axis=1), rtol=1e-4)
    maps = perceptual_maps(encoder, x, y)
    assert maps.shape == (2, len(encoder.layers), 64, 70)
    assert float(perceptual_errors(encoder, x, x).abs().max()) == 0.0


def order(encoder: BuiltinEncoder):  # type: ignore[no-untyped-def]
    return lambda name: encoder.layers.index(name.removeprefix("feature_map."))


def test_small_images_are_enlarged_and_volumes_refused() -> None:
    x, y = pair(1, (9, 14))
    assert bool(torch.isfinite(perceptual_errors(BuiltinEncoder.shipped(), x, y)).all())
    with pytest.raises(SignalError, match="two axes of space"):
        perceptual_errors(BuiltinEncoder.shipped(), *pair(1, (4, 4, 4)))

"""Probabilities of grey levels: they add up to 1, are those of scipy, and their code lengths are honest."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy import stats
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent.likelihood import codes_of, compressed_bits, divergence, elbo_parts, log_likelihood, log_masses, quantised
from offmap.represent.nets.autoencoder import VAE, AutoencoderShape, autoencoder

pytest.importorskip("monai", reason="needs the extra [generative]")

LEVELS = torch.arange(256, dtype=torch.float64) / 255


def pictures(count: int = 3, channels: int = 1, sides: tuple[int, ...] = (12, 9)) -> Tensor:
    return torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(2))


def model(**changes: object) -> VAE:
    options = {"kind": "vae", "channels": 1, "sides": (12, 9), "widths": (8, 16), "latent": 4} | changes
    net = autoencoder(AutoencoderShape(**options), generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    assert isinstance(net, VAE)
    net.follow(torch.tensor(0.15**2), share=1.0)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("deviation", [0.25 / 255, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("mean", [-0.2, 0.0, 0.37, 1.0, 1.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_of_a_pixel_have_probabilities_that_add_up_to_one(deviation: float, mean: float, dtype: torch.dtype) -> None:
    masses = log_masses(LEVELS.to(dtype).view(256, 1, 1, 1), torch.full((256, 1, 1, 1), mean, dtype=dtype), torch.tensor(deviation))
    assert float(masses.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert bool((masses <= 1e-6).all())


@pytest.mark.parametrize("deviation", [0.003, 0.05, 0.5])
def test_they_are_differences_of_the_normal_distribution_function(deviation: float) -> None:
    mean, levels = 0.4, LEVELS.numpy()
    low = np.where(np.arange(256) == 0, -np.inf, levels - 0.5 / 255)
    high = np.where(np.arange(256) == 255, np.inf, levels + 0.5 / 255)
    law = stats.norm(mean, deviation)
    upper = np.where(low > mean, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))
    masses = log_masses(LEVELS.float().view(256, 1, 1, 1), torch.full((256, 1, 1, 1), mean), torch.tensor(deviation))[:, 0, 0, 0]
    seen = upper > 1e-250
    np.testing.assert_allclose(masses.numpy()[seen], np.log(upper[seen]), rtol=2e-3, atol=1e-4)


def test_with_a_wide_deviation_a_mass_is_density_times_the_width_of_a_bin() -> None:
    """``-log2 P = -log2 p - log2(1 / 255)``: bits of the density at a bin width of one grey level."""
    x, mean, deviation = quantised(pictures().double() * 0.5 + 0.2), torch.full((3, 1, 12, 9), 0.45, dtype=torch.float64), 0.2
    density = stats.norm(0.45, deviation).logpdf(x.numpy()).sum(axis=(1, 2, 3))
    found = log_likelihood(x, mean, torch.tensor(deviation, dtype=torch.float64))
    np.testing.assert_allclose(-found.numpy() / math.log(2), -density / math.log(2) + 108 * math.log2(255), rtol=1e-5)


def test_far_tails_are_finite_and_have_gradients() -> None:
    mean = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).requires_grad_()
    found = log_masses(torch.full((3, 1, 1, 1), 128 / 255), mean, torch.tensor(0.001))
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert mean.grad is not None
    assert bool(torch.isfinite(mean.grad).all())
    assert float(mean.grad[0]) > 0 > float(mean.grad[2])


def test_the_divergence_is_that_of_the_library() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(4, 3, generator=rng), torch.randn(4, 3, generator=rng)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(divergence(mean, log_variance).float(), expected)


def test_parts_are_those_of_a_naive_computation() -> None:
    net, x = model(), pictures()
    found = elbo_parts(net, x, {"samples": 2}, "elbo.parts")
    rounded = torch.round(x * 255) / 255
    mean, log_variance = net.encode(rounded)
    noise = codes_of(rounded, 2, 4)
    s = float(net.deviation)
    for i in range(3):
        likely = []
        for k in range(2):
            with torch.no_grad():
                decoded = net.decode(mean[i : i + 1] + (0.5 * log_variance[i : i + 1]).exp() * noise[i : i + 1, k]).double().numpy()
            pixels = rounded[i : i + 1].double().numpy()
            low, high = (pixels - 0.5 / 255 - decoded) / s, (pixels + 0.5 / 255 - decoded) / s
            low, high = np.where(pixels < 0.5 / 255, -np.inf, low), np.where(pixels > 1 - 0.5 / 255, np.inf, high)
            likely.append(np.log(stats.norm.cdf(high) - stats.norm.cdf(low)).sum())
        assert float(found[i, 0]) == pytest.approx(np.mean(likely), rel=1e-4)
    assert float(net.deviation) == pytest.approx(0.15, rel=1e-5)
    assert found[:, 2].tolist() == [108.0] * 3


def test_no_sample_is_the_mean_of_the_posterior_and_wrong_numbers_are_refused() -> None:
    net, x = model(), quantised(pictures())
    with torch.no_grad():
        expected = log_likelihood(x, net(x).images, net.deviation)
    torch.testing.assert_close(elbo_parts(net, x, {"samples": 0}, "elbo.parts")[:, 0].double(), expected)
    with pytest.raises(ConfigError, match=r"'elbo\.parts:samples=-1': samples = -1 must lie between 0"):
        elbo_parts(net, x, {"samples": -1}, "elbo.parts:samples=-1")


def test_the_compressed_size_is_that_of_the_png_file() -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        x = pictures(2, channels)
        for image, bits in zip(x, compressed_bits(x).tolist(), strict=True):
            stream = io.BytesIO()
            pixels = np.round(image.numpy() * 255).astype(np.uint8)
            Pillow.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0), mode=None).save(stream, "PNG", compress_level=9)
            assert bits == 8 * len(stream.getvalue())
            assert Pillow.open(stream).mode == mode
            assert np.array_equal(
                np.asarray(Pillow.open(stream)).reshape(-1), (pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)).reshape(-1)
            )


def test_simple_images_compress_and_volumes_are_taken() -> None:
    flat = torch.full((1, 1, 32, 32), 0.5)
    assert float(compressed_bits(flat)) < 0.15 * float(compressed_bits(pictures(1, 1, (32, 32))))
    assert compressed_bits(pictures(2, 1, (4, 5, 6))).shape == (2,)

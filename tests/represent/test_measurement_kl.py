"""Two models on one set of images, against the divergence of Gaussians."""

import math

import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.denoiser import Denoiser
from offmap.represent.measurement_kl import measurement_kl


def gaussian(mean: float, variance: float) -> Denoiser:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1).square()
        return (variance * x + s * mean) / (variance + s)

    return denoise


def drawn(count: int = 16, side: int = 16) -> Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("mean", "variance", "nats"), [(1.5, 2.0, 0.65907), (1.5, 4.0, 0.59940), (0.0, 2.0, 0.5 * (math.log(2) - 0.5))])
def test_it_is_the_divergence_of_gaussians(mean: float, variance: float, nats: float) -> None:
    found = measurement_kl(gaussian(0, 1), gaussian(mean, variance), drawn(64).split(10), sigmas=torch.logspace(-2, 2, 120).tolist())
    assert (found.divergence + found.above) / 256 == pytest.approx(nats, rel=0.02)
    assert found.images == 64


def test_the_part_above_the_highest_level_is_the_squared_distance_of_the_means() -> None:
    found = measurement_kl(gaussian(0, 1), gaussian(1.5, 1), [drawn()], sigmas=torch.logspace(-2, 1, 60).tolist())
    assert found.above / 256 == pytest.approx(1.5**2 / (2 * 10**2), rel=0.05)


def test_trap_common_noise_makes_a_model_no_distance_from_itself() -> None:
    found = measurement_kl(gaussian(0.3, 2), gaussian(0.3, 2), [drawn()])
    assert found.divergence == 0.0
    assert not found.integrand.any()


def test_trap_scale_counts() -> None:
    """Rescaling each denoised image to [0, 1] would call these two equal."""
    found = measurement_kl(gaussian(0, 1), lambda x, s: 0.5 * gaussian(0, 1)(x, s), [drawn()], sigmas=[0.5, 1.0, 2.0])
    assert found.divergence > 1


def test_batches_do_not_matter_and_draws_average() -> None:
    one, two = gaussian(0, 1), gaussian(1, 1)
    whole = measurement_kl(one, two, [drawn()], draws=2)
    parts = measurement_kl(one, two, drawn().split(5), draws=2)
    assert whole.divergence == pytest.approx(parts.divergence, rel=1e-12)


def test_bad_input_is_refused() -> None:
    one = gaussian(0, 1)
    for sigmas in ([1.0], [0.0, 1.0], [1.0, 1.0]):
        with pytest.raises(ConfigError, match="two noise levels"):
            measurement_kl(one, one, [drawn()], sigmas=sigmas)
    with pytest.raises(SignalError, match="there is no image"):
        measurement_kl(one, one, [])
    with pytest.raises(SignalError, match="not finite"):
        measurement_kl(one, lambda x, s: x * torch.nan, [drawn()])

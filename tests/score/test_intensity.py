"""Histogram and spectrum against numpy, the distance against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.intensity import Intensity, histogram, ring_power

Signals = dict[str, Tensor]


def draw(count: int, seed: int, *, gain: float = 1.0, channels: int = 1, smooth: bool = False) -> Signals:
    """A gradient with a tilt of its own plus noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    tilt = torch.rand(count, channels, 1, 1, generator=generator)
    noise = torch.randn(count, channels, 20, 20, generator=generator)
    if smooth:
        noise = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(noise, (1, 1, 1, 1), "circular"), 3, 1) * 3
    ramp = torch.linspace(0, 1, 20)
    return {"image": (gain * (0.3 + 0.3 * tilt * ramp + 0.05 * noise)).clamp(0, 1)}


def vectors(images: np.ndarray, bins: int, bands: int) -> np.ndarray:
    rows = []
    fy, fx = np.meshgrid(np.fft.fftfreq(images.shape[2]), np.fft.fftfreq(images.shape[3]), indexing="ij")
    ring = np.minimum((np.hypot(fy, fx) * 2 * bands).astype(int), bands - 1)
    for image in images:
        shares, powers = [], []
        for channel in image.astype(np.float64):
            shares.append(np.sqrt(np.histogram(channel, bins, (0, 1))[0] / channel.size))
            power = np.abs(np.fft.fft2(channel - channel.mean())) ** 2 / channel.size
            powers.append([np.log(max(power[ring == r].mean(), 1e-8)) for r in range(bands)])
        rows.append(np.concatenate([np.ravel(shares), np.ravel(powers)]))
    return np.array(rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_equals_numpy_and_scikit_learn(channels: int) -> None:
    fit, test = draw(60, 1, channels=channels), draw(20, 2, channels=channels)
    rows, queries = (vectors(np.broadcast_to(s["image"].numpy(), (len(s["image"]), 3, 20, 20)), 16, 5) for s in (fit, test))
    deviation = rows.std(axis=0, ddof=1)
    deviation = np.maximum(deviation, 0.01 * np.sqrt(np.mean(deviation**2)))
    estimate = LedoitWolf().fit(rows / deviation)
    expected = estimate.mahalanobis(queries / deviation)
    got = Intensity(bins=16, bands=5).fit([fit]).score(test)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)


def test_the_histogram_takes_in_both_ends() -> None:
    shares = histogram(torch.tensor([[[0.0, 0.24, 0.25, 1.0, 1.7, -0.5]]]), 4)
    np.testing.assert_allclose(shares.numpy()[0, 0] * 6, [3, 1, 0, 2])


def test_the_power_of_all_rings_is_the_variance_in_one_to_three_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 1, 32), (2, 3, 12, 9), (2, 1, 6, 5, 4)):
        images = torch.rand(shape, generator=generator, dtype=torch.float64)
        one = ring_power(images, 1)[..., 0]
        torch.testing.assert_close(one, images.flatten(2).var(dim=2, unbiased=False))


def test_a_wave_falls_into_its_ring() -> None:
    wave = torch.cos(2 * torch.pi * 0.3 * torch.arange(40, dtype=torch.float64)).expand(1, 1, 40, 40)
    assert int(ring_power(wave, 10).argmax()) == 6


@pytest.mark.parametrize("odd", [{"gain": 1.3}, {"smooth": True}])
def test_other_grey_values_and_other_texture_are_seen(odd: dict[str, object]) -> None:
    fitted = Intensity().fit([draw(200, 1)])
    assert float(fitted.score(draw(50, 4, **odd)).min()) > float(fitted.score(draw(50, 3)).median())  # type: ignore[arg-type]


def test_known_failure_the_same_thing_in_another_place_is_not_seen() -> None:
    def disc(count: int, seed: int, at: int) -> Signals:
        images = 0.2 + 0.05 * torch.randn(count, 1, 24, 24, generator=torch.Generator().manual_seed(seed))
        images[:, :, at : at + 6, 8:14] += 0.5
        return {"image": images.clamp(0, 1)}

    fitted = Intensity().fit([disc(200, 1, 4)])
    usual, moved = fitted.score(disc(100, 2, 4)), fitted.score(disc(100, 3, 12))
    assert 0.35 < float((moved[:, None] > usual[None]).double().mean()) < 0.65


def test_a_grey_image_scores_alike_with_one_channel_and_with_three() -> None:
    fitted, grey = Intensity().fit([draw(60, 1)]), draw(10, 2)
    torch.testing.assert_close(fitted.score(grey), fitted.score({"image": grey["image"].expand(-1, 3, -1, -1)}))


def test_colour_is_odd_among_grey_images() -> None:
    fitted = Intensity().fit([draw(60, 1)])
    assert float(fitted.score(draw(20, 2, channels=3)).min()) > float(fitted.score(draw(20, 2)).max())


def test_one_image_and_other_channels_are_refused() -> None:
    with pytest.raises(SignalError, match="at least two different images"):
        Intensity().fit([draw(1, 0)])
    with pytest.raises(SignalError, match="must have 3 channels"):
        Intensity().fit([draw(30, 0)]).score(draw(5, 0, channels=2))


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"bands": -1}, {"shrinkage": "no"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Intensity.from_params(wrong)

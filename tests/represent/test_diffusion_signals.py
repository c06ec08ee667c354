"""Signals of a diffusion model against closed forms of a Gaussian denoiser, ``D = m + C (C + sigma^2)^-1 (x - m)``, C diagonal."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.represent import curvature, trajectories
from offmap.represent.noised import levels_of, noise_of, signs_of
from offmap.represent.trajectories import checkerboard

SIDE = 6
VARIANCES = torch.linspace(0.05, 0.9, SIDE * SIDE, dtype=torch.float64).reshape(1, SIDE, SIDE)
MEAN = 0.1 * torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


class Gaussian:
    """The exact denoiser of images ``N(m, diag C)``; counts the images that it has seen."""

    def __init__(self, mean: Tensor, variances: Tensor) -> None:
        self.mean, self.variances, self.seen = mean, variances, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.seen += len(x)
        level = sigma.view(-1, *[1] * (x.ndim - 1)).square()
        return self.mean + self.variances / (self.variances + level) * (x - self.mean)


EXACT = Gaussian(MEAN, VARIANCES)


def draw(count: int = 5, seed: int = 0) -> Tensor:
    """Images of the Gaussian."""
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MEAN + VARIANCES.sqrt() * noise


def ratios(count: int, low: float, high: float) -> list[float]:
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def test_levels_are_in_equal_ratios() -> None:
    np.testing.assert_allclose(levels_of("s", 4, 0.1, 2.7).tolist(), [0.1, 0.3, 0.9, 2.7])
    assert levels_of("s", 1, 0.1, 3.0).tolist() == [3.0]
    for wrong in ((0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0), (3, 1.0, math.inf)):
        with pytest.raises(ConfigError, match="signal 'name'"):
            levels_of("name", *wrong)


def test_noise_depends_on_the_image_alone() -> None:
    x = draw(3)
    alone = torch.cat([noise_of(x[i : i + 1], 2) for i in range(3)])
    assert torch.equal(noise_of(x, 2), alone)
    assert torch.equal(noise_of(x, 2), noise_of(x.clone(), 2))
    assert not torch.equal(noise_of(x, 2, salt=1), alone)
    assert set(signs_of(x, 3, salt=0).unique().tolist()) == {-1.0, 1.0}
    many = noise_of(torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(1)), 2)
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.03


@pytest.mark.parametrize("noised", [True, False])
def test_msma_norms(noised: bool) -> None:
    x, settings = draw(), {"levels": 4, "low": 0.1, "high": 2.0, "noised": noised}
    got = trajectories.msma_norms(EXACT, x, settings, "s").numpy()
    fields = noise_of(x, 4).numpy()
    for n in range(len(x)):
        for i, sigma in enumerate(ratios(4, 0.1, 2.0)):
            seen = x[n].numpy() + sigma * fields[n, i] * noised
            residual = sigma**2 / (VARIANCES.numpy() + sigma**2) * (seen - MEAN.numpy())
            assert got[n, i] == pytest.approx(np.linalg.norm(residual) / (sigma * SIDE), rel=1e-5)


def test_msma_norms_of_images_of_the_model_have_their_expectation() -> None:
    """``E n^2 = mean sigma^2 / (C + sigma^2)`` at a level, 1 where the noise drowns the image."""
    settings = {"levels": 3, "low": 0.2, "high": 20.0, "noised": True}
    got = trajectories.msma_norms(EXACT, draw(4000, seed=1), settings, "s").double().square().mean(dim=0)
    expected = [float((s**2 / (VARIANCES + s**2)).mean()) for s in ratios(3, 0.2, 20.0)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=0.02)


def test_diffpath_moments() -> None:
    x, sigmas = draw(), ratios(5, 0.1, 3.0)
    got = trajectories.diffpath_moments(EXACT, x, {"levels": 5, "low": 0.1, "high": 3.0}, "s").numpy()
    for n in range(len(x)):
        place, path = x[n].numpy().copy(), []
        for i, sigma in enumerate(sigmas):
            path.append(sigma / (VARIANCES.numpy() + sigma**2) * (place - MEAN.numpy()))
            if i < 4:
                place = place + (sigmas[i + 1] - sigma) * path[-1]
        steps = [5 * (b - a) for a, b in itertools.pairwise(path)]
        expected = [np.mean(np.stack(v) ** p) for v in (path, steps) for p in (1, 2, 3)]
        np.testing.assert_allclose(got[n], expected, rtol=1e-5, atol=1e-7)


def test_diffpath_ends_as_far_out_as_the_noise_for_images_of_the_model() -> None:
    """Many steps follow ``x(sigma) - m ~ sqrt((C + sigma^2) / C)``, so the mean square of e at a level is mean sigma^2 / (C + sigma^2)."""
    settings = {"levels": 400, "low": 0.01, "high": 5.0}
    got = trajectories.diffpath_moments(EXACT, draw(300, seed=2), settings, "s").double().mean(dim=0)
    expected = np.mean([float((s**2 / (VARIANCES + s**2)).mean()) for s in ratios(400, 0.01, 5.0)])
    assert float(got[1]) == pytest.approx(expected, rel=0.05)


def test_scoped_ratio_is_exact_where_the_jacobian_is_diagonal() -> None:
    x = draw()
    got = curvature.scoped_ratios(EXACT, x, {"levels": 2, "low": 0.2, "high": 1.0, "probes": 1}, "s").numpy()
    fields = noise_of(x, 2).numpy()
    for n in range(len(x)):
        for i, sigma in enumerate((0.2, 1.0)):
            spread = VARIANCES.numpy() + sigma**2
            score = -(x[n].numpy() + sigma * fields[n, i] - MEAN.numpy()) / spread
            assert got[n, i] == pytest.approx(-np.sum(score**2) / np.sum(1 / spread), rel=1e-5)


def test_scoped_ratio_of_images_of_the_model_is_minus_one_on_average() -> None:
    """Stein's identity, ``E[|s|^2 + tr ds/dx] = 0``."""
    got = curvature.scoped_ratios(EXACT, draw(4000, seed=3), {"levels": 2, "low": 0.2, "high": 1.0, "probes": 1}, "s")
    np.testing.assert_allclose(got.double().mean(dim=0).numpy(), [-1.0, -1.0], atol=0.02)
    far = curvature.scoped_ratios(EXACT, draw(4, seed=3) + 2.0, {"levels": 2, "low": 0.2, "high": 1.0, "probes": 1}, "s")
    assert float(far.max()) < -2.5


def test_a_trace_near_nothing_is_kept_away_from_it() -> None:
    got = curvature.scoped_ratios(lambda x, sigma: x, draw(), {"levels": 1, "low": 0.5, "high": 0.5, "probes": 1}, "s")
    assert torch.equal(got, torch.zeros_like(got))


def test_derivatives_equal_central_differences() -> None:
    x, v = draw(3), draw(3, seed=8)

    def curved(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(z) * sigma.view(-1, 1, 1, 1) + z.square().mean(dim=(2, 3), keepdim=True)

    mean, change = curvature.with_change(curved, x, 0.7, v)
    levels = torch.full((3,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(mean, curved(x, levels))
    torch.testing.assert_close(change, (curved(x + 1e-5 * v, levels) - curved(x - 1e-5 * v, levels)) / 2e-5, rtol=1e-6, atol=1e-8)


def test_leading_eigenvalues_are_those_of_the_posterior_covariance() -> None:
    settings = {"levels": 1, "low": 0.5, "high": 0.5, "vectors": 2, "iterations": 150, "repeats": 1}
    got = curvature.eigenscore_values(EXACT, draw(2), settings, "s")
    values = np.sort((0.25 * VARIANCES / (VARIANCES + 0.25)).numpy().ravel())
    np.testing.assert_allclose(got.numpy(), values[-2:].sum(), rtol=3e-3)


def test_few_iterations_never_exceed_them() -> None:
    settings = {"levels": 2, "low": 0.3, "high": 1.25, "vectors": 3, "iterations": 3, "repeats": 1}
    got = curvature.eigenscore_values(EXACT, draw(4), settings, "s").double()
    most = [float((s**2 * VARIANCES / (VARIANCES + s**2)).flatten().sort().values[-3:].sum()) for s in (0.3, 1.25)]
    assert bool((got <= torch.tensor(most) + 1e-6).all())
    assert bool((got > 0.5 * torch.tensor(most)).all())


def test_reconstructions_from_each_start() -> None:
    x, sigmas = draw(), ratios(5, 0.1, 3.0)
    got = trajectories.multi_noise_errors(EXACT, x, {"levels": 5, "every": 2, "low": 0.1, "high": 3.0}, "s").numpy()
    fields = noise_of(x, 3).numpy()
    assert got.shape == (5, 3)
    for n in range(len(x)):
        for k, start in enumerate((0, 2, 4)):
            place = x[n].numpy() + sigmas[start] * fields[n, k]
            for i in range(start, -1, -1):
                shrunk = VARIANCES.numpy() / (VARIANCES.numpy() + sigmas[i] ** 2) * (place - MEAN.numpy()) + MEAN.numpy()
                lower = sigmas[i - 1] if i else 0.0
                place = shrunk + lower / sigmas[i] * (place - shrunk)
            assert got[n, k] == pytest.approx(np.mean((place - x[n].numpy()) ** 2), rel=1e-5)


def test_no_shift_changes_the_score_where_all_pixels_are_alike_and_it_does_elsewhere() -> None:
    settings = {"levels": 2, "low": 0.2, "high": 1.0, "shift": 1}
    alike = Gaussian(torch.zeros(1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1), 0.3, dtype=torch.float64))
    torch.testing.assert_close(curvature.gepc_errors(alike, draw(), settings, "s"), torch.zeros(5, 2))
    x = draw(2)
    got = curvature.gepc_errors(EXACT, x, settings, "s").numpy()
    fields, inner = noise_of(x, 2).numpy(), slice(1, -1)
    for n in range(2):
        for i, sigma in enumerate((0.2, 1.0)):
            seen = np.pad(x[n, 0].numpy() + sigma * fields[n, i, 0], 1, mode="edge")
            share = (VARIANCES / (VARIANCES + sigma**2))[0].numpy()
            offset = MEAN[0].numpy() * (1 - share)
            total = 0.0
            for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                moved = seen[1 + dy : 1 + dy + SIDE, 1 + dx : 1 + dx + SIDE]
                back = np.roll(share * moved + offset, (dy, dx), axis=(0, 1))[inner, inner]
                own = (share * seen[1:-1, 1:-1] + offset)[inner, inner]
                total += np.mean((back - own) ** 2) / sigma**2 / 4
            assert got[n, i] == pytest.approx(total, rel=1e-5)
    maps = curvature.gepc_map(EXACT, x, settings, "s")
    assert maps.shape == (2, 1, SIDE, SIDE)
    np.testing.assert_allclose(maps[:, 0, inner, inner].mean(dim=(1, 2)).numpy(), got.mean(axis=1), rtol=1e-5)


def test_inpainting_holds_to_what_is_seen_and_meets_the_mean_elsewhere() -> None:
    """Where pixels are independent, hidden ones come out as the path from their noise; the map is the squared difference."""
    x, sigmas = draw(3), ratios(4, 0.1, 3.0)
    got = trajectories.lmd_map(EXACT, x, {"levels": 4, "low": 0.1, "high": 3.0, "cells": 3, "repeats": 2}, "s")
    fields, expected = noise_of(x, 2).numpy(), np.zeros((3, SIDE, SIDE))
    share = VARIANCES.numpy()
    for r in range(2):
        place = x.numpy() + 3.0 * fields[:, r]
        for i in range(3, -1, -1):
            shrunk = MEAN.numpy() + share / (share + sigmas[i] ** 2) * (place - MEAN.numpy())
            place = shrunk + (sigmas[i - 1] if i else 0.0) / sigmas[i] * (place - shrunk)
        expected += (place - x.numpy())[:, 0] ** 2 / 2
    np.testing.assert_allclose(got[:, 0].numpy(), expected, rtol=1e-6)
    errors = trajectories.lmd_errors(EXACT, x, {"levels": 4, "low": 0.1, "high": 3.0, "cells": 3, "repeats": 2}, "s")
    np.testing.assert_allclose(errors.numpy(), expected.mean(axis=(1, 2)), rtol=1e-5)


def test_a_checkerboard() -> None:
    board = checkerboard((4, 4), 2)
    assert board.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert checkerboard((4, 6, 8), 2).shape == (4, 6, 8)


def test_the_gradient_is_that_of_the_loss() -> None:
    x = draw(3)
    got = curvature.gradient_norms(EXACT, x, {"levels": 2, "low": 0.2, "high": 1.0}, "s").numpy()
    fields, share = noise_of(x, 2).numpy(), VARIANCES.numpy()
    for n in range(3):
        slope = np.zeros((1, SIDE, SIDE))
        for i, sigma in enumerate((0.2, 1.0)):
            keep = share / (share + sigma**2)
            error = MEAN.numpy() + keep * (x[n].numpy() + sigma * fields[n, i] - MEAN.numpy()) - x[n].numpy()
            slope += error * (keep - 1) / sigma**2 / 2
        assert got[n] == pytest.approx(np.sqrt(np.mean(slope**2)), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "settings", "evaluations"),
    [
        (trajectories.msma_norms, trajectories.MSMA, 10),
        (trajectories.diffpath_moments, trajectories.DIFFPATH, 10),
        (trajectories.multi_noise_errors, trajectories.MULTI_NOISE, 30),
        (trajectories.lmd_errors, trajectories.LMD | {"cells": 3}, 20),
        (curvature.scoped_ratios, curvature.SCOPED, 2),
        (curvature.eigenscore_values, curvature.EIGENSCORE, 27),
        (curvature.gepc_errors, curvature.GEPC, 15),
        (curvature.gradient_norms, curvature.GRADIENT, 3),
    ],
)
def test_evaluations_are_as_stated(make, settings, evaluations) -> None:  # type: ignore[no-untyped-def]
    counted = Gaussian(MEAN, VARIANCES)
    make(counted, draw(2), settings, "s")
    assert counted.seen == 2 * evaluations


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (trajectories.diffpath_moments, trajectories.DIFFPATH | {"levels": 1}),
        (trajectories.multi_noise_errors, trajectories.MULTI_NOISE | {"every": 11}),
        (trajectories.lmd_errors, trajectories.LMD | {"cells": 7}),
        (curvature.scoped_ratios, curvature.SCOPED | {"probes": 0}),
        (curvature.eigenscore_values, curvature.EIGENSCORE | {"vectors": 65}),
        (curvature.gepc_errors, curvature.GEPC | {"shift": 3}),
    ],
)
def test_settings_out_of_range_name_the_signal(make, settings) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="signal 'asked'"):
        make(EXACT, draw(2), settings, "asked")

"""Samplers against Gaussian priors, for which posterior, likelihood score and divergence have closed forms."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.operators.contract import Operator
from offmap.represent.operators.parse import parse
from offmap.represent.posterior.contract import Level, Sampler
from offmap.represent.posterior.ddpm import DDPM
from offmap.represent.posterior.edm import EDM
from offmap.represent.posterior.guidance import guided
from offmap.represent.posterior.langevin import Langevin
from offmap.represent.posterior.predictor_corrector import PredictorCorrector
from offmap.represent.posterior.sampling import ImageDraws, Posterior, sample

PRIOR = 0.5
SAMPLERS = (
    EDM(steps=20, samples=2),
    DDPM(steps=20, samples=2),
    Langevin(steps=20, samples=2, inner=2),
    PredictorCorrector(steps=20, samples=2),
)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """``D`` of white Gaussian images of deviation ``PRIOR`` about 0."""
    return x * (PRIOR**2 / (PRIOR**2 + sigma.view(-1, 1, 1, 1).square()))


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(operator: Operator, count: int, side: int, seed: int = 1) -> Tensor:
    """Measurements of images of the prior, with noise as stated."""
    y = operator.forward(PRIOR * drawn((count, 1, side, side), seed))
    return y + operator.noise * drawn(tuple(y.shape), seed + 1)


def run(sampler: Sampler, operator: Operator, y: Tensor, side: int, **settings: int) -> Posterior:
    return sample(gaussian, y, operator, sampler, size=(side, side), seeds=range(len(y)), **settings)


def divergence(operator: Operator, y: Tensor, side: int, variance: float) -> float:
    """KL of posterior and prior, both blurred by noise of this variance, summed over images: numpy, from the singular values of A."""
    unit = torch.eye(side * side, dtype=torch.float64).reshape(-1, 1, side, side)
    matrix = operator.forward(unit).flatten(1).T.numpy()
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    a = np.concatenate([s, np.zeros(side * side - len(s))])
    along = np.concatenate([y.flatten(1).numpy() @ u, np.zeros((len(y), side * side - len(s)))], axis=1)
    rho = operator.noise**2 / (a**2 * PRIOR**2 + operator.noise**2)
    mean = a * PRIOR**2 * along / (a**2 * PRIOR**2 + operator.noise**2)
    ratio = (PRIOR**2 * rho + variance) / (PRIOR**2 + variance)
    return float((0.5 * (ratio - 1 - np.log(ratio) + mean**2 / (PRIOR**2 + variance))).sum())


def test_closed_form_of_the_toy_in_one_dimension() -> None:
    """The oracle itself, against the number of an independent quadrature."""
    rho, m = 0.49 / (1.69 + 0.49), 1.69 * 2.1 / (1.69 + 0.49)
    assert 0.5 * (rho - 1 - math.log(rho) + m**2 / 1.69) == pytest.approx(1.142842, abs=1e-6)
    assert pytest.approx(0.784120, abs=1e-6) == 1.69 * 2.1**2 / (2 * (1.69 + 0.49) ** 2)


@pytest.mark.parametrize("text", ["identity:noise=0.2", "deblur:kernel=5,deviation=0.7,noise=0.2", "ct:views=6,noise=0.05"])
def test_the_divergence_is_that_of_the_closed_form_within_one_percent(text: str) -> None:
    operator, side, samples = parse(text), 16, 64
    y = measured(operator, 4, side)
    sampler = EDM(steps=400, samples=samples, rho=20.0, sigma_max=20.0, sigma_min=0.01)
    maps = run(sampler, operator, y, side, windows=4).sums.maps().sum(dim=(0, 2, 3))
    sigmas = sampler.sigmas()
    whole = divergence(operator, y, side, 0.0) - divergence(operator, y, side, sigmas[0] ** 2)
    assert float(maps.sum()) == pytest.approx(whole, rel=0.01)
    for window in range(4):
        high, low = (sigmas[i] ** 2 for i in (100 * window, 100 * (window + 1)))
        expected = divergence(operator, y, side, low) - divergence(operator, y, side, high)
        assert float(maps[window]) == pytest.approx(expected, rel=0.02, abs=0.002 * whole)


def test_trap_steps_that_skip_time_use_the_beta_of_what_they_skip() -> None:
    """A tenth of DDPM's levels gives the same divergence as EDM's; the single-step beta would be ten times off."""
    operator = parse("identity:noise=0.2")
    y = measured(operator, 4, 16)
    whole = divergence(operator, y, 16, 0.0)
    found = run(DDPM(steps=100, samples=16), operator, y, 16).sums.maps().sum()
    assert float(found) == pytest.approx(whole, rel=0.06)


def test_many_small_langevin_steps_come_to_the_same_divergence() -> None:
    operator = parse("identity:noise=0.2")
    y = measured(operator, 4, 16)
    sampler = Langevin(steps=60, samples=2, inner=40, rate=0.1, sigma_max=10.0, sigma_min=0.02)
    assert float(run(sampler, operator, y, 16).sums.maps().sum()) == pytest.approx(divergence(operator, y, 16, 0.0), rel=0.06)


@pytest.mark.parametrize("backward", [False, True])
def test_the_likelihood_score_is_posterior_minus_prior_score(backward: bool) -> None:
    operator, x, sigma = parse("identity:noise=0.7"), drawn((3, 1, 4, 4)), 0.9
    y = drawn((3, 1, 4, 4), 5)
    found = guided(EDM(backward=backward), gaussian, x, sigma, y, operator)
    k, c = PRIOR**2 / (PRIOR**2 + sigma**2), PRIOR**2 * sigma**2 / (PRIOR**2 + sigma**2)
    torch.testing.assert_close(found.pull, k * (y - k * x) / (c + 0.49))
    v = PRIOR**2 * 0.49 / (PRIOR**2 + 0.49)
    m = y * PRIOR**2 / (PRIOR**2 + 0.49)
    torch.testing.assert_close(found.pull, -(x - m) / (v + sigma**2) + x / (PRIOR**2 + sigma**2))
    assert found.evaluations == (3 if backward else 1)
    assert not found.denoised.requires_grad


def test_going_back_through_the_network_follows_its_jacobian() -> None:
    """A denoiser that mixes pixels: J^T A^T r / |r| by autograd against a dense Jacobian."""
    mix = drawn((16, 16), 3) / 4

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ mix.T).reshape(x.shape)

    operator, x, y = parse("super_resolution:factor=2"), drawn((1, 1, 4, 4), 1), drawn((1, 1, 2, 2), 2)
    jacobian = torch.autograd.functional.jacobian(lambda v: denoiser(v.reshape(1, 1, 4, 4), torch.ones(1)).flatten(), x.flatten())
    residual = y - operator.forward(denoiser(x, torch.ones(1)))
    expected = jacobian.T @ operator.adjoint(residual, (4, 4)).flatten() / residual.norm()
    found = guided(EDM(guidance="dps", backward=True), denoiser, x, 1.0, y, operator)
    torch.testing.assert_close(found.pull.flatten(), expected)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.method())
@pytest.mark.parametrize("guidance", ["matched", "dps"])
def test_an_image_is_sampled_as_in_any_batch(sampler: Sampler, guidance: str) -> None:
    """Also: the step is set by each image's own residual, not by the batch's mean."""
    operator = parse("ct:views=5,noise=0.05")
    sampler = replace(sampler, guidance=guidance, strength=0.02, sigma_max=5.0)  # type: ignore[arg-type]
    y = measured(operator, 3, 16) * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None, None, None]
    whole = run(sampler, operator, y, 16)
    again = run(sampler, operator, y, 16)
    assert torch.equal(whole.sums.maps(), again.sums.maps())
    for i in range(3):
        alone = sample(gaussian, y[i : i + 1], operator, sampler, size=(16, 16), seeds=[i])
        torch.testing.assert_close(alone.sums.maps()[0], whole.sums.maps()[i], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(alone.residual[0], whole.residual[i])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.method())
def test_trap_noise_is_fresh_in_every_step_and_each_sample_has_its_own(sampler: Sampler) -> None:
    seen: list[Tensor] = []

    class Watched(ImageDraws):
        def normal(self) -> Tensor:
            seen.append(super().normal())
            return seen[-1]

    operator = parse("identity")
    y = measured(operator, 2, 8)
    draws, x = Watched([1, 2], 2, (1, 8, 8), y), drawn((4, 1, 8, 8))
    for level in sampler.levels()[:3]:
        x = sampler.step(gaussian, x, level, y.repeat(2, 1, 1, 1), operator, draws).x
    rows = torch.cat(seen).flatten(1)
    assert len(rows) >= 12
    assert float(torch.corrcoef(rows).fill_diagonal_(0).abs().max()) < 0.6
    shared = draws.shared()
    assert torch.equal(shared[:2], shared[2:])
    assert not torch.equal(shared, draws.shared())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.method())
def test_clocks_fit_the_levels(sampler: Sampler) -> None:
    """``g^2 dt`` in the units of the updates; of the variance-preserving process, that is beta."""
    for level in sampler.levels():
        g, dt = sampler.clock(level)
        scale = 1 / (1 + level.sigma**2) if isinstance(sampler, DDPM) else 1.0
        assert g * g * dt == pytest.approx(scale * (level.sigma**2 - level.below**2), rel=1e-9)
    assert sampler.levels()[-1].below == 0.0
    if isinstance(sampler, PredictorCorrector):
        level = PredictorCorrector(steps=1000, sigma_max=128.0).levels()[500]
        expected = level.sigma * math.sqrt(2 * math.log(128.0 / 0.01))
        assert PredictorCorrector(steps=1000, sigma_max=128.0).clock(level)[0] == pytest.approx(expected, rel=0.01)


def posterior(operator: Operator, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance by dense algebra, for 16 x 16 pixels."""
    matrix = operator.forward(torch.eye(256, dtype=torch.float64).reshape(-1, 1, 16, 16)).flatten(1).T
    precision = operator.noise**-2
    covariance = torch.linalg.inv(precision * matrix.T @ matrix + torch.eye(256, dtype=torch.float64) / PRIOR**2)
    return (precision * y.flatten(1) @ matrix) @ covariance, covariance


def test_posterior_samples_have_the_mean_and_spread_of_the_posterior_and_a_residual_of_one() -> None:
    operator = parse("deblur:kernel=5,deviation=0.7,noise=0.3")
    y = measured(operator, 6, 16)
    found = run(EDM(steps=200, samples=32, sigma_max=20.0), operator, y, 16)
    mean, covariance = posterior(operator, y)
    assert float((found.mean.flatten(1) - mean).square().mean()) < 1.3 * float(covariance.diagonal().mean()) / 32
    assert float(found.samples.var(dim=0).mean()) == pytest.approx(float(covariance.diagonal().mean()), rel=0.08)
    assert float(found.residual.square().mean()) == pytest.approx(1.0, abs=0.1)


def test_a_wrong_noise_level_shows_in_the_residual() -> None:
    """Where the prior knows much and the measurement little, noise of four times the stated size stays unexplained."""
    y = measured(parse("deblur:kernel=7,deviation=2,noise=0.4"), 4, 16)
    stated = parse("deblur:kernel=7,deviation=2,noise=0.1")
    sampler = EDM(steps=60, samples=4, sigma_max=20.0)
    assert float(run(sampler, stated, y, 16).residual.min()) > 2.0
    fitting = run(sampler, stated, measured(stated, 4, 16), 16).residual
    assert 0.7 < float(fitting.min()) <= float(fitting.max()) < 1.3


def test_a_start_from_the_pseudo_inverse_needs_no_high_noise() -> None:
    operator = parse("ct:views=12,noise=0.02")
    y = measured(operator, 3, 16)
    long, short = EDM(steps=100, samples=8), EDM(steps=20, samples=8, sigma_max=1.0, start="inverse")
    one, other = (run(s, operator, y, 16, windows=1) for s in (long, short))
    assert other.evaluations == one.evaluations / 5
    mean, _ = posterior(operator, y)
    wrong = [float((found.mean.flatten(1) - mean).square().mean()) for found in (one, other)]
    assert wrong[1] < 1.3 * wrong[0]


def test_network_evaluations_are_counted() -> None:
    operator, calls = parse("identity"), [0]

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls[0] += len(x)
        return gaussian(x, sigma)

    y = measured(operator, 2, 8)
    for sampler in SAMPLERS:
        calls[0] = 0
        found = sample(counted, y, operator, sampler, size=(8, 8), seeds=[1, 2], share=3)
        assert calls[0] == 2 * found.evaluations


def test_half_precision_holds_in_the_network_alone_and_hardly_moves_the_sums() -> None:
    """A denoiser whose product is one that autocast takes; bfloat16 has 8 bits, so that sums agree to about a per cent."""
    operator, kinds = parse("ct:views=6,noise=0.05"), set()

    def product(x: Tensor, sigma: Tensor) -> Tensor:
        found = (x.flatten(1) @ torch.eye(x[0].numel(), dtype=x.dtype)).reshape(x.shape)
        kinds.add(found.dtype)
        return gaussian(found, sigma)

    y = measured(operator, 2, 16).float()
    one, half = (
        sample(product, y, operator, EDM(steps=40, samples=2, sigma_max=5.0), size=(16, 16), seeds=[1, 2], precision=p)
        for p in ("float32", "bfloat16")
    )
    assert kinds == {torch.float32, torch.bfloat16}
    assert half.samples.dtype == torch.float32
    whole = [found.sums.maps().sum(dim=(1, 2, 3)) for found in (one, half)]
    assert float((whole[1] / whole[0] - 1).abs().max()) < 0.01


def test_the_projection_reaches_the_measurement_and_its_sums_are_no_nats() -> None:
    operator = parse("inpaint:grid=4,noise=0.01")
    y = measured(operator, 2, 16)
    found = run(PredictorCorrector(steps=40, samples=2, share=1.0, sigma_min=0.01), operator, y, 16)
    assert float(found.residual.max()) < 2.0
    assert not PredictorCorrector().nats
    assert EDM().nats
    assert not EDM(guidance="dps").nats


def test_a_bright_disc_raises_the_blocks_where_it_lies() -> None:
    operator = parse("identity:noise=0.2")
    clean = 0.3 * drawn((1, 1, 32, 32), 9)
    odd = clean.clone()
    odd[:, :, 8:16, 16:24] += 1.0
    noise = 0.2 * drawn((1, 1, 32, 32), 10)
    y = torch.cat([clean + noise, odd + noise])
    found = sample(gaussian, y, operator, EDM(steps=40, samples=4), size=(32, 32), seeds=[7, 7], windows=1, block=8).sums.maps()[:, 0]
    difference = found[1] - found[0]
    assert float(difference[1, 2]) > 10 * float(difference.abs().flatten().sort().values[-2])


def test_samples_that_run_away_are_refused() -> None:
    operator = parse("identity")
    y = measured(operator, 2, 8)
    with pytest.raises(SignalError, match=r"(ran away|not finite)"):
        sample(lambda x, sigma: x * 1e30, y.float(), operator, EDM(steps=20, samples=1), size=(8, 8), seeds=[1, 2])


def test_bad_input_is_refused() -> None:
    operator = parse("ct:views=6")
    y = measured(operator, 2, 16)
    broken = y.clone()
    broken[1, 0, 2, 3] = torch.nan
    with pytest.raises(SignalError, match=r"not finite in rows \[1\]"):
        run(SAMPLERS[0], operator, broken, 16)
    with pytest.raises(SignalError, match="ct:views=5"):
        run(SAMPLERS[0], operator, y[:, :, :5], 16)
    with pytest.raises(SignalError, match="blocks of 1, 2, 4, 8, 16 fit"):
        run(SAMPLERS[0], operator, y, 16, block=5)
    with pytest.raises(ConfigError, match="multiple of the windows"):
        run(SAMPLERS[0], operator, y, 16, windows=3)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (EDM, {"steps": 1}),
        (EDM, {"sigma_min": 90.0}),
        (EDM, {"guidance": "none"}),
        (EDM, {"start": "mean"}),
        (EDM, {"strength": 0.0}),
        (EDM, {"rho": 0.5}),
        (DDPM, {"beta_min": 0.5}),
        (DDPM, {"sigma_max": 0.1, "steps": 500}),
        (Langevin, {"rate": 2.0}),
        (PredictorCorrector, {"share": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(cls: type[Sampler], values: dict[str, object]) -> None:
    key = next(iter(values))
    with pytest.raises(ConfigError, match=key):
        cls.from_params(values)


def test_levels_of_the_references() -> None:
    expected: Sequence[float] = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert EDM(steps=18, sigma_min=0.002).sigmas()[:-1] == pytest.approx(expected)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert DDPM(steps=1000).sigmas()[0] == pytest.approx(float(np.sqrt((1 - kept[-1]) / kept[-1])))
    assert DDPM(steps=1000).sigmas()[-2] == pytest.approx(float(np.sqrt((1 - kept[0]) / kept[0])))
    assert Level(0, 2.0, 1.0).length == 3.0

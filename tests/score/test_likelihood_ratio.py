"""The likelihood ratio: its arithmetic, what it cancels, and what it cannot."""

import numpy as np
import pytest
import torch
from scipy import stats
from tests.score.bound_signals import parts
from tests.score.likelihood_signals import BACKGROUND, beside

from offmap.core.errors import ConfigError, SignalError
from offmap.score.elbo import ELBO
from offmap.score.likelihood_ratio import LikelihoodRatio

OWN = "elbo.parts:samples=1"


def given(count: int, seed: int) -> dict[str, torch.Tensor]:
    return parts(count, seed=seed) | beside(count, seed=seed + 100)


def test_it_is_the_difference_of_two_bounds_a_pixel_value() -> None:
    test = given(9, 2)
    expected = [((b[0] - b[1]) - (o[0] - o[1])) / o[2] for o, b in zip(test[OWN].tolist(), test[BACKGROUND].tolist(), strict=True)]
    np.testing.assert_allclose(LikelihoodRatio().fit([given(5, 1)]).score(test).numpy(), expected, rtol=1e-5)


def test_what_both_models_know_of_an_image_cancels_out() -> None:
    """Two independent halves: the background is known equally to both; only the other half tells."""
    rng = np.random.default_rng(0)
    background, content = rng.normal(0, 3, (200, 20)), rng.normal(0, 1, (200, 20))
    odd = content[:100] + 1.5
    shared = stats.norm(0, 3).logpdf(background).sum(axis=1)

    def signals(x: np.ndarray, ground: np.ndarray) -> dict[str, torch.Tensor]:
        full = ground + stats.norm(0, 1).logpdf(x).sum(axis=1)
        coarse = ground + stats.norm(0, 4).logpdf(x).sum(axis=1)
        rows = [np.stack([p, 0 * p, 0 * p + 40], axis=1) for p in (full, coarse)]
        return {OWN: torch.from_numpy(rows[0]), BACKGROUND: torch.from_numpy(rows[1])}

    usual, other = signals(content[100:], 20 * shared[100:]), signals(odd, 20 * shared[:100])

    def area(fitted: object) -> float:
        one, two = (fitted.score(s).double() for s in (usual, other))  # type: ignore[attr-defined]
        return float((two[:, None] > one).double().mean())

    assert area(LikelihoodRatio().fit([usual])) > 0.95
    assert area(ELBO().fit([usual])) < 0.75


def test_trap_equal_models_say_nothing() -> None:
    own = parts(9, seed=1)
    assert LikelihoodRatio().fit([own | {BACKGROUND: own[OWN]}]).score(own | {BACKGROUND: own[OWN]}).tolist() == [0.0] * 9


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples = -1"):
        LikelihoodRatio(samples=-1)
    with pytest.raises(SignalError, match=r"elbo\.background:samples=1 of shape \(5, 2\) must be \(N, 3\)"):
        LikelihoodRatio().fit([parts(5, seed=1) | {BACKGROUND: torch.zeros(5, 2)}])
    with pytest.raises(SignalError, match=r"needs the signals elbo\.background"):
        LikelihoodRatio().fit([parts(5, seed=1)])

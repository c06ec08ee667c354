"""WeiPer+KLD against histograms counted one by one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.detector import Fitted
from offmap.core.errors import ConfigError, SignalError
from offmap.score.msp import MSP
from offmap.score.weiper_kld import WeiPerKLD

Signals = dict[str, Tensor]
BINS, SPAN = 20, 3


def histogram(values: np.ndarray, low: float, high: float) -> np.ndarray:
    counts = np.zeros(BINS)
    for value in values:
        counts[min(BINS - 1, max(0, int(np.floor((value - low) / (high - low) * BINS))))] += 1
    smooth = np.array([np.mean(counts[max(0, i - SPAN // 2) : i + SPAN // 2 + 1]) for i in range(BINS)])
    return np.asarray(0.99 * smooth / smooth.sum() + 0.01 / BINS)


def divergence(fit: np.ndarray, test: np.ndarray) -> np.ndarray:
    low, high = fit.min(), fit.max()
    mean = np.mean([histogram(row, low, high) for row in fit], axis=0)
    found = [histogram(row, low, high) for row in test]
    return np.array([np.sum(mean * np.log(mean / p)) + np.sum(p * np.log(p / mean)) for p in found])


def naive(fitted: Fitted, fit: Signals, test: Signals, weight: float, trust: float) -> np.ndarray:
    """Everything but the perturbed head itself, which is drawn at random."""
    rows, queries, bias = (s.numpy() for s in (fit["features.penultimate"], test["features.penultimate"], fit["head.bias"]))
    head = fitted.state["weight"].double().numpy()
    logits = (queries @ head.T).reshape(len(queries), -1, len(bias)) + bias
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    msp = np.mean(powers.max(axis=2) / powers.sum(axis=2), axis=1)
    return np.asarray(weight * divergence(rows, queries) + divergence(rows @ head.T, queries @ head.T) - trust * msp)


def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = WeiPerKLD(weight=1.5, trust=0.7, projections=30, bins=BINS, smooth=SPAN).fit(batches)
    assert fitted.state["weight"].shape == (30, 12)
    found, expected = fitted.score(unseen).numpy(), naive(fitted, fit_signals, unseen, 1.5, 0.7)
    close = np.isclose(found, expected, rtol=1e-4, atol=1e-5)
    assert close.mean() > 0.9  # a float32 projection may fall on the other side of a bin's edge
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.05)


def test_the_noise_has_the_length_asked_for(batches: list[Signals], fit_signals: Signals) -> None:
    weight = fit_signals["head.weight"]
    noise = WeiPerKLD(perturbation=0.5, projections=7).fit(batches).state["weight"].double() - weight.repeat(2, 1)
    torch.testing.assert_close(noise.norm(dim=1), 0.5 * weight.norm(dim=1).repeat(2), rtol=1e-4, atol=1e-6)


def test_without_noise_the_last_term_is_msp(batches: list[Signals], unseen: Signals) -> None:
    plain, trusting = (WeiPerKLD(perturbation=0.0, trust=t).fit(batches).score(unseen) for t in (0.0, 1.0))
    torch.testing.assert_close(plain - trusting, 1 - MSP().fit(batches).score(unseen), rtol=1e-4, atol=1e-4)


def test_many_classes_are_not_repeated_beyond_the_number_of_projections(batches: list[Signals]) -> None:
    assert WeiPerKLD(projections=2).fit(batches).state["weight"].shape == (3, 12)


def test_the_average_image_diverges_least(batches: list[Signals], unseen: Signals) -> None:
    fitted = WeiPerKLD().fit(batches)
    silent = {"features.penultimate": torch.zeros(1, 12, dtype=torch.float64)}
    assert float(fitted.score(silent)) > float(fitted.score(unseen).max())


def test_known_failure_activations_that_change_places_are_not_seen_without_the_head(batches: list[Signals], unseen: Signals) -> None:
    mixed = {"features.penultimate": unseen["features.penultimate"].flip(1)}
    without, with_activations = (WeiPerKLD(weight=w).fit(batches) for w in (0.0, 1.0))
    divergence = [with_activations.score(signals) - without.score(signals) for signals in (mixed, unseen)]
    torch.testing.assert_close(divergence[0], divergence[1], rtol=1e-4, atol=1e-4)
    assert float((without.score(mixed) - without.score(unseen)).abs().median()) > 0.1


def test_what_does_not_fit_is_refused(batches: list[Signals], unseen: Signals) -> None:
    with pytest.raises(SignalError, match=r"head\.weight \(3, 5\)"):
        WeiPerKLD().fit([{**b, "head.weight": b["head.weight"][:, :5]} for b in batches])
    with pytest.raises(SignalError, match="activations of all images are 0"):
        WeiPerKLD().fit([{**b, "features.penultimate": torch.zeros_like(b["features.penultimate"])} for b in batches])
    with pytest.raises(SignalError, match="12, as when it was fitted"):
        WeiPerKLD().fit(batches).score({"features.penultimate": unseen["features.penultimate"][:, :5]})


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"trust": -1.0}, {"perturbation": -0.1}, {"projections": 0}, {"bins": 1}, {"smooth": 4}, {"smooth": 201}]
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WeiPerKLD.from_params(wrong)

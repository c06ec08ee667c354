"""Evidential vacuity against its formula, a network trained for it, and the networks for which it means nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError, SignalError
from offmap.score.evidential import Evidence, Evidential
from offmap.score.msp import MSP

EVIDENCE = {"softplus": lambda z: np.log1p(np.exp(z)), "relu": lambda z: np.maximum(z, 0), "exp": np.exp}


def score(logits: Tensor, evidence: Evidence = "softplus") -> Tensor:
    return Evidential(evidence=evidence).fit([{"logits": logits}]).score({"logits": logits})


@pytest.mark.parametrize("evidence", ["softplus", "relu", "exp"])
def test_it_equals_the_formula(evidence: Evidence) -> None:
    logits = 4 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = EVIDENCE[evidence](logits.numpy()) + 1
    np.testing.assert_allclose(score(logits, evidence).numpy(), 5 / alpha.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("evidence", ["softplus", "relu", "exp"])
def test_no_evidence_is_one_and_any_evidence_is_less_and_nothing_overflows(evidence: Evidence) -> None:
    nothing, one, several = score(torch.tensor([[-500.0, -500.0, -500.0], [60.0, -500.0, -500.0], [60.0, 60.0, 60.0]]), evidence).tolist()
    assert nothing == 1.0
    assert 0 < several < one < 1
    assert bool(score(torch.tensor([[3e4, 0.0], [-3e4, 0.0]]), evidence).isfinite().all())


def trained(*, constant: bool) -> tuple[Tensor, Tensor]:
    """Scores of two classes and of distant points: a head on radial features, with a constant feature or without.

    Trained with the expected squared error under the Dirichlet and the divergence of the evidence for other classes from none.
    """
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    labels = torch.arange(200) % 2
    points, distant = centres[labels] + 0.5 * torch.randn(200, 2, generator=rng), torch.tensor([[0.0, 8.0], [0.0, -8.0], [20.0, 0.0]])

    def features(x: Tensor) -> Tensor:
        return torch.cat([(-0.3 * torch.cdist(x, centres).square()).exp(), torch.full((len(x), 1), float(constant))], dim=1)

    weight = torch.zeros(2, 3, requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=0.1)
    target = functional.one_hot(labels, 2).float()
    for _ in range(300):
        alpha = functional.softplus(features(points) @ weight.T) + 1
        p, strength = alpha / alpha.sum(dim=1, keepdim=True), alpha.sum(dim=1, keepdim=True)
        loss = ((target - p).square() + p * (1 - p) / (strength + 1)).sum(dim=1)
        others = torch.distributions.Dirichlet(target + (1 - target) * alpha)
        divergence = torch.distributions.kl_divergence(others, torch.distributions.Dirichlet(torch.ones_like(alpha)))
        optimiser.zero_grad()
        (loss + 0.5 * divergence).mean().backward()
        optimiser.step()
    usual, odd = (score((features(x) @ weight.T).detach()) for x in (points, distant))
    return usual, odd


def test_a_network_trained_for_it_has_no_evidence_where_it_has_seen_nothing() -> None:
    usual, odd = trained(constant=False)
    assert float(usual.quantile(0.9)) < 0.3 < 0.5 < float(odd.min())


def test_known_failure_nothing_keeps_evidence_from_images_without_a_class() -> None:
    """With a constant feature, which training is free to use, distant points get more evidence than softplus gives for nothing."""
    assert float(trained(constant=True)[1].min()) < 0.8 * float(trained(constant=False)[1].min())


def test_known_failure_after_cross_entropy_it_changes_where_no_probability_does() -> None:
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    moved = logits + 5.0
    msp = MSP().fit([{"logits": logits}])
    torch.testing.assert_close(msp.score({"logits": logits}), msp.score({"logits": moved}), rtol=1e-4, atol=1e-6)
    assert bool((score(moved) < 0.6 * score(logits)).all())


def test_known_failure_relu_ties_all_images_without_a_positive_logit() -> None:
    logits = -torch.rand(10, 3, generator=torch.Generator().manual_seed(2)) - 0.1
    assert score(logits, "relu").unique().tolist() == [1.0]
    assert len(score(logits).unique()) == 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="evidence = 'sigmoid' must be one of 'softplus', 'relu', 'exp'"):
        Evidential.from_params({"evidence": "sigmoid"})
    with pytest.raises(SignalError, match="evidential needs two logits or more"):
        score(torch.zeros(3, 1))

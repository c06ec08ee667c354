"""Mutual information against its formula, the mean divergence, and where it vanishes."""

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from tests.score.passes import entropies, several

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mc_dropout_entropy import MCDropoutEntropy
from offmap.score.mc_dropout_mutual_information import MCDropoutMutualInformation

NAME = "mc_dropout.logits:passes=6"


def test_it_equals_the_formula() -> None:
    got = MCDropoutMutualInformation(samples=6).fit([{NAME: several()}]).score({NAME: several(seed=1)})
    of_mean, mean_of = entropies(several(seed=1))
    np.testing.assert_allclose(got.numpy(), of_mean - mean_of, rtol=1e-5, atol=1e-9)


def test_it_equals_the_mean_divergence_from_the_mean() -> None:
    p = softmax(several().numpy(), axis=2)
    expected = rel_entr(p, p.mean(axis=1, keepdims=True)).sum(axis=2).mean(axis=1)
    got = MCDropoutMutualInformation(samples=6).fit([{NAME: several()}]).score({NAME: several()})
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_passes_that_agree_give_zero_however_undecided() -> None:
    fitted = MCDropoutMutualInformation(samples=6).fit([{NAME: several()}])
    scores = fitted.score({NAME: several(passes=1).expand(-1, 6, -1)})
    assert float(scores.abs().max()) < 1e-14
    assert float(fitted.score({NAME: torch.zeros(1, 6, 4)})) == 0.0


def test_small_disagreement_does_not_cancel() -> None:
    """Half of the passes 1e-6 to one side: the variance of p over 2 p (1 - p), here 2.5e-13 * p (1 - p)."""
    logits = torch.zeros(1, 6, 2, dtype=torch.float64)
    logits[0, ::2, 0], logits[0, 1::2, 0] = 1e-6, -1e-6
    fitted = MCDropoutMutualInformation(samples=6).fit([{NAME: torch.zeros(1, 6, 2)}])
    assert float(fitted.score({NAME: logits})) == pytest.approx(1e-12 / 8, rel=1e-3)


def test_opposite_answers_give_all_of_the_entropy() -> None:
    logits = torch.zeros(1, 6, 2)
    logits[0, ::2, 0] = logits[0, 1::2, 1] = 500.0
    fitted = MCDropoutMutualInformation(samples=6).fit([{NAME: torch.zeros(1, 6, 2)}])
    assert float(fitted.score({NAME: logits})) == pytest.approx(math.log(2))


def test_known_failure_no_mask_turns_large_logits_over() -> None:
    fitted = MCDropoutMutualInformation(samples=6).fit([{NAME: several()}])
    far = 200 * several(passes=1) + several(spread=1.0) * 0.1
    assert float(fitted.score({NAME: far}).median()) < float(fitted.score({NAME: several()}).median())


def test_it_shares_its_passes_with_the_entropy() -> None:
    assert MCDropoutMutualInformation(samples=9).needs == MCDropoutEntropy(samples=9).needs


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="mc_dropout_mutual_information: samples = 1"):
        MCDropoutMutualInformation(samples=1)
    with pytest.raises(SignalError, match="mc_dropout_mutual_information needs two logits or more"):
        MCDropoutMutualInformation(samples=6).fit([{NAME: torch.zeros(3, 6, 1)}])

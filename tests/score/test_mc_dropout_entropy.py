"""Predictive entropy against its formula and scipy, its limits, and what it needs."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from tests.score.passes import entropies, several

from offmap.core.errors import ConfigError, SignalError
from offmap.score.entropy import Entropy
from offmap.score.mc_dropout_entropy import MCDropoutEntropy

NAME = "mc_dropout.logits:passes=6"


def test_it_equals_the_formula_and_scipy() -> None:
    got = MCDropoutEntropy(samples=6).fit([{NAME: several()}]).score({NAME: several(seed=1)}).numpy()
    np.testing.assert_allclose(got, entropies(several(seed=1))[0], rtol=1e-6)
    np.testing.assert_allclose(got, entropy(softmax(several(seed=1).numpy(), axis=2).mean(axis=1), axis=1), rtol=1e-6)


def test_passes_that_agree_give_the_entropy_of_one() -> None:
    logits = several(passes=1)
    got = MCDropoutEntropy(samples=6).fit([{NAME: several()}]).score({NAME: logits.expand(-1, 6, -1)})
    torch.testing.assert_close(got, Entropy().fit([{"logits": logits[:, 0]}]).score({"logits": logits[:, 0]}))


def test_opposite_answers_are_undecided_though_each_is_sure() -> None:
    logits = torch.zeros(1, 6, 2)
    logits[0, ::2, 0] = logits[0, 1::2, 1] = 500.0
    fitted = MCDropoutEntropy(samples=6).fit([{NAME: torch.zeros(1, 6, 2)}])
    assert float(fitted.score({NAME: logits})) == pytest.approx(math.log(2))
    assert float(fitted.score({NAME: logits[:, :1].expand(-1, 6, -1)})) == 0.0


def test_known_failure_large_logits_are_sure_whatever_the_mask() -> None:
    fitted = MCDropoutEntropy(samples=6).fit([{NAME: several()}])
    assert float(fitted.score({NAME: 100 * several()}).median()) < float(fitted.score({NAME: several()}).median())


def test_it_reads_the_passes_that_it_asks_for() -> None:
    assert MCDropoutEntropy().needs == {"mc_dropout.logits:passes=30"}


@pytest.mark.parametrize("samples", [1, 0, 1001])
def test_a_number_of_passes_out_of_range_is_refused(samples: int) -> None:
    with pytest.raises(ConfigError, match=f"mc_dropout_entropy: samples = {samples} must be between 2 and 1000"):
        MCDropoutEntropy(samples=samples)


def test_shapes_that_do_not_fit_are_refused() -> None:
    detector = MCDropoutEntropy(samples=6)
    with pytest.raises(SignalError, match="needs two logits or more"):
        detector.fit([{NAME: torch.zeros(3, 6, 1)}])
    with pytest.raises(SignalError, match=r"of shape \(3, 6\) must be \(N, S, K\)"):
        detector.fit([{NAME: torch.zeros(3, 6)}])
    with pytest.raises(SignalError, match=r"different shapes \[\(6, 3\), \(6, 4\)\]"):
        detector.fit([{NAME: torch.zeros(3, 6, 3)}, {NAME: torch.zeros(3, 6, 4)}])
    with pytest.raises(SignalError, match=r"with S, K = \[6, 4\], as when it was fitted"):
        detector.fit([{NAME: several()}]).score({NAME: torch.zeros(3, 5, 4)})

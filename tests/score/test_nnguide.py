"""NNGuide against its formula, and the sign of the confidence."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.nnguide import NNGuide

Signals = dict[str, Tensor]


def lifted(signals: Signals) -> Signals:
    """Logits plus a constant, so that every logsumexp is positive."""
    return {**signals, "logits": signals["logits"] + 10}


@pytest.mark.parametrize("k", [1, 10, 500])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, k: int) -> None:
    fit, query = lifted(fit_signals), lifted(unseen)
    rows, queries = (s["features.penultimate"].numpy() for s in (fit, query))
    bank = logsumexp(fit["logits"].numpy(), axis=1)[:, None] * rows / np.linalg.norm(rows, axis=1, keepdims=True)
    products = np.sort(queries / np.linalg.norm(queries, axis=1, keepdims=True) @ bank.T, axis=1)[:, ::-1][:, :k]
    expected = -logsumexp(query["logits"].numpy(), axis=1) * products.mean(axis=1)
    np.testing.assert_allclose(NNGuide(k=k).fit([lifted(b) for b in batches]).score(query).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_bank_is_bounded_by_a_sample(batches: list[Signals]) -> None:
    assert tuple(NNGuide(max_bank=30).fit([lifted(b) for b in batches]).state["bank"].shape) == (30, 12)


def test_known_failure_negative_confidence_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="must be positive; use knn"):
        NNGuide().fit([{**b, "logits": b["logits"] - 1000} for b in batches])


def test_known_failure_confidence_outweighs_unlikeness(batches: list[Signals], unseen: Signals) -> None:
    fitted = NNGuide().fit([lifted(b) for b in batches])
    sure = {**unseen, "logits": unseen["logits"] + 1e4}
    assert float(fitted.score(sure).median()) < float(fitted.score(lifted(unseen)).min())


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 5, "max_bank": 4}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="nnguide"):
        NNGuide.from_params(wrong)


def test_batches_of_different_widths_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="different widths"):
        NNGuide().fit([batches[0], {**batches[1], "logits": torch.zeros(40, 5)}])

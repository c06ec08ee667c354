"""Entropy against scipy, at its ends, and where it fails."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score.entropy import Entropy

Signals = dict[str, Tensor]


def test_it_equals_scipy(batches: list[Signals], unseen: Signals) -> None:
    expected = entropy(softmax(unseen["logits"].numpy(), axis=1), axis=1)
    np.testing.assert_allclose(Entropy().fit(batches).score(unseen).numpy(), expected, rtol=1e-5, atol=1e-9)


def test_a_probability_of_zero_adds_zero() -> None:
    fitted = Entropy().fit([{"logits": torch.zeros(1, 3)}])
    scores = fitted.score({"logits": torch.tensor([[1e4, 0.0, -1e4], [5.0, 5.0, -1e4], [2.0, 2.0, 2.0]])})
    np.testing.assert_allclose(scores.numpy(), [0.0, np.log(2), np.log(3)], rtol=1e-6)


def test_sure_predictions_keep_their_order() -> None:
    fitted = Entropy().fit([{"logits": torch.zeros(1, 2)}])
    assert fitted.score({"logits": torch.tensor([[60.0, 0.0], [40.0, 0.0], [20.0, 0.0]])}).diff().min() > 0


def test_known_failure_distant_images_look_sure(batches: list[Signals], unseen: Signals) -> None:
    fitted = Entropy().fit(batches)
    assert float(fitted.score({"logits": unseen["logits"] * 100}).median()) < float(fitted.score(unseen).median())


def test_one_logit_is_refused() -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        Entropy().fit([{"logits": torch.zeros(3, 1)}])

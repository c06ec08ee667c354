"""MSP against scipy, and where it saturates or fails."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score.msp import MSP

Signals = dict[str, Tensor]


def test_it_equals_scipy(batches: list[Signals], unseen: Signals) -> None:
    expected = 1 - softmax(unseen["logits"].numpy(), axis=1).max(axis=1)
    np.testing.assert_allclose(MSP().fit(batches).score(unseen).numpy(), expected, rtol=1e-5, atol=1e-12)


def test_sure_predictions_keep_their_order() -> None:
    fitted = MSP().fit([{"logits": torch.zeros(1, 2)}])
    scores = fitted.score({"logits": torch.tensor([[40.0, 0.0], [30.0, 0.0], [20.0, 0.0]])})
    np.testing.assert_allclose(scores.numpy(), 1 / (1 + np.exp([40.0, 30.0, 20.0])), rtol=1e-6)


def test_even_logits_give_the_largest_score() -> None:
    fitted = MSP().fit([{"logits": torch.zeros(1, 4)}])
    assert float(fitted.score({"logits": torch.full((1, 4), 9.0)})) == pytest.approx(0.75)


def test_known_failure_distant_images_look_sure(batches: list[Signals], unseen: Signals) -> None:
    fitted = MSP().fit(batches)
    far = unseen["features.last"] * 100
    distant = {"logits": far @ unseen["head.weight"].T + unseen["head.bias"]}
    assert float(fitted.score(distant).median()) <= float(fitted.score(unseen).median())


def test_one_logit_is_refused() -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        MSP().fit([{"logits": torch.zeros(3, 1)}])


def test_another_number_of_classes_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"\(2, 7\) must be \(N, 3"):
        MSP().fit(batches).score({"logits": torch.zeros(2, 7)})
    with pytest.raises(SignalError, match="different widths"):
        MSP().fit([{"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(2, 4)}])

"""KL matching against scipy's relative entropy, the direction of the divergence, and empty templates."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.kl_matching import KLMatching

Signals = dict[str, Tensor]


def oracle(fit: np.ndarray, query: np.ndarray) -> np.ndarray:
    p, q = softmax(fit, axis=1), softmax(query, axis=1)
    templates = [p[p.argmax(axis=1) == c].mean(axis=0) for c in range(p.shape[1])]
    return np.array([min(entropy(row, template) for template in templates) for row in q])


def test_it_equals_scipy_in_the_direction_image_to_template(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    expected = oracle(fit_signals["logits"].numpy(), unseen["logits"].numpy())
    np.testing.assert_allclose(KLMatching().fit(batches).score(unseen).numpy(), expected, rtol=1e-4, atol=1e-7)


def test_templates_come_from_held_out_images(batches: list[Signals], unseen: Signals) -> None:
    sure = [{**b, "logits": 50 * b["logits"]} for b in batches]
    fitted = KLMatching().fit(sure, held_out=[unseen])
    np.testing.assert_allclose(fitted.state["log_templates"].numpy(), KLMatching().fit([unseen]).state["log_templates"].numpy())


def test_a_class_never_predicted_has_a_one_hot_template_and_stays_finite() -> None:
    logits = torch.tensor([[9.0, 0.0, -2000.0], [0.0, 9.0, -2000.0]])
    fitted = KLMatching().fit([{"logits": logits}])
    scores = fitted.score({"logits": torch.tensor([[0.0, 0.0, 50.0], [9.0, 0.0, -2000.0], [3.0, 3.0, 3.0]])})
    assert float(scores[0]) == pytest.approx(0.0, abs=1e-5)
    assert float(scores[1]) == pytest.approx(0.0, abs=1e-5)
    assert float(scores[2]) > 5


def test_labels_are_not_read(batches: list[Signals], unlabelled: list[Signals], unseen: Signals) -> None:
    assert torch.equal(KLMatching().fit(batches).score(unseen), KLMatching().fit(unlabelled).score(unseen))


def test_known_failure_a_sure_prediction_is_usual_however_distant(batches: list[Signals], unseen: Signals) -> None:
    fitted = KLMatching().fit(batches)
    distant = fitted.score({"logits": unseen["logits"] * 100})
    assert float(distant.median()) <= float(fitted.score(unseen).quantile(0.95))


@pytest.mark.parametrize("floor", [0.0, -1.0, 0.1, float("nan")])
def test_a_floor_out_of_range_is_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match="floor"):
        KLMatching(floor=floor)


def test_one_logit_is_refused() -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        KLMatching().fit([{"logits": torch.zeros(3, 1)}])

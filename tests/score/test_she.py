"""SHE against its formula: patterns of rightly classified images, and what stands in where there are none."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.score._targets import Targets
from offmap.score.she import SHE

Signals = dict[str, Tensor]


def oracle(rows: np.ndarray, logits: np.ndarray, right: np.ndarray, query: np.ndarray, query_logits: np.ndarray) -> np.ndarray:
    which = logits.argmax(axis=1)
    patterns = [rows[(which == c) & (right == c)].mean(axis=0) for c in range(logits.shape[1])]
    return np.array([-float(h @ patterns[c]) for h, c in zip(query, query_logits.argmax(axis=1), strict=True)])


def test_it_equals_the_formula_of_rightly_classified_images(fit_signals: Signals, unseen: Signals) -> None:
    labels = fit_signals["label"].clone()
    labels[:30] = -4
    right = np.searchsorted([-4, 7, 100], labels.numpy())
    rows, logits = fit_signals["features.penultimate"].numpy(), fit_signals["logits"].numpy()
    assert (logits.argmax(axis=1) != right).sum() > 10
    expected = oracle(rows, logits, right, unseen["features.penultimate"].numpy(), unseen["logits"].numpy())
    got = SHE().fit([{**fit_signals, "label": labels}]).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_without_labels_every_prediction_counts(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows, logits = fit_signals["features.penultimate"].numpy(), fit_signals["logits"].numpy()
    expected = oracle(rows, logits, logits.argmax(axis=1), unseen["features.penultimate"].numpy(), unseen["logits"].numpy())
    np.testing.assert_allclose(SHE().fit(unlabelled).score(unseen).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_class_that_is_never_right_takes_all_its_images() -> None:
    rows = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0], [0.0, 2.0]])
    logits = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 1.0, 0.0], [3.0, 2.0, 0.0]])
    fitted = SHE().fit([{"features.penultimate": rows, "logits": logits, "label": torch.tensor([5, 5, 6, 6])}])
    assert fitted.state["patterns"].tolist() == [[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]


def test_a_class_never_seen_scores_zero() -> None:
    rows = torch.tensor([[2.0, 1.0], [4.0, 1.0]])
    fitted = SHE().fit([{"features.penultimate": rows, "logits": torch.tensor([[3.0, 0.0], [3.0, 0.0]])}])
    assert float(fitted.score({"features.penultimate": rows[:1], "logits": torch.tensor([[0.0, 1.0]])})) == 0.0


def test_known_failure_long_features_look_usual(batches: list[Signals], unseen: Signals) -> None:
    fitted = SHE().fit(batches)
    usual = fitted.score(unseen)
    longer = fitted.score({**unseen, "features.penultimate": 3 * unseen["features.penultimate"]})
    assert float(longer[usual < 0].max()) < float(usual[usual < 0].max())


def test_labels_in_some_batches_only_are_refused(batches: list[Signals], unlabelled: list[Signals]) -> None:
    with pytest.raises(SignalError, match="some batches have the signal label"):
        SHE().fit([batches[0], unlabelled[1]])


def test_labels_are_matched_to_the_likeliest_logits_one_to_one() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    batch = {"logits": logits, "label": torch.tensor([70, -3, 8])}
    targets = Targets.learn([batch], "she")
    assert dict(zip(targets.labels.tolist(), targets.logits.tolist(), strict=True)) == {-3: 2, 8: 1, 70: 0}
    assert targets(batch, "she").tolist() == [0, 2, 1]


def test_labels_beyond_the_number_of_logits_share_one() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 4.0]], dtype=torch.float64)
    targets = Targets.learn([{"logits": logits, "label": torch.tensor([1, 2, 3])}], "she")
    assert targets.logits.tolist() == [0, 1, 1]

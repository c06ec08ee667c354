"""NCI against its formula, and classes with long weights."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.nci import NCI

Signals = dict[str, Tensor]


@pytest.mark.parametrize("alpha", [0.0, 1e-4, 0.1])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, alpha: float) -> None:
    weight, rows, logits = (s.numpy() for s in (fit_signals["head.weight"], unseen["features.penultimate"], unseen["logits"]))
    centred = rows - fit_signals["features.penultimate"].numpy().mean(axis=0)
    expected = [
        -(c @ weight[z.argmax()]) / np.linalg.norm(c) - alpha * np.abs(h).sum() for c, z, h in zip(centred, logits, rows, strict=True)
    ]
    np.testing.assert_allclose(NCI(alpha=alpha).fit(batches).score(unseen).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_feature_itself_scores_finitely(batches: list[Signals], fit_signals: Signals) -> None:
    mean = fit_signals["features.penultimate"].mean(dim=0, keepdim=True)
    score = NCI(alpha=0.0).fit(batches).score({"features.penultimate": mean, "logits": torch.zeros(1, 3)})
    assert abs(float(score)) < 1.0


def test_known_failure_a_class_with_long_weights_looks_usual(batches: list[Signals], unseen: Signals) -> None:
    longer = torch.tensor([[10.0], [1.0], [1.0]], dtype=torch.float64)
    fitted = NCI(alpha=0.0).fit([{**b, "head.weight": longer * b["head.weight"]} for b in batches])
    plain = NCI(alpha=0.0).fit(batches).score(unseen)
    first = (unseen["logits"].argmax(dim=1) == 0) & (plain < 0)
    assert bool(first.any())
    assert float(fitted.score(unseen)[first].max()) < float(plain[first].max())


def test_bad_input_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"\(K, D\) and \(K,\) expected"):
        NCI().fit([{**b, "head.bias": b["head.bias"][:2]} for b in batches])
    for alpha in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="alpha"):
            NCI(alpha=alpha)

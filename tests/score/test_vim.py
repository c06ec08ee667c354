"""ViM against its formula."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.vim import ViM, default_components

Signals = dict[str, Tensor]


@pytest.mark.parametrize("components", [None, 3])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, components: int | None) -> None:
    weight, bias, rows, logits = (fit_signals[k].numpy() for k in ("head.weight", "head.bias", "features.penultimate", "logits"))
    origin = -np.linalg.pinv(weight) @ bias
    second = (rows - origin).T @ (rows - origin)
    outside = np.linalg.svd(second)[0][:, components or 6 :]
    alpha = logits.max(axis=1).mean() / np.linalg.norm((rows - origin) @ outside, axis=1).mean()
    queries = unseen["features.penultimate"].numpy()
    expected = alpha * np.linalg.norm((queries - origin) @ outside, axis=1) - logsumexp(unseen["logits"].numpy(), axis=1)
    fitted = ViM(components=components).fit(batches)
    assert float(fitted.state["alpha"]) == pytest.approx(alpha, rel=1e-9)
    np.testing.assert_allclose(fitted.score(unseen).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "count"), [(2048, 1000), (4096, 1000), (768, 512), (1024, 512), (512, 256), (1, 0)])
def test_components_follow_the_width(width: int, count: int) -> None:
    assert default_components(width) == count


def test_the_head_is_needed_to_fit_and_not_to_score(batches: list[Signals], unseen: Signals) -> None:
    fitted = ViM().fit(batches)
    bare = {k: v for k, v in unseen.items() if not k.startswith("head.")}
    assert torch.equal(fitted.score(bare), fitted.score(unseen))
    with pytest.raises(SignalError, match=r"head\.bias, head\.weight"):
        ViM().fit([{k: v for k, v in b.items() if not k.startswith("head.")} for b in batches])


def test_known_failure_negative_top_logits_would_turn_it_round_and_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="must both be positive"):
        ViM().fit([{**b, "logits": b["logits"] - 100} for b in batches])


def test_known_failure_large_logits_outweigh_the_residual(batches: list[Signals], unseen: Signals) -> None:
    fitted = ViM().fit(batches)
    sure = {**unseen, "features.penultimate": unseen["features.penultimate"] + 3.0, "logits": unseen["logits"] + 50}
    assert float(fitted.score(sure).max()) < float(fitted.score(unseen).min())


def test_a_head_of_another_width_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"\(K, D\) and \(K,\) expected"):
        ViM().fit([{**b, "head.weight": b["head.weight"][:, :5]} for b in batches])


def test_no_components_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        ViM(components=0)

"""ReAct against its formula with NumPy's percentile, and features it must refuse."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score._shaping import Activations
from offmap.score.react import ReAct

Signals = dict[str, Tensor]


@pytest.mark.parametrize("percentile", [70.0, 90.0, 100.0])
def test_it_equals_the_formula(
    rectified_batches: list[Signals], rectified_signals: Signals, rectified_unseen: Signals, percentile: float
) -> None:
    weight, bias, rows = (rectified_signals[k].numpy() for k in ("head.weight", "head.bias", "features.penultimate"))
    top = np.percentile(rows, percentile, method="inverted_cdf")
    expected = -logsumexp(np.minimum(rectified_unseen["features.penultimate"].numpy(), top) @ weight.T + bias, axis=1)
    fitted = ReAct(percentile=percentile).fit(rectified_batches)
    assert float(fitted.state["ceiling"]) == pytest.approx(top, rel=1e-8)
    np.testing.assert_allclose(fitted.score(rectified_unseen).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("percent", [1.0, 37.5, 50.0, 99.9])
def test_the_streamed_percentile_equals_numpy(percent: float) -> None:
    rows = torch.randn(700, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp() ** 3
    batches = [{"features.penultimate": part} for part in rows.split(64)]
    got = Activations(batches, "react", 9).percentile(percent)
    assert got == pytest.approx(np.percentile(rows.numpy(), percent, method="inverted_cdf"), abs=2e-10 * float(rows.max()))


def test_activations_beyond_the_ceiling_add_nothing(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    fitted = ReAct().fit(rectified_batches)
    far = {**rectified_unseen, "features.penultimate": rectified_unseen["features.penultimate"] + 1e6}
    further = {**far, "features.penultimate": far["features.penultimate"] * 1e3}
    assert torch.equal(fitted.score(far), fitted.score(further))


def test_family_trap_features_with_negatives_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"react: .* are negative .*rectifier.*mahalanobis_pp or knn"):
        ReAct().fit(batches)


def test_negatives_in_a_later_batch_are_refused_as_well(rectified_batches: list[Signals], batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="are negative"):
        ReAct().fit([rectified_batches[0], batches[1]])


def test_a_ceiling_of_zero_is_refused(rectified_batches: list[Signals]) -> None:
    sparse = [{**b, "features.penultimate": b["features.penultimate"] * (torch.arange(12) == 0)} for b in rectified_batches]
    with pytest.raises(SignalError, match="activations are zero"):
        ReAct().fit(sparse)


def test_known_failure_fewer_units_instead_of_stronger_ones(rectified_batches: list[Signals], rectified_unseen: Signals) -> None:
    fitted = ReAct().fit(rectified_batches)
    weight = rectified_unseen["head.weight"]
    best = torch.where(weight[0] > 0, 100.0, 0.0)[None].double()
    assert float(fitted.score({"features.penultimate": best})) < float(fitted.score(rectified_unseen).median())


@pytest.mark.parametrize("percentile", [0.0, 101.0, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        ReAct(percentile=percentile)


def test_a_head_of_another_width_is_refused(rectified_batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"\(K, D\) and \(K,\) expected"):
        ReAct().fit([{**b, "head.weight": b["head.weight"][:, :5]} for b in rectified_batches])

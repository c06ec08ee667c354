"""MFS with k-NN: the choice against scipy's Wasserstein distance, the distance against scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from tests.score.conftest import MOVED, cut, moved
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score._moving import count, wasserstein
from offmap.score.knn import KNN
from offmap.score.mfs_knn import MFSKNN

Signals = dict[str, Tensor]


def test_the_distance_of_each_dimension_equals_scipy() -> None:
    fit = moved(70, seed=1)
    expected = [wasserstein_distance(a, b) for a, b in zip(fit["features.last"].T, fit["proxy_features.last"].T, strict=True)]
    np.testing.assert_allclose(wasserstein(fit["features.last"], fit["proxy_features.last"]).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("keep", "width", "kept"), [(0.01, 2560, 26), (0.01, 640, 20), (0.01, 24, 20), (0.01, 5, 5), (1.0, 1, 1), (0.5, 50, 25), (0.1, 300, 30)]
)
def test_at_least_twenty_dimensions_are_kept_where_there_are_so_many(keep: float, width: int, kept: int) -> None:
    assert count(keep, MFSKNN().least, width) == kept


@pytest.mark.parametrize("keep", [0.01, 9 / 40, 1.0])
def test_it_equals_scikit_learn_on_the_dimensions_that_moved(keep: float) -> None:
    fit, test = moved(200, seed=1), moved(50, seed=2)
    fitted = MFSKNN(keep=keep, least=8, k=4).fit(cut(fit))
    distances = [wasserstein_distance(a, b) for a, b in zip(fit["features.last"].T, fit["proxy_features.last"].T, strict=True)]
    kept = sorted(np.argsort(distances)[::-1][: max(8, round(keep * 40))])
    assert fitted.state["kept"].tolist() == kept
    rows, queries = (normalize(s["features.last"].numpy()[:, kept]) for s in (fit, test))
    expected = NearestNeighbors(n_neighbors=4).fit(rows).kneighbors(queries)[0][:, -1]
    np.testing.assert_allclose(fitted.score({"features.last": test["features.last"]}).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_scoring_reads_no_proxies_and_fitting_does() -> None:
    assert MFSKNN().needs == {"features.last"}
    assert MFSKNN(layer="deep").fit_needs == {"features.deep", "proxy_features.deep"}
    with pytest.raises(SignalError, match=r"mfs_knn needs the signals proxy_features\.last"):
        MFSKNN().fit([{"features.last": torch.ones(9, 3)}])
    with pytest.raises(SignalError, match=r"proxy_features\.last of shape \(9, 2\) must be \(N, 3"):
        MFSKNN().fit([{"features.last": torch.ones(9, 3), "proxy_features.last": torch.ones(9, 2)}])


def test_a_shift_of_few_dimensions_is_seen_that_drowns_in_all() -> None:
    fit, usual, odd = moved(300, seed=1, width=400), moved(100, seed=2, width=400), moved(100, seed=3, width=400)
    odd["features.last"][:, MOVED[:5]] -= 2.0

    def area(detector: MFSKNN | KNN) -> float:
        fitted = detector.fit([fit])
        return float((fitted.score(odd)[:, None] > fitted.score(usual)).double().mean())

    assert area(MFSKNN(keep=9 / 400, least=1)) > 0.95 > 0.85 > area(KNN())


def test_known_failure_a_shift_that_the_proxies_do_not_show_is_not_looked_at() -> None:
    usual = moved(50, seed=2)
    odd = {"features.last": usual["features.last"].clone()}
    odd["features.last"][:, 30:] += 100.0
    fitted = MFSKNN(least=9).fit([moved(200, seed=1)])
    torch.testing.assert_close(fitted.score(odd), fitted.score(usual))


def test_another_width_is_refused() -> None:
    with pytest.raises(SignalError, match="40, as when it was fitted"):
        MFSKNN().fit([moved(60, seed=1)]).score({"features.last": torch.ones(2, 41)})


@pytest.mark.parametrize(
    ("wrong", "message"), [({"keep": 0.0}, "keep = 0"), ({"keep": 1.1}, "keep = 1.1"), ({"least": 0}, "least = 0"), ({"k": 0}, "k = 0")]
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MFSKNN.from_params(wrong)

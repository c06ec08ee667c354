"""Mahalanobis against scikit-learn, against float64 written out, and on fewer images than dimensions."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.covariance import LedoitWolf
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mahalanobis import Mahalanobis

Signals = dict[str, Tensor]


def oracle(fit: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The smallest squared distance to a class mean, inverse written out, Ledoit-Wolf by scikit-learn."""
    means = {c: fit[labels == c].mean(axis=0) for c in np.unique(labels)}
    residuals = fit - np.stack([means[c] for c in labels])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    return np.min([np.einsum("nd,de,ne->n", rows - m, precision, rows - m) for m in means.values()], axis=0)


def test_without_labels_it_equals_scikit_learn(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    expected = LedoitWolf().fit(fit_signals["features.last"].numpy()).mahalanobis(unseen["features.last"].numpy())
    got = Mahalanobis().fit(unlabelled).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_with_labels_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    expected = oracle(*(fit_signals[k].numpy() for k in ("features.last", "label")), unseen["features.last"].numpy())
    np.testing.assert_allclose(Mahalanobis().fit(batches).score(unseen).numpy(), expected, rtol=1e-5)


def test_oas_equals_the_formula(unlabelled: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    rows = fit_signals["features.last"].numpy()
    n, d = len(rows) - 1, rows.shape[1]
    s = np.cov(rows.T)
    square, trace = np.trace(s @ s), np.trace(s)
    rho = min(1.0, ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d)))
    centred = unseen["features.last"].numpy() - rows.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", centred, np.linalg.inv((1 - rho) * s + rho * trace / d * np.eye(d)), centred)
    got = Mahalanobis(shrinkage="oas").fit(unlabelled).score(unseen)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_fewer_images_than_dimensions_gives_no_negative_distance_and_the_right_order() -> None:
    generator = torch.Generator().manual_seed(3)
    count, width, rank = 848, 2048, 64
    axes = torch.randn(rank, width, generator=generator)
    means = torch.randn(3, width, generator=generator)

    def draw(number: int, noise: float) -> tuple[Tensor, Tensor]:
        labels = torch.randint(3, (number,), generator=generator)
        low = torch.randn(number, rank, generator=generator) @ axes / rank**0.5
        return means[labels] + low + noise * torch.randn(number, width, generator=generator), labels

    rows, labels = draw(count, 0.05)
    queries = torch.cat([draw(60, 0.05)[0], draw(60, 0.06)[0]])
    parts = [{"features.last": rows[i : i + 256], "label": labels[i : i + 256]} for i in range(0, count, 256)]
    got = Mahalanobis().fit(parts).score({"features.last": queries}).numpy()
    expected = oracle(rows.double().numpy(), labels.numpy(), queries.double().numpy())
    assert got.min() > 0
    assert spearmanr(got, expected).statistic >= 0.999
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_thousand_classes_agree_with_differences_written_out() -> None:
    generator = torch.Generator().manual_seed(4)
    means = 4 * torch.randn(1000, 24, generator=generator)
    labels = torch.arange(3000) % 1000
    rows = means[labels] + torch.randn(3000, 24, generator=generator)
    fitted = Mahalanobis().fit([{"features.last": rows, "label": labels}])
    queries = torch.randn(50, 24, generator=generator) * 4
    expected = oracle(rows.double().numpy(), labels.numpy(), queries.double().numpy())
    np.testing.assert_allclose(fitted.score({"features.last": queries}).numpy(), expected, rtol=1e-5)


def test_a_class_seen_once_has_a_mean_and_takes_no_part_in_the_covariance(batches: list[Signals]) -> None:
    alone = torch.full((1, 12), 50.0, dtype=torch.float64)
    once = {**batches[0], "features.last": alone, "label": torch.tensor([5])}
    fitted = Mahalanobis().fit([*batches, once])
    assert float(fitted.score({"features.last": alone})) == pytest.approx(0.0, abs=1e-9)
    assert float(fitted.score({"features.last": alone + 10})) > 100


def test_known_failure_the_empty_middle_of_two_modes_is_called_typical() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(200, 4, generator=generator) + 10.0 * (torch.arange(200) % 2 * 2 - 1)[:, None]
    empty = {"features.last": torch.zeros(1, 4)}
    one = Mahalanobis().fit([{"features.last": rows}])
    assert float(one.score(empty)) < float(one.score({"features.last": rows}).min())
    labelled = Mahalanobis().fit([{"features.last": rows, "label": torch.arange(200) % 2}])
    assert float(labelled.score(empty)) > float(labelled.score({"features.last": rows}).max())


def test_labels_in_some_batches_only_are_refused(batches: list[Signals], unlabelled: list[Signals]) -> None:
    for mixed in ([batches[0], unlabelled[1]], [unlabelled[0], batches[1]]):
        with pytest.raises(SignalError, match="some batches have the signal label"):
            Mahalanobis().fit(mixed)


def test_labels_that_are_no_whole_numbers_are_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="whole numbers"):
        Mahalanobis().fit([{**batches[0], "label": batches[0]["label"].double()}])


def test_another_width_is_refused(unlabelled: list[Signals]) -> None:
    with pytest.raises(SignalError, match=r"\(2, 5\) must be \(N, 12"):
        Mahalanobis().fit(unlabelled).score({"features.last": torch.zeros(2, 5)})


def test_another_layer_is_read_by_name(unlabelled: list[Signals], unseen: Signals) -> None:
    moved = [{"features.stem": b["features.last"]} for b in unlabelled]
    got = Mahalanobis(layer="stem").fit(moved).score({"features.stem": unseen["features.last"]})
    assert torch.equal(got, Mahalanobis().fit(unlabelled).score(unseen))


@pytest.mark.parametrize("wrong", [{"shrinkage": "none"}, {"layer": "*"}, {"layer": ""}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Mahalanobis.from_params(wrong)

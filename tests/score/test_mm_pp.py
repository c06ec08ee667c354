"""MM++ against scikit-learn on concatenated unit vectors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS, LedoitWolf
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.mm_pp import MMPP, dropping
from offmap.testing import check_detector

Signals = dict[str, Tensor]
WIDTHS = {"stem": 4, "deep": 9}


def layers(count: int, seed: int) -> Signals:
    """Two layers that share a hidden variable."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(55)
    hidden = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    out = {}
    for layer, width in WIDTHS.items():
        mix = torch.randn(2, width, generator=fixed, dtype=torch.float64)
        out[f"features.{layer}"] = 4.0 + hidden @ mix + 0.1 * torch.randn(count, width, generator=generator, dtype=torch.float64)
    return {**out, "features.last": out["features.deep"]}


FIT, TEST = layers(120, 1), layers(40, 2)


def beside(signals: Signals) -> np.ndarray:
    return np.concatenate([normalize(signals[f"features.{layer}"].numpy()) for layer in WIDTHS], axis=1)


def test_it_equals_scikit_learn_without_labels() -> None:
    expected = LedoitWolf().fit(beside(FIT)).mahalanobis(beside(TEST))
    np.testing.assert_allclose(MMPP().fit([FIT]).score(TEST).numpy(), expected, rtol=1e-5)


def test_it_equals_scikit_learn_with_labels() -> None:
    labels = torch.tensor([9, -2])[torch.arange(120) % 2]
    rows, queries = beside(FIT), beside(TEST)
    means = [rows[labels.numpy() == c].mean(axis=0) for c in (9, -2)]
    residuals = rows - np.stack([means[i % 2] for i in range(120)])
    precision = LedoitWolf(assume_centered=True).fit(residuals).precision_
    expected = np.min([np.einsum("nd,de,ne->n", queries - m, precision, queries - m) for m in means], axis=0)
    np.testing.assert_allclose(MMPP().fit([{**FIT, "label": labels}]).score(TEST).numpy(), expected, rtol=1e-5)


def test_a_combination_that_no_single_layer_finds_odd_is_seen() -> None:
    swapped = {**TEST, "features.stem": TEST["features.stem"].flip(0)}
    fitted = MMPP().fit([FIT])
    assert float(fitted.score(swapped).median()) > 5 * float(fitted.score(TEST).median())
    alone = MMPP(layers=("stem",)).fit([FIT])
    torch.testing.assert_close(alone.score(swapped).sort().values, alone.score(TEST).sort().values)


def test_known_failure_with_few_images_the_narrow_layer_drowns() -> None:
    generator = torch.Generator().manual_seed(9)

    def draw(count: int, shift: float) -> Signals:
        return {
            "features.narrow": 5.0 + shift + 0.1 * torch.randn(count, 2, generator=generator) * torch.tensor([1.0, 0.2]),
            "features.wide": torch.randn(count, 200, generator=generator),
        }

    fit, usual = draw(15, 0.0), draw(30, 0.0)
    odd = {**usual, "features.narrow": usual["features.narrow"] + torch.tensor([0.0, 0.5])}

    def separation(layers: tuple[str, ...]) -> float:
        fitted = MMPP(layers=layers).fit([fit])
        return float((fitted.score(odd).median() - fitted.score(usual).median()) / fitted.score(usual).std())

    assert separation(("narrow", "wide")) < 0.2 * separation(("narrow",))


def test_named_layers_are_used_and_remembered() -> None:
    fitted = MMPP(layers=("deep",)).fit([FIT])
    assert fitted.detector.needs == {"features.deep"}
    expected = LedoitWolf().fit(normalize(FIT["features.deep"].numpy())).mahalanobis(normalize(TEST["features.deep"].numpy()))
    np.testing.assert_allclose(fitted.score({"features.deep": TEST["features.deep"]}).numpy(), expected, rtol=1e-5)


def test_fewer_images_than_dimensions_and_constant_columns() -> None:
    few = {"features.stem": FIT["features.stem"][:6].clone(), "features.deep": FIT["features.deep"][:6]}
    few["features.stem"][:, 0] = 0.0
    assert bool(torch.isfinite(MMPP(shrinkage="oas").fit([few]).score(TEST)).all())
    assert OAS().fit(beside({**FIT, **few})).shrinkage_ > 0


def densities(signals: Signals, layers: tuple[str, ...]) -> list[float]:
    """By the determinant of scikit-learn's covariance."""
    found = []
    for layer in layers:
        rows = normalize(signals[f"features.{layer}"].numpy()) * np.sqrt(signals[f"features.{layer}"].shape[1])
        covariance = LedoitWolf().fit(rows).covariance_
        found.append(0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] / len(covariance))
    return found


def spread(widths: dict[str, tuple[int, float]], seed: int, count: int = 300) -> Signals:
    """Layers of some width, whose noise has some deviation."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"features.{layer}": 1.0 + noise * torch.randn(count, width, generator=generator, dtype=torch.float64)
        for layer, (width, noise) in widths.items()
    }


def test_entropy_keeps_the_layers_at_which_the_density_drops() -> None:
    widths = {"a": (8, 0.1), "b": (20, 0.5), "c": (12, 0.2), "d": (30, 0.6), "e": (6, 0.3)}
    fit, test = spread(widths, 1), spread(widths, 2, 40)
    found = densities(fit, tuple(widths))
    assert [b < a for a, b in pairwise(found)] == [False, True, False, True]
    assert max(found) < 0.5 * np.log(2 * np.pi * np.e)
    fitted = MMPP(choose="entropy").fit([{k: v[:100] for k, v in fit.items()}, {k: v[100:] for k, v in fit.items()}])
    assert [name for name in fitted.state if name.startswith("layer.")] == ["layer.00.c", "layer.01.e"]
    torch.testing.assert_close(fitted.score(test), MMPP(layers=("c", "e")).fit([fit]).score(test))
    np.testing.assert_allclose([MMPP()._density([fit], layer) for layer in widths], found, rtol=1e-6)


def test_entropy_keeps_all_layers_where_none_drops() -> None:
    assert dropping(("a", "b", "c"), (0.1, 0.2, 0.3)) == ("a", "b", "c")
    assert dropping(("a",), (0.1,)) == ("a",)
    fit = spread({"a": (8, 0.1), "b": (8, 0.3)}, 1)
    torch.testing.assert_close(MMPP(choose="entropy").fit([fit]).score(fit), MMPP().fit([fit]).score(fit))


def test_entropy_chooses_among_the_named_layers_and_names_one_that_does_not_vary() -> None:
    fit = spread({"a": (8, 0.5), "b": (8, 0.2), "c": (8, 0.1)}, 1)
    assert "layer.00.c" in MMPP(layers=("a", "c"), choose="entropy").fit([fit]).state
    with pytest.raises(SignalError, match=r"features\.b"):
        MMPP(choose="entropy").fit([{**fit, "features.b": torch.ones(300, 8, dtype=torch.float64)}])


@pytest.mark.parametrize("check", ["higher_is_more_ood", "works_with_fewer_images_than_dimensions", "survives_one_dimension"])
def test_entropy_keeps_the_contract(check: str) -> None:
    check_detector(MMPP(choose="entropy"), only=(check,))


def test_a_layer_that_is_missing_or_of_another_width_is_refused() -> None:
    fitted = MMPP().fit([FIT])
    with pytest.raises(SignalError, match=r"features.stem"):
        fitted.score({"features.deep": TEST["features.deep"]})
    with pytest.raises(SignalError, match="as when it was fitted"):
        fitted.score({**TEST, "features.stem": TEST["features.deep"]})


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="shrinkage"):
        MMPP.from_params({"shrinkage": "no"})
    with pytest.raises(ConfigError, match="choose"):
        MMPP.from_params({"choose": "no"})

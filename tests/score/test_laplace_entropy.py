"""Laplace entropy against whole matrices, automatic differentiation, scipy and MacKay; its limits and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from tests.score import laplace
from tests.score.conftest import cut, mixture
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError, SignalError
from offmap.score._laplace import drawn_logits
from offmap.score.entropy import Entropy
from offmap.score.laplace_entropy import LaplaceEntropy

Signals = dict[str, Tensor]


@pytest.fixture
def small() -> Signals:
    return mixture(80, 5, seed=1)


def far(direction: Tensor, length: float) -> Signals:
    """One image far along a direction."""
    return {"features.penultimate": length * direction[None].double()}


def autograd_hessian(signals: Signals) -> Tensor:
    """Of the summed cross-entropy of the head, of order ``K (D + 1)``; for a softmax it does not depend on the labels."""
    rows, head = torch.from_numpy(laplace.extended(signals)), torch.from_numpy(laplace.whole_head(signals))

    def loss(flat: Tensor) -> Tensor:
        return functional.cross_entropy(rows @ flat.reshape(head.shape).T, torch.arange(len(rows)) % len(head), reduction="sum")

    return torch.as_tensor(torch.autograd.functional.hessian(loss, head.flatten()))


@pytest.mark.parametrize("precision", [0.01, 1.0, 50.0])
def test_it_equals_whole_matrices(small: Signals, precision: float) -> None:
    new = mixture(10, 5, seed=2)
    fitted = LaplaceEntropy(samples=7, precision=precision).fit(cut(small, 30))
    p = laplace.probabilities(small, new, precision, fitted.state["noise"].numpy())
    np.testing.assert_allclose(fitted.score(new).numpy(), laplace.entropy(p.mean(axis=1)), rtol=1e-5)


def test_the_curvature_is_the_hessian_where_all_images_have_one_prediction(small: Signals) -> None:
    """With weights of zero the product of the two factors is no approximation."""
    small["head.weight"] = torch.zeros_like(small["head.weight"])
    hessian = autograd_hessian(small)
    np.testing.assert_allclose(laplace.curvature(small), hessian.numpy(), atol=1e-9)
    state = LaplaceEntropy(samples=1000, precision=2.0).fit([small]).state
    vectors = torch.kron(state["towards"], state["basis"])
    covariance = vectors @ state["variance"].T.flatten().diag() @ vectors.T
    np.testing.assert_allclose(covariance @ (hessian + 2.0 * torch.eye(18)), np.eye(18), atol=1e-9)


def test_the_order_is_near_that_of_the_full_hessian_and_the_head_a_little_surer(small: Signals) -> None:
    new = mixture(200, 5, seed=2)
    fitted = LaplaceEntropy(samples=200, precision=1.0).fit([small])
    got = fitted.score(new).numpy()
    exact = laplace.probabilities(small, new, 1.0, fitted.state["noise"].numpy(), whole=autograd_hessian(small).numpy())
    expected = laplace.entropy(exact.mean(axis=1))
    assert spearmanr(got, expected).statistic > 0.97
    assert 0.7 * expected.mean() < got.mean() < expected.mean()


def test_the_precision_is_that_of_the_largest_evidence(small: Signals) -> None:
    head, eigenvalues = laplace.whole_head(small), np.linalg.eigvalsh(laplace.curvature(small))

    def minus_evidence(log_precision: float) -> float:
        precision = math.exp(log_precision)
        fit = 0.5 * precision * (head**2).sum() - 0.5 * head.size * log_precision
        return float(fit + 0.5 * np.log(np.maximum(eigenvalues, 0) + precision).sum())

    best = minimize_scalar(minus_evidence, bounds=(-10, 10), method="bounded", options={"xatol": 1e-9}).x
    assert math.log(float(LaplaceEntropy().fit(cut(small)).state["precision"])) == pytest.approx(best, abs=1e-5)


def test_two_classes_are_those_of_an_integral_and_near_mackays() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    head = {"head.weight": torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.0, 0.3]]).double(), "head.bias": torch.tensor([0.2, 0.0]).double()}
    fitted = LaplaceEntropy(samples=1000, precision=0.5).fit([{"features.penultimate": rows, **head}])
    h = torch.tensor([[2.0, 1.0, -4.0]]).double()
    drawn = drawn_logits(fitted.state, h)[0]
    mean, deviation = float((h @ head["head.weight"].T + head["head.bias"]).diff()), float((drawn[:, 1] - drawn[:, 0]).std())

    def weighed(x: float) -> float:
        return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) / (1 + math.exp(-mean - deviation * x))

    exact = quad(weighed, -9, 9)[0]
    got = float(drawn.softmax(dim=1)[:, 1].mean())
    assert got == pytest.approx(exact, abs=5e-3)
    assert got == pytest.approx(1 / (1 + math.exp(-mean / math.sqrt(1 + math.pi / 8 * deviation**2))), abs=0.02)


def test_an_endless_precision_gives_the_plain_entropy(batches: list[Signals], unseen: Signals) -> None:
    logits = {"logits": unseen["features.penultimate"] @ unseen["head.weight"].T + unseen["head.bias"]}
    got = LaplaceEntropy(precision=1e12).fit(batches).score(unseen)
    torch.testing.assert_close(got, Entropy().fit([logits]).score(logits), rtol=1e-4, atol=1e-6)
    assert bool((LaplaceEntropy().fit(batches).score(unseen) >= got - 1e-3).all())


def test_a_direction_never_seen_leads_to_any_class_and_a_known_one_to_a_limit(small: Signals) -> None:
    wide = {name: functional.pad(v, (0, 2)) if name in ("features.penultimate", "head.weight") else v for name, v in small.items()}
    fitted = LaplaceEntropy(samples=1000).fit([wide])
    unknown = torch.eye(7)[6]
    entropies = [float(fitted.score(far(unknown, t))) for t in (0.0, 10.0, 1e3, 1e6)]
    assert entropies[0] < entropies[1] < entropies[2]
    assert min(entropies[2:]) > 0.999 * math.log(3)
    known = wide["head.weight"][0] / wide["head.weight"][0].norm()
    first, second = (float(fitted.score(far(known, t))) for t in (1e5, 1e7))
    assert first == pytest.approx(second, rel=1e-3, abs=1e-6)
    logits = {"logits": far(known, 1e5)["features.penultimate"] @ wide["head.weight"].T}
    assert float(Entropy().fit([logits]).score(logits)) < 1e-6


def test_more_images_make_the_head_more_certain(unseen: Signals) -> None:
    few, many = (LaplaceEntropy(precision=1.0).fit(cut(mixture(count, seed=1))).score(unseen) for count in (30, 3000))
    assert float(few.mean()) > float(many.mean())


def test_known_failure_what_does_not_reach_the_features_is_not_seen(batches: list[Signals], fit_signals: Signals) -> None:
    fitted = LaplaceEntropy().fit(batches)
    same = {**fit_signals, "image": torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    torch.testing.assert_close(fitted.score(same), fitted.score(fit_signals), rtol=0, atol=0)


@pytest.mark.parametrize("precision", [0.0, -1.0, math.inf, math.nan])
def test_a_precision_out_of_range_is_refused(precision: float) -> None:
    with pytest.raises(ConfigError, match=f"laplace_entropy: precision = {precision} must be greater than 0 and finite"):
        LaplaceEntropy(precision=precision)


def test_bad_input_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(ConfigError, match="laplace_entropy: samples = 1 must be between 2 and 1000"):
        LaplaceEntropy(samples=1)
    with pytest.raises(SignalError, match="laplace_entropy needs two logits or more, there is one"):
        LaplaceEntropy().fit([{**b, "head.weight": b["head.weight"][:1], "head.bias": b["head.bias"][:1]} for b in batches])
    zero = [{**b, "head.weight": 0 * b["head.weight"], "head.bias": 0 * b["head.bias"]} for b in batches]
    with pytest.raises(SignalError, match=r"the head is zero, .* set precision, such as 1\.0"):
        LaplaceEntropy().fit(zero)
    sure = [{**b, "head.weight": 0 * b["head.weight"], "head.bias": torch.tensor([1e4, 0.0, 0.0]).double()} for b in batches]
    with pytest.raises(SignalError, match=r"sure of every image to the last digit, .* set precision"):
        LaplaceEntropy().fit(sure)
    assert bool(LaplaceEntropy(precision=1.0).fit(sure).score(batches[0]).isfinite().all())

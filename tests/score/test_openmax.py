"""OpenMax against scipy's Weibull fit and the formula, and small, empty and degenerate classes."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import weibull_min
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.openmax import OpenMax, weibull_tail

Signals = dict[str, Tensor]


def oracle(fit: np.ndarray, right: np.ndarray, query: np.ndarray, *, tail: int, top: int) -> np.ndarray:
    """P(unknown) by loops; the Weibull distributions by scipy."""
    count = fit.shape[1]
    models = []
    for c in range(count):
        rows = fit[(fit.argmax(axis=1) == c) & (right == c)]
        distances = np.sort(np.linalg.norm(rows - rows.mean(axis=0), axis=1))[::-1]
        largest = distances[: min(tail, max(3, math.ceil(len(rows) / 5)))]
        shape, _, scale = weibull_min.fit(largest - largest.min() + 1, floc=0)
        models.append((rows.mean(axis=0), largest.min() - 1, scale, shape))
    out = []
    for z in query:
        activation, unknown = z.copy(), 0.0
        for rank, c in enumerate(np.argsort(-z)[:top]):
            mean, low, scale, shape = models[c]
            w = weibull_min.cdf(np.linalg.norm(z - mean) - low, shape, scale=scale)
            part = (min(top, count) - rank) / min(top, count)
            activation[c], unknown = z[c] * (1 - w * part), unknown + z[c] * w * part
        out.append(softmax([*activation, unknown])[-1])
    return np.array(out)


@pytest.mark.parametrize(("tail", "top"), [(20, 10), (5, 2)])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, tail: int, top: int) -> None:
    right = np.searchsorted([-4, 7, 100], fit_signals["label"].numpy())
    expected = oracle(fit_signals["logits"].numpy(), right, unseen["logits"].numpy(), tail=tail, top=top)
    scores = OpenMax(tail=tail, top=top).fit(batches).score(unseen).double()
    np.testing.assert_allclose(scores.sigmoid().numpy(), expected, rtol=1e-3, atol=1e-6)


def test_the_weibull_fit_equals_scipy() -> None:
    x = torch.from_numpy(weibull_min.rvs(3.0, scale=2.0, size=200, random_state=1)) + 5
    low, scale, shape = weibull_tail(x)
    expected = weibull_min.fit((x - x.min() + 1).numpy(), floc=0)
    assert (low, scale, shape) == pytest.approx((float(x.min()) - 1, expected[2], expected[0]), rel=1e-4)


def test_an_empty_or_constant_tail_stays_finite() -> None:
    assert weibull_tail(torch.zeros(0, dtype=torch.float64)) == (0.0, 1.0, 0.0)
    low, scale, shape = weibull_tail(torch.full((4,), 3.0, dtype=torch.float64))
    assert (low, scale) == pytest.approx((2.0, 1.0))
    assert shape == pytest.approx(1000, rel=1e-3)


def test_the_number_does_not_tie_where_the_chance_is_one() -> None:
    logits = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.tensor([8.0, 0.0])
    fitted = OpenMax().fit([{"logits": logits}])
    far = fitted.score({"logits": torch.tensor([[200.0, 190.0], [300.0, 290.0]])}).double()
    assert float(far[1]) > float(far[0]) > 40
    assert far.sigmoid().tolist() == [1.0, 1.0]


def test_a_class_without_a_right_image_is_unknown(batches: list[Signals]) -> None:
    four = [{**b, "logits": torch.cat([b["logits"], torch.full_like(b["logits"][:, :1], -9.0)], dim=1)} for b in batches]
    fitted = OpenMax().fit(four)
    assert float(fitted.score({"logits": torch.tensor([[0.0, 0.0, 0.0, 12.0]])})) > 5


def test_a_class_with_one_member_and_no_labels_are_taken(batches: list[Signals], unlabelled: list[Signals], unseen: Signals) -> None:
    labels = batches[0]["label"].clone()
    labels[0] = 55
    assert bool(OpenMax().fit([{**batches[0], "label": labels}, *batches[1:]]).score(unseen).isfinite().all())
    assert bool(OpenMax().fit(unlabelled).score(unseen).isfinite().all())


def test_known_failure_ordinary_images_of_a_small_class_look_unknown() -> None:
    generator = torch.Generator().manual_seed(3)
    large = torch.tensor([9.0, 0.0]) + torch.randn(400, 2, generator=generator)
    small = torch.tensor([0.0, 9.0]) + torch.randn(6, 2, generator=generator)
    fitted = OpenMax().fit([{"logits": torch.cat([large, small])}])
    unseen = torch.randn(200, 2, generator=generator)
    small_scores = fitted.score({"logits": torch.tensor([0.0, 9.0]) + unseen})
    large_scores = fitted.score({"logits": torch.tensor([9.0, 0.0]) + unseen})
    assert float((small_scores > 0).double().mean()) > 2 * float((large_scores > 0).double().mean())


def test_the_distance_may_have_an_angle(batches: list[Signals], unseen: Signals) -> None:
    plain, angled = (OpenMax(distance=d).fit(batches).score(unseen) for d in ("euclidean", "euclidean_cosine"))
    assert bool(angled.isfinite().all())
    assert not torch.equal(plain, angled)


@pytest.mark.parametrize("wrong", [{"tail": 1}, {"top": 0}, {"distance": "cosine"}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OpenMax.from_params(wrong)


def test_one_logit_is_refused() -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        OpenMax().fit([{"logits": torch.zeros(3, 1)}])

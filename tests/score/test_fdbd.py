"""fDBD against its formula, equal weights, and the mean feature."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.fdbd import FDBD

Signals = dict[str, Tensor]


def oracle(fit: Signals, query: Signals, *, centred: bool) -> np.ndarray:
    weight, rows, logits = (s.numpy() for s in (fit["head.weight"], query["features.penultimate"], query["logits"]))
    mean = fit["features.penultimate"].numpy().mean(axis=0) if centred else 0.0
    out = []
    for h, z in zip(rows, logits, strict=True):
        y = z.argmax()
        parts = [abs(z[y] - z[c]) / np.linalg.norm(weight[y] - weight[c]) for c in range(len(z)) if c != y]
        out.append(-np.mean(parts) / np.linalg.norm(h - mean))
    return np.array(out)


@pytest.mark.parametrize("scale", ["centred", "norm"])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, scale: str) -> None:
    got = FDBD.from_params({"scale": scale}).fit(batches).score(unseen)
    np.testing.assert_allclose(got.numpy(), oracle(fit_signals, unseen, centred=scale == "centred"), rtol=1e-5)


def test_it_is_the_distance_to_the_boundary() -> None:
    head = {"head.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), "head.bias": torch.zeros(2)}
    fit = torch.tensor([[0.0, 5.0], [0.0, -5.0]])
    fitted = FDBD().fit([{"features.penultimate": fit, "logits": fit @ head["head.weight"].T, **head}])
    query = torch.tensor([[3.0, 4.0]])
    assert float(fitted.score({"features.penultimate": query, "logits": query @ head["head.weight"].T})) == pytest.approx(-3 / 5)


def test_classes_with_equal_weights_are_left_out(batches: list[Signals], unseen: Signals) -> None:
    def doubled(signals: Signals) -> Signals:
        out = {name: torch.cat([signals[name], signals[name][:1]]) for name in ("head.weight", "head.bias")}
        return {**signals, **out, "logits": torch.cat([signals["logits"], signals["logits"][:, :1]], dim=1)}

    scores = FDBD().fit([doubled(b) for b in batches]).score(doubled(unseen))
    first = unseen["logits"].argmax(dim=1) == 0
    torch.testing.assert_close(scores[first], FDBD().fit(batches).score(unseen)[first])
    with pytest.raises(SignalError, match="no boundary"):
        FDBD().fit([{**b, "head.weight": torch.ones(3, 12), "head.bias": torch.zeros(3)} for b in batches])


def test_known_failure_the_mean_feature_is_most_usual(batches: list[Signals], fit_signals: Signals, unseen: Signals) -> None:
    fitted = FDBD().fit(batches)
    mean = fit_signals["features.penultimate"].mean(dim=0, keepdim=True) + 1e-6
    logits = mean @ fit_signals["head.weight"].T + fit_signals["head.bias"]
    assert float(fitted.score({"features.penultimate": mean, "logits": logits})) < float(fitted.score(unseen).min())


def test_the_head_is_not_needed_to_score(batches: list[Signals], unseen: Signals) -> None:
    bare = {k: v for k, v in unseen.items() if not k.startswith("head.")}
    assert torch.equal(FDBD().fit(batches).score(bare), FDBD().fit(batches).score(unseen))


def test_bad_input_is_refused(batches: list[Signals]) -> None:
    one = [{**b, "head.weight": b["head.weight"][:1], "head.bias": b["head.bias"][:1], "logits": b["logits"][:, :1]} for b in batches]
    with pytest.raises(SignalError, match="two logits or more"):
        FDBD().fit(one)
    with pytest.raises(SignalError, match="not finite"):
        FDBD().fit([{**b, "head.weight": torch.full((3, 12), torch.nan)} for b in batches])
    with pytest.raises(ConfigError, match="scale"):
        FDBD.from_params({"scale": "none"})

"""GradNorm's closed form against the gradient by autograd."""

import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.gradnorm import GradNorm

Signals = dict[str, Tensor]


def by_autograd(signals: Signals, temperature: float) -> Tensor:
    norms = []
    for row in signals["features.penultimate"]:
        weight = signals["head.weight"].clone().requires_grad_()
        logits = row @ weight.T + signals["head.bias"]
        (-(logits / temperature).log_softmax(dim=0)).sum().backward()
        assert weight.grad is not None
        norms.append(-weight.grad.abs().sum() * temperature)
    return torch.stack(norms)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_equals_the_gradient(batches: list[Signals], unseen: Signals, temperature: float) -> None:
    got = GradNorm(temperature=temperature).fit(batches).score(unseen)
    torch.testing.assert_close(got, by_autograd(unseen, temperature).float(), rtol=1e-5, atol=1e-6)


def test_an_even_prediction_or_no_feature_gives_the_largest_score(batches: list[Signals], unseen: Signals) -> None:
    fitted = GradNorm().fit(batches)
    assert fitted.score({**unseen, "logits": torch.ones(60, 3)}).tolist() == pytest.approx([0.0] * 60, abs=1e-5)
    assert fitted.score({**unseen, "features.penultimate": torch.zeros(60, 12)}).abs().max() == 0


def test_known_failure_long_features_outweigh_indecision(batches: list[Signals], unseen: Signals) -> None:
    fitted = GradNorm().fit(batches)
    unsure = {**unseen, "features.penultimate": 1000 * unseen["features.penultimate"], "logits": unseen["logits"] * 0.05}
    assert float(fitted.score(unsure).median()) < float(fitted.score(unseen).median())


def test_bad_input_is_refused(batches: list[Signals], unseen: Signals) -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        GradNorm().fit([{**b, "logits": b["logits"][:, :1]} for b in batches])
    with pytest.raises(SignalError, match="different widths"):
        GradNorm().fit([batches[0], {**batches[1], "features.penultimate": batches[1]["features.penultimate"][:, :4]}])
    with pytest.raises(SignalError, match=r"\(N, 12"):
        GradNorm().fit(batches).score({**unseen, "features.penultimate": unseen["features.penultimate"][:, :4]})
    with pytest.raises(ConfigError, match="temperature"):
        GradNorm(temperature=0.0)

"""ODIN against its formula, and what a high temperature does to it."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.msp import MSP
from offmap.score.odin import ODIN

Signals = dict[str, Tensor]


def moved(signals: Signals, detector: ODIN) -> Signals:
    """The logits under the name that the detector reads."""
    return {detector.signal: signals["logits"]}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1000.0])
def test_it_equals_the_formula(batches: list[Signals], unseen: Signals, temperature: float) -> None:
    detector = ODIN(temperature=temperature)
    got = detector.fit([moved(b, detector) for b in batches]).score(moved(unseen, detector))
    expected = [1 - softmax(z / temperature).max() for z in unseen["logits"].numpy()]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_the_signal_says_how_it_is_made() -> None:
    assert ODIN().needs == {"odin.logits:epsilon=0.0014,temperature=1000"}
    assert ODIN(epsilon=0.0, temperature=1.5).needs == {"odin.logits:epsilon=0,temperature=1.5"}


def test_at_temperature_one_it_is_msp_of_the_moved_image(batches: list[Signals], unseen: Signals) -> None:
    detector = ODIN(temperature=1.0)
    got = detector.fit([moved(b, detector) for b in batches]).score(moved(unseen, detector))
    torch.testing.assert_close(got, MSP().fit(batches).score(unseen))


def test_a_very_sure_answer_is_told_from_a_surer_one() -> None:
    detector = ODIN(temperature=1.0)
    fitted = detector.fit([{detector.signal: torch.zeros(1, 2)}])
    scores = fitted.score({detector.signal: torch.tensor([[30.0, 0.0], [40.0, 0.0]])})
    assert scores.tolist() == pytest.approx([math.exp(-30), math.exp(-40)], rel=1e-5)


def test_known_failure_many_classes_at_a_high_temperature_lie_close_together() -> None:
    detector = ODIN()
    fitted = detector.fit([{detector.signal: torch.zeros(1, 1000)}])
    logits = torch.zeros(2, 1000)
    logits[:, 0] = torch.tensor([5.0, 5.01])
    apart = fitted.score({detector.signal: logits})
    assert float(apart[0] - apart[1]) == 0.0
    logits[1, 0] = 5.2
    assert float(fitted.score({detector.signal: logits}).diff()) < 0


@pytest.mark.parametrize(("key", "value"), [("epsilon", -0.1), ("epsilon", math.inf), ("temperature", 0.0), ("temperature", math.nan)])
def test_a_parameter_out_of_range_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"odin: {key} = "):
        ODIN(**{key: value})


def test_one_logit_and_other_widths_are_refused() -> None:
    name = ODIN().signal
    with pytest.raises(SignalError, match="odin needs two logits or more"):
        ODIN().fit([{name: torch.zeros(3, 1)}])
    with pytest.raises(SignalError, match=r"different widths \[2, 3\]"):
        ODIN().fit([{name: torch.zeros(3, 2)}, {name: torch.zeros(3, 3)}])
    with pytest.raises(SignalError, match=r"must be \(N, 2, as when it was fitted\)"):
        ODIN().fit([{name: torch.zeros(3, 2)}]).score({name: torch.zeros(3, 4)})

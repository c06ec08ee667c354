"""The shell that every detector lives in: checks that no method has to write itself."""

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, Fitted, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals


@dataclass(frozen=True)
class Norm(Detector):
    """Distance to the mean."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features.last"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        return {"mean": torch.cat([b["features.last"] for b in batches]).mean(dim=0)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return (signals["features.last"] - state["mean"]).norm(dim=1)


@pytest.fixture
def fitted() -> Fitted:
    return Norm().fit([{"features.last": torch.zeros(4, 3)}, {"features.last": torch.ones(4, 3)}])


def test_score_is_float32_with_one_value_a_row(fitted: Fitted) -> None:
    scores = fitted.score({"features.last": torch.full((2, 3), 0.5, dtype=torch.float64)})
    assert scores.dtype == torch.float32
    assert scores.tolist() == [0.0, 0.0]


def test_rows_that_are_not_finite_are_named_across_batches() -> None:
    good, bad = torch.zeros(3, 2), torch.zeros(2, 2)
    bad[1, 0] = float("nan")
    with pytest.raises(SignalError, match=r"shape \(2, 2\) is not finite in rows \[4\]"):
        Norm().fit([{"features.last": good}, {"features.last": bad}])


def test_a_missing_signal_is_named(fitted: Fitted) -> None:
    with pytest.raises(SignalError, match=r"needs the signals features\.last; the batch has logits"):
        fitted.score({"logits": torch.zeros(1, 2)})


def test_an_iterator_is_refused() -> None:
    with pytest.raises(ConfigError, match="only once"):
        Norm().fit(iter([{"features.last": torch.zeros(1, 2)}]))


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(SignalError, match="no images"):
        Norm().fit([])


def test_a_method_without_a_map_says_so(fitted: Fitted) -> None:
    with pytest.raises(ConfigError, match="no map"):
        fitted.map({"features.last": torch.zeros(1, 3)})


def test_a_batch_without_rows_counts_as_no_image(fitted: Fitted) -> None:
    assert tuple(fitted.score({"features.last": torch.zeros(0, 3)}).shape) == (0,)
    with pytest.raises(SignalError, match="no images"):
        Norm().fit([{"features.last": torch.zeros(0, 3)}])


@dataclass(frozen=True)
class Optional(Norm):
    """Reads labels where there are any."""

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"label", "head.*"})


def test_signals_that_are_merely_used_may_be_absent_and_are_checked_where_present() -> None:
    rows = {"features.last": torch.zeros(2, 3)}
    Optional().fit([rows])
    with pytest.raises(SignalError, match="label of shape"):
        Optional().fit([{**rows, "label": torch.zeros(5)}])

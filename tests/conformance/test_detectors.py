"""Every method found, without a list, keeps the contract of a detector; and the suite notices one that does not."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core import registry
from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.testing import CHECKS, ContractError, FakeEncoder, check_detector

METHODS = registry.load_all("score", Detector)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("method", METHODS)
def test_method_keeps_the_contract(method: str, check: str) -> None:
    check_detector(METHODS[method], only=(check,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_method_scores_the_same_on_a_gpu(method: str) -> None:
    check_detector(METHODS[method], only=("survives_moving",), device="cuda")


def test_the_first_methods_are_found() -> None:
    first = {"mahalanobis", "mahalanobis_pp", "relative_mahalanobis", "multilayer_mahalanobis", "knn", "residual", "vim", "msp"}
    assert first | {"max_logit", "energy", "patchcore", "isolation_forest"} <= set(METHODS)


@dataclass(frozen=True, kw_only=True)
class Good(Detector):
    """Distance to the mean of the features, for showing what the suite accepts and what it does not.

    Args:
        sign: 1, or -1 for a score that is turned round.
    """

    sign: float = 1.0

    reference: ClassVar[str] = "none"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features.last"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        rows = torch.cat([b["features.last"].double() for b in batches])
        return {"mean": rows.mean(dim=0)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self.sign * (signals["features.last"].to(state["mean"]) - state["mean"]).norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Good):
    """Takes the mean of the batch off."""

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = signals["features.last"]
        return (rows - rows.mean(dim=0)).norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class Forgetful(Good):
    """Writes into its state."""

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        state["mean"].add_(1.0)
        return super().raw_score(state, signals)


@dataclass(frozen=True, kw_only=True)
class Random(Good):
    """Adds noise of its own."""

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        scores = super().raw_score(state, signals)
        return scores + torch.rand(len(scores), dtype=scores.dtype)


@dataclass(frozen=True, kw_only=True)
class Wordless(Good):
    table: tuple[float, ...] = field(default=())


def test_a_detector_that_keeps_the_contract_passes_whole() -> None:
    check_detector(Good)


@pytest.mark.parametrize(
    ("detector", "check"),
    [
        (Good(sign=-1.0), "higher_is_more_ood"),
        (BatchNorm(), "scores_one_image_as_in_its_batch"),
        (Forgetful(), "changes_nothing"),
        (Random(), "is_deterministic"),
        (Wordless(), "is_documented"),
    ],
)
def test_a_breach_is_found_and_named(detector: Detector, check: str) -> None:
    with pytest.raises(ContractError, match=check):
        check_detector(detector)


def test_an_unknown_check_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'is_documented'"):
        check_detector(Good, only=("is_documentd",))


def test_a_world_of_ones_own_is_used() -> None:
    check_detector(Good, world=FakeEncoder(width=40, seed=11))

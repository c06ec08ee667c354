"""A recalibrated combination is valid where Fisher's sum is not."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from offmap.calibrate.combine import Combine, Combined
from offmap.calibrate.conformal import Split
from offmap.core.errors import BundleError, ConfigError, SignalError


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


PARTS = {"knn": 3 * normal(101, 0) + 7, "mah": normal(101, 1)}


def z(x: np.ndarray, law: np.ndarray) -> np.ndarray:
    middle = np.median(law)
    return (x - middle) / (1.4826 * np.median(np.abs(law - middle)))


def test_the_mean_of_robust_z() -> None:
    new = {"mah": torch.tensor([0.5, 4.0]), "knn": torch.tensor([7.0, 20.0])}
    expected = sum(z(new[name].double().numpy(), PARTS[name].double().numpy()) for name in PARTS) / 2
    np.testing.assert_allclose(Combine().fit(PARTS).score(new), expected, rtol=1e-6)


def test_recalibration_is_valid_under_perfect_dependence_and_fisher_is_not() -> None:
    alpha, flagged, fisher = 0.05, [], []
    for seed in range(300):
        x = normal(250, seed)
        held_out, calibration, new = x[:50], x[50:150], x[150:]
        ranks = Split.fit(calibration)
        p = ranks.p_value(new)
        fisher.append(float(np.mean(chi2.sf(-2 * 5 * np.log(p.numpy()), df=10) <= alpha)))
        combined = Combine().fit({f"copy{k}": held_out for k in range(5)})
        statistic = Split.fit(combined.score({f"copy{k}": calibration for k in range(5)}))
        flagged.append(float((statistic.p_value(combined.score({f"copy{k}": new for k in range(5)})) <= alpha).double().mean()))
    assert np.mean(flagged) <= 0.05 + 3 * np.std(flagged) / np.sqrt(300)
    assert np.mean(fisher) > 0.1


def test_a_constant_part_does_no_harm() -> None:
    combined = Combine().fit({"flat": torch.full((20,), 3.0), "mah": PARTS["mah"]})
    assert torch.isfinite(combined.score({"flat": torch.tensor([3.0]), "mah": torch.tensor([1.0])})).all()


def test_state_round_trip() -> None:
    combined = Combine().fit(PARTS)
    assert Combined.from_state(Combine(), combined.state()) == combined


def test_a_damaged_state_is_refused() -> None:
    for state in ({}, {"knn": torch.tensor([1.0, 0.0], dtype=torch.float64)}, {"knn": torch.tensor([1.0])}):
        with pytest.raises(BundleError, match="damaged"):
            Combined.from_state(Combine(), state)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="none"):
        Combine().fit({})
    with pytest.raises(ConfigError, match="a/b"):
        Combine().fit({"a/b": torch.ones(3)})
    with pytest.raises(SignalError, match="no scores"):
        Combine().fit({"a": torch.empty(0)})
    with pytest.raises(SignalError, match="needs the scores of mah; given: knn"):
        Combine().fit(PARTS).score({"knn": torch.ones(2)})
    with pytest.raises(SignalError, match=r"knn.*images \[1\]"):
        Combine().fit(PARTS).score({"mah": torch.ones(2), "knn": torch.tensor([1.0, float("nan")])})

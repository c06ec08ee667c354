"""Neuron activation coverage against counting by hand, and where it says nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.nac import NAC

Signals = dict[str, Tensor]


def states(count: int = 90, *, seed: int = 0, shift: float = 0.0) -> Signals:
    rng = torch.Generator().manual_seed(seed)
    shallow = 0.01 * torch.randn(count, 5, generator=rng, dtype=torch.float64) + shift
    deep = 0.02 * torch.rand(count, 3, generator=rng, dtype=torch.float64) - shift
    return {"nac.shallow": shallow, "nac.deep": deep, "features.shallow": shallow}


def oracle(fit: Signals, signals: Signals, *, bins: int, alpha: float, full: float) -> np.ndarray:
    """For each image, layer and neuron: how many fit images share the bin."""
    out = np.zeros(len(signals["nac.shallow"]))
    for layer in ("nac.shallow", "nac.deep"):
        known, rows = fit[layer].numpy(), signals[layer].numpy()
        for i, row in enumerate(rows):
            covered = []
            for d, v in enumerate(row):
                edges = np.linspace(0, 1, bins + 1)
                k = np.searchsorted(edges, 1 / (1 + np.exp(-alpha * v)), side="right")
                same = sum(np.searchsorted(edges, 1 / (1 + np.exp(-alpha * w)), side="right") == k for w in known[:, d])
                covered.append(min(same / full, 1.0))
            out[i] -= np.mean(covered)
    return out


@pytest.mark.parametrize(("bins", "alpha", "full"), [(50, 100.0, 3.0), (7, 30.0, 50.0)])
def test_it_equals_counting_by_hand(bins: int, alpha: float, full: float) -> None:
    fit, seen = states(), states(20, seed=1)
    cut = [{k: v[i : i + 32] for k, v in fit.items()} for i in range(0, 90, 32)]
    got = NAC(bins=bins, alpha=alpha, full=full).fit(cut).score(seen)
    np.testing.assert_allclose(got.numpy(), oracle(fit, seen, bins=bins, alpha=alpha, full=full), rtol=1e-6)


@pytest.mark.parametrize(("count", "full"), [(90, 1.0), (300, 3.0), (6000, 50.0)])
def test_full_coverage_grows_with_the_fit_part(count: int, full: float) -> None:
    fit, seen = states(count), states(20, seed=1)
    assert torch.equal(NAC().fit([fit]).score(seen), NAC(full=full).fit([fit]).score(seen))


def test_states_never_seen_score_zero_and_common_ones_score_least() -> None:
    fitted = NAC().fit([states()])
    assert fitted.score(states(10, shift=0.2)).tolist() == [0.0] * 10
    same = {k: v.expand(100, -1) for k, v in states(1).items()}
    assert NAC(full=50.0).fit([same]).score(states(1)).tolist() == [-2.0]


def test_chosen_layers_only() -> None:
    detector = NAC(layers=("deep",))
    assert detector.needs == {"nac.deep"}
    fitted = detector.fit([{"nac.deep": states()["nac.deep"]}])
    assert float(fitted.score({"nac.deep": states(1)["nac.deep"]})) >= -1.0
    assert set(fitted.state) == {"layer.00.deep"}


def test_known_failure_a_flat_sigmoid_sees_nothing() -> None:
    odd = {name: 5 * value for name, value in states(20).items()}
    flat, steep = NAC(alpha=0.01).fit([states()]), NAC().fit([states()])
    assert torch.equal(flat.score(odd), flat.score(states(20)))
    assert float(steep.score(odd).mean()) > float(steep.score(states(20)).mean())


def test_large_states_do_not_overflow() -> None:
    fitted = NAC().fit([states()])
    far = {"nac.shallow": torch.full((1, 5), 1e30), "nac.deep": torch.full((1, 3), -1e30)}
    assert math.isfinite(float(fitted.score(far)))


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"alpha": 0.0}, {"full": 0.0}, {"full": math.inf}, {"layers": ("*",)}])
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"nac: {next(iter(wrong))} = "):
        NAC(**wrong)  # type: ignore[arg-type]


def test_another_width_is_refused() -> None:
    fitted = NAC().fit([states()])
    with pytest.raises(SignalError, match=r"nac: nac.deep of shape \(2, 4\) must be \(N, 3"):
        fitted.score({**states(2), "nac.deep": torch.zeros(2, 4)})
    with pytest.raises(SignalError, match=r"nac: nac.deep of shape \(90, 4\)"):
        NAC().fit([states(), {**states(), "nac.deep": torch.zeros(90, 4)}])

"""Fisher's combination against scikit-learn, scipy and counting."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.multilayer_fisher import MultilayerFisher, log_survival

Signals = dict[str, Tensor]
WIDTHS = {"stem": 5, "middle": 7, "deep": 9}


def draw(count: int, seed: int, *, shift: dict[str, float] | None = None) -> Signals:
    """Three layers that share a hidden variable, so that their distances depend on each other."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(31)
    spread = torch.exp(0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64))
    out = {}
    for layer, width in WIDTHS.items():
        mix = torch.randn(width, width, generator=fixed, dtype=torch.float64)
        noise = spread * torch.randn(count, width, generator=generator, dtype=torch.float64)
        direction = torch.linspace(-1, 1, width, dtype=torch.float64)
        out[f"features.{layer}"] = noise @ mix + 20.0 + (shift or {}).get(layer, 0.0) * direction
    return out


FIT, HELD, TEST = draw(200, 1), draw(50, 2), draw(60, 3)


def log_distances(rows: Signals) -> np.ndarray:
    columns = []
    for layer in WIDTHS:
        a, b = (normalize(s[f"features.{layer}"].numpy()) for s in (FIT, rows))
        mean, deviation = a.mean(axis=0), a.std(axis=0, ddof=1)
        columns.append(np.log(LedoitWolf().fit((a - mean) / deviation).mahalanobis((b - mean) / deviation)))
    return np.stack(columns, axis=1)


def surprise(held: np.ndarray, m: float) -> float:
    """-ln p of one value, by counting, and by a Pareto tail beyond the largest."""
    counted = -np.log((1 + sum(h >= m for h in held)) / (len(held) + 1))
    upper = np.sort(held)[-5:]
    excess = np.mean([u - upper[0] for u in upper[1:]])
    return float(counted + max(0.0, m - held.max()) / excess)


def expected_scores(rows: Signals) -> np.ndarray:
    held, test = log_distances(HELD), log_distances(rows)
    own = np.array([sum(-2 * np.log((1 + np.sum(np.delete(held[:, j], i) >= held[i, j])) / 50) for j in range(3)) for i in range(50)])
    freedom = min(6.0, 2 * own.mean() ** 2 / own.var(ddof=1))
    statistic = np.array([2 * sum(surprise(held[:, j], m) for j, m in enumerate(row)) for row in test])
    return np.asarray(-chi2.logsf(statistic * freedom / own.mean(), freedom))


def test_it_equals_counting_and_scipy() -> None:
    fitted = MultilayerFisher().fit([FIT], held_out=[HELD])
    np.testing.assert_allclose(fitted.score(TEST).numpy(), expected_scores(TEST), rtol=1e-4, atol=1e-5)
    assert 2.0 <= float(fitted.state["freedom"]) < 6.0


@pytest.mark.parametrize("freedom", [0.5, 2.0, 7.3, 60.0])
def test_the_survival_function_equals_scipy_however_far_out(freedom: float) -> None:
    values = torch.tensor([0.0, 1e-3, 0.5, 3.0, 40.0, 600.0, 900.0, 1000.0, 1500.0, 1e4, 1e7], dtype=torch.float64)
    got = log_survival(values, torch.tensor(freedom, dtype=torch.float64))
    with np.errstate(divide="ignore"):
        expected = chi2.logsf(values.numpy(), freedom)
    sound = np.isfinite(expected)
    np.testing.assert_allclose(got.numpy()[sound], expected[sound], rtol=1e-9, atol=1e-12)
    assert bool((got[4:].diff() < 0).all())


def test_far_images_do_not_tie_at_the_floor() -> None:
    fitted = MultilayerFisher().fit([FIT], held_out=[HELD])
    shifts = [5.0, 50.0, 200.0]
    far = [float(fitted.score(draw(1, 4, shift=dict.fromkeys(WIDTHS, s)))) for s in shifts]
    assert far[0] < far[1] < far[2]
    assert all(np.isfinite(far))


def test_p_values_of_usual_images_are_uniform_in_spite_of_dependent_layers() -> None:
    fitted = MultilayerFisher().fit([draw(600, 11)], held_out=[draw(400, 12)])
    p = np.exp(-fitted.score(draw(1500, 13)).numpy())
    assert abs(p.mean() - 0.5) < 0.05
    assert 0.02 < (p < 0.05).mean() < 0.09


def test_known_failure_a_shift_in_one_layer_is_diluted_by_many_quiet_ones() -> None:
    generator = torch.Generator().manual_seed(21)

    def many(count: int, shift: float) -> Signals:
        out = {f"features.l{i:02d}": 5 + torch.randn(count, 4, generator=generator) for i in range(20)}
        out["features.l00"] = out["features.l00"] + shift * torch.tensor([1.0, -1, 0, 0])
        return out

    fit, held, usual, odd = many(200, 0), many(60, 0), many(100, 0), many(100, 2.0)

    def area(layers: tuple[str, ...]) -> float:
        fitted = MultilayerFisher(layers=layers).fit([fit], held_out=[held])
        return float((fitted.score(odd)[:, None] > fitted.score(usual)[None]).double().mean())

    assert area(()) < area(("l00",)) - 0.1


def test_without_held_out_images_every_fourth_is_kept_apart() -> None:
    fourth = torch.arange(200) % 4 == 3
    explicit = MultilayerFisher().fit([{k: v[~fourth] for k, v in FIT.items()}], held_out=[{k: v[fourth] for k, v in FIT.items()}])
    assert torch.equal(MultilayerFisher().fit([FIT]).score(TEST), explicit.score(TEST))


def test_copies_in_the_held_out_part_are_refused_if_there_is_nothing_else() -> None:
    copies = {k: v[:1].repeat(10, 1) for k, v in HELD.items()}
    with pytest.raises(SignalError, match="copies of one image"):
        MultilayerFisher().fit([FIT], held_out=[copies])
    one_more = {k: torch.cat([v, HELD[k][1:2]]) for k, v in copies.items()}
    assert bool(torch.isfinite(MultilayerFisher().fit([FIT], held_out=[one_more]).score(TEST)).all())


def test_too_few_held_out_images_are_refused() -> None:
    with pytest.raises(SignalError, match="needs at least 4"):
        MultilayerFisher().fit([FIT], held_out=[{k: v[:3] for k, v in HELD.items()}])


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="shrinkage"):
        MultilayerFisher.from_params({"shrinkage": "no"})

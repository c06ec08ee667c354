"""Local outlier factor against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import normalize
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.knn import KNN
from offmap.score.lof import LOF

Signals = dict[str, Tensor]


@pytest.mark.parametrize("k", [1, 20, 149])
def test_it_equals_scikit_learn(batches: list[Signals], fit_signals: Signals, unseen: Signals, k: int) -> None:
    rows, queries = (normalize(s["features.last"].numpy()) for s in (fit_signals, unseen))
    expected = -LocalOutlierFactor(n_neighbors=k, novelty=True).fit(rows).score_samples(queries)
    np.testing.assert_allclose(LOF(k=k).fit(batches).score(unseen).numpy(), expected, rtol=1e-4)


def test_a_rare_kind_of_image_is_usual_among_its_own_where_knn_finds_it_odd() -> None:
    generator = torch.Generator().manual_seed(7)
    common = torch.tensor([10.0, 0, 0]) + 0.1 * torch.randn(197, 3, generator=generator)
    rare = torch.tensor([0, 10.0, 0]) + 0.1 * torch.randn(6, 3, generator=generator)
    fit = [{"features.last": torch.cat([common, rare[:5]])}]
    local, near = (d.fit(fit) for d in (LOF(k=3), KNN()))
    assert float(local.score({"features.last": rare[5:]})) < 3
    assert float(near.score({"features.last": rare[5:]})) > float(near.score({"features.last": common}).max())


def test_known_failure_odd_images_in_the_bank_hide_each_other(batches: list[Signals]) -> None:
    generator = torch.Generator().manual_seed(2)
    odd = torch.tensor([-9.0, *([0.0] * 11)], dtype=torch.float64) + 0.1 * torch.randn(30, 12, generator=generator, dtype=torch.float64)
    clean, fouled = (LOF().fit([*batches, *extra]) for extra in ([], [{"features.last": odd[:25]}]))
    test = {"features.last": odd[25:]}
    assert float(fouled.score(test).max()) < 0.5 * float(clean.score(test).min())


def test_trap_copies_in_the_bank_give_enormous_but_finite_scores(fit_signals: Signals, unseen: Signals) -> None:
    copies = {"features.last": fit_signals["features.last"][:2].repeat(30, 1)}
    fitted = LOF(k=5).fit([copies])
    assert float(fitted.score(unseen).max()) > 1e6
    assert bool(torch.isfinite(fitted.score(unseen)).all())
    assert float(fitted.score({"features.last": fit_signals["features.last"][:1]})) == pytest.approx(1.0)


def test_few_images_have_fewer_neighbours_and_one_is_refused(fit_signals: Signals, unseen: Signals) -> None:
    rows = fit_signals["features.last"]
    few, explicit = (LOF(k=k).fit([{"features.last": rows[:6]}]).score(unseen) for k in (20, 5))
    assert torch.equal(few, explicit)
    with pytest.raises(SignalError, match="at least two"):
        LOF().fit([{"features.last": rows[:1]}])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 5, "max_bank": 5}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        LOF.from_params(wrong)

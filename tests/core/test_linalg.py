"""Shrinkage, whitening and eigenvectors against scikit-learn and against formulas written out."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage, oas
from torch import Tensor

from offmap.core import linalg
from offmap.core.errors import SignalError
from offmap.core.linalg import Whitener, cholesky, nearest_centre, principal, shrunk, unit_norm
from offmap.core.moments import ClassMoments, Moments, quartic


def data(seed: int, count: int, width: int, rank: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(count, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, width, generator=generator, dtype=torch.float64
    )
    return low + 0.3 * torch.randn(count, width, generator=generator, dtype=torch.float64) + 2.0


@pytest.mark.parametrize(("count", "width"), [(300, 12), (40, 12), (20, 60), (3, 30), (50, 1)])
def test_ledoit_wolf_equals_scikit_learn(count: int, width: int) -> None:
    rows = data(count, count, width)
    parts = Moments.of(rows[: count // 3]).merge(Moments.of(rows[count // 3 :]))
    weight = linalg.ledoit_wolf(parts.scatter / count, parts.quartic, count=count)
    assert weight == pytest.approx(ledoit_wolf_shrinkage(rows.numpy()), abs=1e-10)
    expected = LedoitWolf().fit(rows.numpy()).covariance_
    np.testing.assert_allclose(shrunk(parts.scatter, parts.quartic, count=count).numpy(), expected, rtol=1e-9, atol=1e-10)


def test_ledoit_wolf_within_classes_equals_scikit_learn_on_residuals() -> None:
    rows, labels = data(5, 90, 25), torch.arange(90) % 3
    rows = rows + 5.0 * labels[:, None]
    sums = ClassMoments.of(rows[:50], labels[:50]).merge(ClassMoments.of(rows[50:], labels[50:]))
    residuals = sums.residuals(rows, labels)
    expected = LedoitWolf(assume_centered=True).fit(residuals.numpy()).covariance_
    got = shrunk(sums.within, quartic(residuals), count=90, centres=3)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("count", "width"), [(300, 12), (20, 60)])
def test_oas_is_the_form_of_the_paper(count: int, width: int) -> None:
    rows = data(count, count, width)
    scatter = Moments.of(rows).scatter
    s, n, d = scatter / (count - 1), count - 1, width
    square, trace = torch.trace(s @ s), torch.trace(s)
    rho = min(1.0, float(((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d))))
    expected = (1 - rho) * s + rho * trace / d * torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(
        shrunk(scatter, torch.zeros((), dtype=torch.float64), count=count, kind="oas"), expected, rtol=1e-10, atol=1e-12
    )
    assert rho == pytest.approx(oas(rows.numpy())[1], rel=0.1), "scikit-learn's form without 2/D lies near"


def test_one_dimension_is_not_shrunk() -> None:
    rows = data(6, 30, 1)
    moments = Moments.of(rows)
    for kind, free in (("ledoit_wolf", 30), ("oas", 29)):
        got = shrunk(moments.scatter, moments.quartic, count=30, kind=kind)
        torch.testing.assert_close(got, moments.scatter / free)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_rows_have_no_covariance(value: float) -> None:
    moments = Moments.of(torch.full((7, 3), value, dtype=torch.float64))
    with pytest.raises(SignalError, match="do not vary"):
        shrunk(moments.scatter, moments.quartic, count=7, level=float(moments.mean.square().sum()))


def test_one_row_a_class_has_no_covariance() -> None:
    with pytest.raises(SignalError, match="at least two different"):
        shrunk(torch.eye(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64), count=3, centres=3, kind="oas")


@pytest.mark.parametrize(("count", "width"), [(200, 10), (15, 40)])
def test_whitened_distance_equals_the_inverse_written_out(count: int, width: int) -> None:
    rows = data(7, count, width)
    moments = Moments.of(rows)
    covariance = shrunk(moments.scatter, moments.quartic, count=count)
    whitener = Whitener.of(moments.mean, covariance)
    centred = rows - moments.mean
    expected = (centred @ torch.linalg.inv(covariance) * centred).sum(dim=1)
    torch.testing.assert_close(whitener.squared(rows), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(whitener.squared(rows.float()), expected, rtol=1e-4, atol=0)


def test_a_singular_covariance_gets_the_least_ridge() -> None:
    rows = data(8, 10, 30)
    rows[:, 3] = 1.0
    scatter = Moments.of(rows).scatter
    factor = cholesky(scatter)
    assert bool(torch.isfinite(factor).all())
    assert float((factor @ factor.T - scatter).abs().max()) < 1e-9 * float(scatter.trace())


def test_a_matrix_of_zeros_has_no_factor() -> None:
    with pytest.raises(SignalError, match="no Cholesky factor"):
        cholesky(torch.zeros(3, 3, dtype=torch.float64))


def test_nearest_centre_equals_all_differences_and_is_zero_at_a_centre() -> None:
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(50, 6, generator=generator, dtype=torch.float64) + 1e4
    centres = torch.cat([torch.randn(9, 6, generator=generator, dtype=torch.float64) + 1e4, rows[:1]])
    squared, which = nearest_centre(rows, centres)
    every = (rows[:, None] - centres[None]).square().sum(dim=2)
    torch.testing.assert_close(squared, every.min(dim=1).values, rtol=1e-12, atol=0)
    assert which.tolist() == every.argmin(dim=1).tolist()
    assert float(squared[0]) == 0.0


def test_principal_directions_rebuild_the_matrix_in_descending_order() -> None:
    scatter = Moments.of(data(10, 40, 8)).scatter
    values, vectors = principal(scatter)
    assert bool((values.diff() <= 0).all())
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, scatter, rtol=1e-9, atol=1e-8)
    expected = torch.from_numpy(np.linalg.svd(scatter.numpy())[0][:, :3])
    projector = vectors[:, :3] @ vectors[:, :3].T
    torch.testing.assert_close(projector, expected @ expected.T, rtol=0, atol=1e-9)


def test_a_zero_row_stays_zero_when_brought_to_length_one() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-20, 0.0]])
    unit = unit_norm(rows)
    torch.testing.assert_close(unit[:2], torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert bool(torch.isfinite(unit).all())

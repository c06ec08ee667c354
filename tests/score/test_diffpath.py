"""DiffPath against a sum of one-dimensional Gaussians."""

import numpy as np
import pytest
from scipy import stats
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.score.diffpath import DiffPath

ONE = DiffPath(components=1)


def test_one_diagonal_component_is_a_product_of_gaussians() -> None:
    fit, test = batch(ONE, 80, 6, seed=1), batch(ONE, 20, 6, seed=2)
    rows = of(ONE, fit).numpy()
    z = (of(ONE, test).numpy() - rows.mean(axis=0)) / rows.std(axis=0)
    expected = -stats.norm(0, np.sqrt(1 + 1e-3)).logpdf(z).sum(axis=1)
    np.testing.assert_allclose(ONE.fit([fit]).score(test).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_sum_does_not_matter() -> None:
    """Means in place of sums give the same score."""
    fit, test = batch(ONE, 80, 6, seed=1), batch(ONE, 20, 6, seed=2)
    (name,) = ONE.needs
    larger = [{name: 1024.0 * s[name]} for s in (fit, test)]
    np.testing.assert_allclose(ONE.fit([fit]).score(test).numpy(), ONE.fit([larger[0]]).score(larger[1]).numpy(), rtol=1e-5)


def test_its_signal_carries_its_settings() -> None:
    assert DiffPath(levels=5, high=8.0).needs == {"diffpath.moments:high=8,levels=5,low=0.02"}


def test_trap_few_components_see_the_gap_between_two_groups_as_usual() -> None:
    near, far = batch(ONE, 60, 6, seed=1, scale=0.1), batch(ONE, 60, 6, seed=3, shift=4.0, scale=0.1)
    between = batch(ONE, 20, 6, seed=4, shift=2.0, scale=0.1)
    assert float(ONE.fit([near, far]).score(between).max()) < float(ONE.fit([near, far]).score(near).min())
    two = DiffPath(components=2).fit([near, far])
    assert float(two.score(between).min()) > float(two.score(near).max())


@pytest.mark.parametrize("wrong", [{"levels": 1}, {"components": 101}, {"floor": 2.0}, {"low": -1.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="diffpath"):
        DiffPath(**wrong)  # type: ignore[arg-type]

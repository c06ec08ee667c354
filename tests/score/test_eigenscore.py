"""EigenScore against the sum of z-scores."""

import numpy as np
import pytest
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.score.eigenscore import EigenScore


def test_its_order_is_that_of_the_sum_of_z_scores() -> None:
    detector = EigenScore()
    held, test = batch(detector, 40, 3, seed=2), batch(detector, 30, 3, seed=3)
    rows, asked = of(detector, held).numpy(), of(detector, test).numpy()
    total = ((asked - rows.mean(axis=0)) / rows.std(axis=0)).sum(axis=1)
    got = detector.fit([batch(detector, 60, 3, seed=1)], held_out=[held]).score(test).numpy()
    np.testing.assert_allclose(3 * got, total, rtol=1e-4, atol=1e-6)


def test_trap_an_image_without_doubt_scores_low_however_odd() -> None:
    detector = EigenScore()
    fitted = detector.fit([batch(detector, 40, 3, seed=1)])
    assert float(fitted.score(batch(detector, 20, 3, seed=2, shift=-0.9)).max()) < 0


def test_its_signal_carries_its_settings() -> None:
    assert EigenScore(vectors=2).needs == {"eigenscore.values:high=1.25,iterations=3,levels=3,low=0.3,repeats=1,vectors=2"}


@pytest.mark.parametrize("wrong", [{"vectors": 65}, {"iterations": 0}, {"repeats": 0}, {"high": 0.1}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="eigenscore"):
        EigenScore(**wrong)  # type: ignore[arg-type]

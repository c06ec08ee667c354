"""GEPC: z-scores of equivariance errors, and their map."""

import numpy as np
import pytest
import torch
from tests.score.diffusion_signals import batch, of

from offmap.core.errors import ConfigError
from offmap.score.gepc import GEPC


def test_it_is_the_mean_of_z_scores() -> None:
    detector = GEPC()
    held, test = batch(detector, 40, 3, seed=2), batch(detector, 10, 3, seed=3)
    rows, asked = of(detector, held).numpy(), of(detector, test).numpy()
    expected = ((asked - rows.mean(axis=0)) / rows.std(axis=0)).mean(axis=1)
    np.testing.assert_allclose(detector.fit([held], held_out=[held]).score(test).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_one_level_has_the_order_of_the_error_itself() -> None:
    detector = GEPC(levels=1)
    fitted, test = detector.fit([batch(detector, 40, 1, seed=1)]), batch(detector, 30, 1, seed=2)
    assert fitted.score(test).argsort().tolist() == of(detector, test)[:, 0].argsort().tolist()


def test_the_map_is_the_signal() -> None:
    detector = GEPC()
    fitted = detector.fit([batch(detector, 40, 3, seed=1)])
    (name,) = detector.map_needs
    maps = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fitted.map({name: maps}), maps[:, 0])


def test_trap_a_network_that_follows_every_shift_says_nothing() -> None:
    detector = GEPC()
    (name,) = detector.needs
    none = {name: torch.cat([torch.zeros(39, 3), torch.full((1, 3), 1e-9)])}
    assert float(detector.fit([none]).score({name: torch.zeros(5, 3)}).abs().max()) < 1


@pytest.mark.parametrize("wrong", [{"shift": 0}, {"levels": 0}, {"low": float("nan")}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="gepc"):
        GEPC(**wrong)  # type: ignore[arg-type]

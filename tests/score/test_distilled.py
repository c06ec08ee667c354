"""The student's score as it is, and its map."""

import pytest
import torch

from offmap.core.errors import SignalError
from offmap.score.distilled import Distilled


def test_score_and_map_are_the_signals() -> None:
    scores, maps = torch.linspace(-1, 3, 9), torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    fitted = Distilled().fit([{"student.score": scores}])
    torch.testing.assert_close(fitted.score({"student.score": scores}), scores)
    torch.testing.assert_close(fitted.map({"student.map": maps}), maps[:, 0])
    assert fitted.state == {}


def test_trap_it_has_no_scale_of_its_own() -> None:
    """A student of another teacher gives other numbers: only calibration makes them comparable."""
    fitted = Distilled().fit([{"student.score": torch.zeros(3)}])
    assert float(fitted.score({"student.score": torch.tensor([7.0])})) == 7.0


def test_a_signal_of_another_shape_is_refused() -> None:
    with pytest.raises(SignalError, match=r"must be \(N,\)"):
        Distilled().fit([{"student.score": torch.zeros(4, 2)}])

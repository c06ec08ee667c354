"""The largest of a student's distances, or the mean of the highest ones."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from offmap.core.errors import ConfigError, SignalError
from offmap.score.rd4ad import RD4AD


def drawn(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    return {"rd4ad.map": 2 * torch.rand(count, 1, 6, 5, generator=torch.Generator().manual_seed(seed))}


def test_it_is_the_largest_value_of_the_map() -> None:
    seen = drawn()
    fitted = RD4AD().fit([drawn(3, 1)])
    assert fitted.state == {}
    np.testing.assert_array_equal(fitted.score(seen).numpy(), seen["rd4ad.map"].numpy().reshape(5, -1).max(axis=1))
    assert torch.equal(fitted.map(seen), seen["rd4ad.map"][:, 0])


def test_a_share_of_the_positions_can_count() -> None:
    seen = drawn()
    highest = np.sort(seen["rd4ad.map"].double().numpy().reshape(5, -1), axis=1)[:, ::-1]
    for top, count in ((0.1, 3), (0.5, 15), (1.0, 30)):
        got = RD4AD(top=top).fit([seen]).score(seen).numpy()
        np.testing.assert_allclose(got, highest[:, :count].mean(axis=1), rtol=1e-6)


def test_known_failure_the_length_of_a_vector_is_not_seen() -> None:
    """What the network gives is an angle: features ten times as long as the student's have the same distance."""
    teacher, student = torch.rand(2, 4, 6, 5), torch.rand(2, 4, 6, 5)
    maps = [1 - functional.cosine_similarity(scale * teacher, student, dim=1)[:, None] for scale in (1.0, 10.0)]
    one, ten = (RD4AD().fit([drawn()]).score({"rd4ad.map": m}) for m in maps)
    torch.testing.assert_close(one, ten, rtol=1e-4, atol=1e-6)


def test_another_shape_or_share_is_refused() -> None:
    with pytest.raises(SignalError, match=r"\(5, 2, 6, 5\) must be \(N, 1, ...\)"):
        RD4AD().fit([{"rd4ad.map": torch.zeros(5, 2, 6, 5)}])
    for wrong in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=str(wrong)):
            RD4AD.from_params({"top": wrong})

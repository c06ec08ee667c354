"""CutPaste's Gaussian: a naive formula, scikit-learn's estimate, no use of labels, and what a mean over the image cannot see."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from offmap.core.errors import ConfigError, SignalError
from offmap.score.cutpaste import SIGNAL, CutPaste


def features(count: int, *, seed: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + 3.0


def test_it_is_the_squared_mahalanobis_distance_of_scikit_learn() -> None:
    rows, other = features(90, seed=1), features(20, seed=2)
    fitted = CutPaste().fit([{SIGNAL: part} for part in rows.split(40)])
    reference = LedoitWolf().fit(rows.numpy())
    np.testing.assert_allclose(fitted.score({SIGNAL: other}).numpy(), reference.mahalanobis(other.numpy()), rtol=1e-5)
    centred = other.numpy() - rows.numpy().mean(axis=0)
    naive = np.einsum("nd,de,ne->n", centred, np.linalg.inv(reference.covariance_), centred)
    np.testing.assert_allclose(fitted.score({SIGNAL: other}).numpy(), naive, rtol=1e-5)


def test_labels_play_no_part() -> None:
    rows = features(60, seed=1)
    plain = CutPaste().fit([{SIGNAL: rows}])
    labelled = CutPaste().fit([{SIGNAL: rows, "label": torch.arange(60) % 3}])
    assert torch.equal(plain.score({SIGNAL: rows}), labelled.score({SIGNAL: rows}))


def test_trap_two_changes_that_cancel_in_the_mean_over_the_image_are_not_seen() -> None:
    """A map with as much more in one place as less in another has the features of a usual one."""
    maps = torch.randn(80, 12, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = CutPaste().fit([{SIGNAL: maps.mean(dim=(2, 3))}])
    odd = maps[:5].clone()
    odd[:, :, 0, 0] += 50.0
    odd[:, :, 5, 5] -= 50.0
    torch.testing.assert_close(fitted.score({SIGNAL: odd.mean(dim=(2, 3))}), fitted.score({SIGNAL: maps[:5].mean(dim=(2, 3))}))


def test_what_is_wrong_is_named() -> None:
    fitted = CutPaste().fit([{SIGNAL: features(30, seed=1)}])
    with pytest.raises(SignalError, match=r"must be \(N, 12, as when it was fitted\)"):
        fitted.score({SIGNAL: torch.rand(3, 5)})
    with pytest.raises(SignalError, match="do not vary"):
        CutPaste().fit([{SIGNAL: torch.ones(5, 4)}])
    with pytest.raises(ConfigError, match="shrinkage"):
        CutPaste.from_params({"shrinkage": "none"})

"""Ensemble mutual information against its formula, its bounds, and what it does not see."""

import math

import numpy as np
import pytest
import torch
from tests.score.passes import entropies, several

from offmap.core.errors import SignalError
from offmap.score.ensemble_mutual_information import EnsembleMutualInformation

NAME = "ensemble.logits"


def test_it_equals_the_formula() -> None:
    of_mean, mean_of = entropies(several(seed=1))
    got = EnsembleMutualInformation().fit([{NAME: several()}]).score({NAME: several(seed=1)}).numpy()
    np.testing.assert_allclose(got, of_mean - mean_of, rtol=1e-5, atol=1e-9)


def test_its_bounds_are_agreement_and_each_member_sure_of_a_class_of_its_own() -> None:
    fitted = EnsembleMutualInformation().fit([{NAME: several(passes=3, classes=5)}])
    apart = 500.0 * torch.eye(5)[None, :3]
    assert float(fitted.score({NAME: apart})) == pytest.approx(math.log(3))
    assert fitted.score({NAME: several(passes=1, classes=5).expand(-1, 3, -1)}).tolist() == pytest.approx([0.0] * 12, abs=1e-12)


def test_known_failure_undecided_members_agree() -> None:
    fitted = EnsembleMutualInformation().fit([{NAME: several()}])
    assert float(fitted.score({NAME: torch.zeros(1, 6, 4)})) == 0.0


def test_classes_in_another_order_and_one_class_are_refused() -> None:
    logits = several(200, 2, 3, spread=0.3)
    logits[:, 1] = logits[:, 1].roll(1, dims=1)
    with pytest.raises(SignalError, match=r"ensemble_mutual_information: member 2 .* 1 for 0, 2 for 1, 0 for 2 "):
        EnsembleMutualInformation().fit([{NAME: logits}])
    with pytest.raises(SignalError, match="needs two logits or more"):
        EnsembleMutualInformation().fit([{NAME: torch.zeros(3, 6, 1)}])

"""Ensemble entropy against its formula and scipy, its limits, and members whose classes stand in another order."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from tests.score.passes import entropies, several

from offmap.core.errors import SignalError
from offmap.score.ensemble_entropy import EnsembleEntropy
from offmap.score.entropy import Entropy

NAME = "ensemble.logits"


def test_it_equals_the_formula_and_scipy() -> None:
    got = EnsembleEntropy().fit([{NAME: several()}]).score({NAME: several(seed=1)}).numpy()
    np.testing.assert_allclose(got, entropies(several(seed=1))[0], rtol=1e-6)
    np.testing.assert_allclose(got, entropy(softmax(several(seed=1).numpy(), axis=2).mean(axis=1), axis=1), rtol=1e-6)


def test_members_that_agree_give_the_entropy_of_one_and_opposite_ones_are_undecided() -> None:
    logits = several(passes=1)
    got = EnsembleEntropy().fit([{NAME: several()}]).score({NAME: logits.expand(-1, 6, -1)})
    torch.testing.assert_close(got, Entropy().fit([{"logits": logits[:, 0]}]).score({"logits": logits[:, 0]}))
    opposite = torch.tensor([[[500.0, 0.0], [0.0, 500.0]]])
    assert float(EnsembleEntropy().fit([{NAME: torch.zeros(1, 2, 2)}]).score({NAME: opposite})) == pytest.approx(math.log(2))


def test_known_failure_members_that_are_fooled_alike_are_sure() -> None:
    fitted = EnsembleEntropy().fit([{NAME: several()}])
    fooled = torch.tensor([50.0, 0.0, 0.0, 0.0]).expand(1, 6, 4)
    assert float(fitted.score({NAME: fooled})) < float(fitted.score({NAME: several()}).min())


@pytest.mark.parametrize("batches", [1, 7])
def test_classes_in_another_order_are_refused(batches: int) -> None:
    logits = several(200, 3, 4, spread=0.3)
    logits[:, 2] = logits[:, 2][:, [0, 2, 1, 3]]
    with pytest.raises(SignalError, match=r"member 3 of the ensemble .*: 2 for 1, 1 for 2 .*in the same order"):
        EnsembleEntropy().fit([{NAME: part} for part in logits.chunk(batches)])


def test_members_that_differ_or_are_wrong_about_one_class_are_accepted() -> None:
    EnsembleEntropy().fit([{NAME: several(200, 3, 4, spread=8.0)}])
    collapsed = several(200, 2, 2, spread=0.1)
    collapsed[:, 0, 0] += 100.0
    collapsed[:, 1, 1] += 100.0
    assert bool(EnsembleEntropy().fit([{NAME: collapsed}]).score({NAME: collapsed}).isfinite().all())
    few = several(6, 2, 2, spread=0.0)
    few[:, 1] = few[:, 1].flip(1)
    EnsembleEntropy().fit([{NAME: few}])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SignalError, match="needs two logits or more"):
        EnsembleEntropy().fit([{NAME: torch.zeros(3, 6, 1)}])
    with pytest.raises(SignalError, match=r"ensemble\.logits is of one member; two networks or more"):
        EnsembleEntropy().fit([{NAME: torch.zeros(3, 1, 4)}])
    with pytest.raises(SignalError, match=r"with S, K = \[6, 4\], as when it was fitted"):
        EnsembleEntropy().fit([{NAME: several()}]).score({NAME: torch.zeros(3, 5, 4)})

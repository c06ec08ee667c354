"""RankFeat against its formula and Energy, and networks for which it is blind."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.energy import Energy
from offmap.score.rankfeat import RankFeat

Signals = dict[str, Tensor]
LAST, BEFORE = RankFeat().signals


def tails(signals: Signals) -> Signals:
    """Logits of two tails."""
    return {LAST: 0.8 * signals["logits"], BEFORE: signals["logits"].flip(1) - 0.3}


def test_it_equals_the_formula(batches: list[Signals], unseen: Signals) -> None:
    got = RankFeat().fit([tails(b) for b in batches]).score(tails(unseen))
    last, before = (tails(unseen)[name].numpy() for name in (LAST, BEFORE))
    expected = [-logsumexp((a + b) / 2) for a, b in zip(last, before, strict=True)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_with_one_layer_it_is_the_energy_of_its_tail(batches: list[Signals], unseen: Signals) -> None:
    detector = RankFeat(layers=("layer4",), steps=5)
    (name,) = detector.needs
    assert name == "rankfeat.logits.layer4:steps=5"
    got = detector.fit([{name: b["logits"]} for b in batches]).score({name: unseen["logits"]})
    torch.testing.assert_close(got, Energy().fit(batches).score(unseen))


def test_the_signals_are_those_of_the_two_deepest_layers() -> None:
    assert (LAST, BEFORE) == ("rankfeat.logits.last:steps=20", "rankfeat.logits.last_but_one:steps=20")


def test_known_failure_where_the_triplet_carries_the_class_all_images_score_alike(batches: list[Signals], unseen: Signals) -> None:
    """A network that answers with its bias once the triplet is gone."""
    bias = unseen["head.bias"].expand(len(unseen["logits"]), -1)
    scores = RankFeat().fit([tails(b) for b in batches]).score({LAST: bias, BEFORE: bias})
    assert float(scores.max() - scores.min()) == 0.0


@pytest.mark.parametrize("wrong", [{"layers": ()}, {"layers": ("last", "last")}, {"layers": ("*",)}, {"steps": 0}])
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"rankfeat: {next(iter(wrong))} = "):
        RankFeat(**wrong)  # type: ignore[arg-type]


def test_logits_of_different_widths_are_refused() -> None:
    with pytest.raises(SignalError, match=r"rankfeat: rankfeat.logits.last_but_one:steps=20 of shape \(4, 2\) must be \(N, 3"):
        RankFeat().fit([{LAST: torch.zeros(4, 3), BEFORE: torch.zeros(4, 2)}])

"""Test-time augmentation against its formula, and its two measures."""

import numpy as np
import pytest
import torch
from tests.score.passes import entropies, several

from offmap.core.errors import ConfigError, SignalError
from offmap.score.entropy import Entropy
from offmap.score.test_time_augmentation import TTA

NAME = "tta.logits:upside_down=false"


def views(*, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    return several(passes=8, seed=seed, spread=spread)


def test_both_measures_equal_their_formulas() -> None:
    of_mean, mean_of = entropies(views(seed=1))
    got = TTA().fit([{NAME: views()}]).score({NAME: views(seed=1)})
    np.testing.assert_allclose(got.numpy(), of_mean, rtol=1e-6)
    apart = TTA(measure="mutual_information").fit([{NAME: views()}]).score({NAME: views(seed=1)})
    np.testing.assert_allclose(apart.numpy(), of_mean - mean_of, rtol=1e-5, atol=1e-9)


def test_views_that_agree_give_the_entropy_of_the_image() -> None:
    logits = views()[:, 0]
    got = TTA().fit([{NAME: views()}]).score({NAME: logits[:, None].expand(-1, 8, -1)})
    torch.testing.assert_close(got, Entropy().fit([{"logits": logits}]).score({"logits": logits}))


def test_views_that_disagree_score_higher() -> None:
    for measure in ("entropy", "mutual_information"):
        fitted = TTA(measure=measure).fit([{NAME: views()}])  # type: ignore[arg-type]
        assert float(fitted.score({NAME: views(spread=6.0)}).mean()) > float(fitted.score({NAME: views(spread=0.1)}).mean())


def test_known_failure_an_image_between_two_classes_looks_odd() -> None:
    fitted = TTA().fit([{NAME: views()}])
    between = torch.tensor([8.0, 8.0, 0.0, 0.0]).expand(1, 8, 4)
    unknown_but_sure = torch.tensor([8.0, 0.0, 0.0, 0.0]).expand(1, 8, 4)
    assert float(fitted.score({NAME: between})) > float(fitted.score({NAME: unknown_but_sure}))


def test_the_signal_says_which_views() -> None:
    assert TTA().needs == {NAME}
    assert TTA(upside_down=True).needs == {"tta.logits:upside_down=true"}


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"\[test_time_augmentation\] measure = 'variance' must be one of 'entropy'"):
        TTA.from_params({"measure": "variance"})
    with pytest.raises(SignalError, match="test_time_augmentation needs two logits or more"):
        TTA().fit([{NAME: torch.zeros(3, 8, 1)}])
    with pytest.raises(SignalError, match=r"with S, K = \[8, 4\]"):
        TTA().fit([{NAME: views()}]).score({NAME: torch.zeros(3, 10, 4)})

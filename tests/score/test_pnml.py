"""pNML against its formula, its two ends, and directions never seen."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.pnml import PNML, regret

Signals = dict[str, Tensor]


@pytest.mark.parametrize("ridge", [1e-12, 1e-3])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, ridge: float) -> None:
    rows, queries = (s["features.penultimate"].numpy() for s in (fit_signals, unseen))
    rows, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, queries))
    second = rows.T @ rows
    inverse = np.linalg.pinv(second + ridge * np.trace(second) / len(second) * np.eye(len(second)))
    q = np.einsum("nd,de,ne->n", queries, inverse, queries)[:, None]
    p = softmax(queries @ fit_signals["head.weight"].numpy().T + fit_signals["head.bias"].numpy(), axis=1)
    expected = np.log((p / (p + (1 - p) * p ** (q / (1 + q)))).sum(axis=1)) / np.log(3)
    np.testing.assert_allclose(PNML(ridge=ridge).fit(batches).score(unseen).numpy(), expected, rtol=1e-4, atol=1e-7)


def test_nothing_left_to_learn_gives_zero_and_everything_gives_at_most_one() -> None:
    logits = torch.tensor([[3.0, 0.0, -2.0], [0.0, 0.0, 0.0], [2000.0, 0.0, -2000.0]], dtype=torch.float64)
    assert regret(logits, torch.zeros(3, 1, dtype=torch.float64)).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    free = regret(logits, torch.full((3, 1), 1e12, dtype=torch.float64))
    assert bool(((free >= 0) & (free <= 1)).all())
    assert float(free[1]) == pytest.approx(np.log(9 / 5) / np.log(3))


def test_a_direction_never_seen_is_odd_where_the_pseudo_inverse_says_usual() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([1 + torch.rand(8, 3, generator=generator), torch.zeros(8, 17)], dim=1).double()
    head = {"head.weight": torch.eye(20, dtype=torch.float64)[:2], "head.bias": torch.zeros(2, dtype=torch.float64)}
    fitted = PNML().fit([{"features.penultimate": rows, **head}])
    new = torch.zeros(1, 20, dtype=torch.float64)
    new[0, 15] = 1.0
    assert float(fitted.score({"features.penultimate": new})) > float(fitted.score({"features.penultimate": rows}).max())
    assert float(new @ torch.linalg.pinv(rows.T @ rows) @ new.T) == pytest.approx(0.0, abs=1e-12)


def test_known_failure_the_length_of_features_is_lost(batches: list[Signals], unseen: Signals) -> None:
    fitted = PNML().fit(batches)
    longer = {**unseen, "features.penultimate": 50 * unseen["features.penultimate"]}
    torch.testing.assert_close(fitted.score(longer), fitted.score(unseen))


def test_bad_input_is_refused(batches: list[Signals]) -> None:
    with pytest.raises(SignalError, match="two logits or more"):
        PNML().fit([{**b, "head.weight": b["head.weight"][:1], "head.bias": b["head.bias"][:1]} for b in batches])
    for ridge in (0.0, 2.0, float("nan")):
        with pytest.raises(ConfigError, match="ridge"):
            PNML(ridge=ridge)

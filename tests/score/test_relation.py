"""Relation against its formula: the product is cut and powered, and the size of the bank does not matter."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from offmap.core.errors import ConfigError
from offmap.score._bank import chunks
from offmap.score.relation import Relation

Signals = dict[str, Tensor]


@pytest.mark.parametrize(("power", "cut"), [(1.0, 0.03), (4.0, 0.2), (1.0, 0.0)])
def test_it_equals_the_formula(batches: list[Signals], fit_signals: Signals, unseen: Signals, power: float, cut: float) -> None:
    unit = [s["features.penultimate"].numpy() for s in (unseen, fit_signals)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
    p, q = (softmax(s["logits"].numpy(), axis=1) for s in (unseen, fit_signals))
    relation = np.maximum(0, unit[0] @ unit[1].T) * (p @ q.T)
    expected = -np.where(relation > cut, relation**power, 0).sum(axis=1) / len(q)
    np.testing.assert_allclose(Relation(power=power, cut=cut).fit(batches).score(unseen).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_bank_twice_over_gives_the_same_numbers(batches: list[Signals], unseen: Signals) -> None:
    torch.testing.assert_close(Relation().fit(batches + batches).score(unseen), Relation().fit(batches).score(unseen))


def test_the_bank_is_bounded_by_a_sample(batches: list[Signals]) -> None:
    state = Relation(max_bank=30).fit(batches).state
    assert (tuple(state["features"].shape), tuple(state["softmax"].shape)) == ((30, 12), (30, 3))


def test_known_failure_an_image_of_a_rare_class_looks_odd() -> None:
    def of(which: Tensor) -> Signals:
        rows = torch.eye(2)[which]
        return {"features.penultimate": rows, "logits": 8 * rows}

    fitted = Relation().fit([of(torch.tensor([0] * 95 + [1] * 5))])
    common, rare = fitted.score(of(torch.tensor([0, 1]))).tolist()
    assert common < 10 * rare < 0


@pytest.mark.parametrize("wrong", [{"power": 0.0}, {"cut": 1.0}, {"cut": -0.1}, {"max_bank": 0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Relation.from_params(wrong)


def test_large_banks_are_read_by_few_images_at_a_time() -> None:
    rows = torch.arange(20.0, dtype=torch.float64).reshape(10, 2)
    assert [len(part) for part in chunks(rows, 4_000_000)] == [4, 4, 2]
    assert [len(part) for part in chunks(rows, 10**9)] == [1] * 10
    assert torch.equal(torch.cat(chunks(rows, 4_000_000)), rows)

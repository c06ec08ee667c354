"""The walk through a stream against lists and loops in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.score.knn import KNN
from offmap.score.oodd import OODD

Signals = dict[str, Tensor]


def unit(signals: Signals) -> np.ndarray:
    rows = signals["features.last"].double().numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def naive(bank: np.ndarray, stream: np.ndarray, k: int, size: int, queue_k: int) -> tuple[list[float], list[np.ndarray]]:
    """Scores, and the queue afterwards with the oddest last."""
    own = [sorted(np.linalg.norm(bank - row, axis=1))[k] for row in bank]
    start = sorted(range(len(bank)), key=lambda i: own[i])[-min(size, max(1, len(bank) // 10)) :]
    queue, scores = [(own[i], bank[i]) for i in start], []
    for row in stream:
        odd = sorted(np.linalg.norm(bank - row, axis=1))[k - 1]
        near = sorted(float(np.linalg.norm(kept - row)) for _, kept in queue)
        scores.append(odd - near[min(queue_k, len(queue)) - 1])
        if len(queue) < size:
            queue.append((odd, row))
        elif odd > min(q[0] for q in queue):
            queue.remove(min(queue, key=lambda q: q[0]))
            queue.append((odd, row))
    return scores, [row for _, row in sorted(queue, key=lambda q: q[0])]


@pytest.mark.parametrize(("k", "size", "queue_k"), [(1, 6, 1), (4, 20, 5), (7, 3, 9)])
def test_it_equals_the_walk_written_out(
    batches: list[Signals], fit_signals: Signals, unseen: Signals, k: int, size: int, queue_k: int
) -> None:
    fitted = OODD(k=k, queue=size, queue_k=queue_k).fit(batches)
    scores, queue = naive(unit(fit_signals), unit(unseen), k, size, queue_k)
    np.testing.assert_allclose(fitted.score(unseen).numpy(), scores, atol=1e-5)
    after = OODD.advanced(fitted, unseen).state
    np.testing.assert_allclose(after["queue"][after["oddness"].argsort()].numpy(), queue, atol=1e-6)


def test_two_batches_with_the_queue_carried_on_score_as_one(batches: list[Signals], unseen: Signals) -> None:
    fitted = OODD().fit(batches)
    first, second = ({"features.last": part} for part in unseen["features.last"].split([25, 35]))
    carried = OODD.advanced(fitted, first)
    torch.testing.assert_close(torch.cat([fitted.score(first), carried.score(second)]), fitted.score(unseen))
    torch.testing.assert_close(dict(OODD.advanced(carried, second).state), dict(OODD.advanced(fitted, unseen).state))


def test_a_fitted_detector_never_changes(batches: list[Signals], unseen: Signals) -> None:
    fitted = OODD().fit(batches)
    before = {name: value.clone() for name, value in fitted.state.items()}
    again = fitted.score(unseen)
    OODD.advanced(fitted, unseen)
    torch.testing.assert_close(dict(fitted.state), before)
    torch.testing.assert_close(fitted.score(unseen), again, rtol=0, atol=0)


def test_the_queue_is_bounded(batches: list[Signals], unseen: Signals) -> None:
    fitted = OODD(queue=17).fit(batches)
    assert len(fitted.state["queue"]) == 15
    assert OODD.advanced(fitted, unseen).state["queue"].shape == (17, 12)
    assert OODD(max_bank=30).fit(batches).state["bank"].shape == (30, 12)


def test_a_second_image_of_an_odd_kind_scores_higher_than_the_first(batches: list[Signals], unseen: Signals) -> None:
    odd = {"features.last": torch.eye(12, dtype=torch.float64)[:1] * 5.0}
    fitted = OODD(queue_k=1).fit(batches)
    assert float(OODD.advanced(fitted, odd).score(odd)) > float(fitted.score(odd)) + 0.1
    torch.testing.assert_close(OODD.advanced(fitted, odd).score(odd), KNN().fit(batches).score(odd))


def test_known_failure_without_odd_images_in_the_stream_rare_usual_ones_look_odd() -> None:
    generator = torch.Generator().manual_seed(7)
    common = torch.tensor([10.0, 0, 0]) + 0.1 * torch.randn(196, 3, generator=generator)
    rare = torch.tensor([0, 10.0, 0]) + 0.1 * torch.randn(4, 3, generator=generator)
    fitted = OODD(queue_k=1).fit([{"features.last": torch.cat([common, rare])}])
    assert float(fitted.score({"features.last": rare}).min()) > 1.0 > float(fitted.score({"features.last": common}).max())


def test_what_does_not_fit_is_refused(batches: list[Signals], unseen: Signals) -> None:
    with pytest.raises(SignalError, match="k = 150 must be less than the 150 images"):
        OODD(k=150).fit(batches)
    with pytest.raises(ConfigError, match="knn has no queue"):
        OODD.advanced(KNN().fit(batches), unseen)
    with pytest.raises(SignalError, match=r"not finite in rows \[0, 1"):
        OODD.advanced(OODD().fit(batches), {"features.last": unseen["features.last"] * torch.nan})


@pytest.mark.parametrize("wrong", [{"k": 0}, {"queue": 0}, {"queue_k": 0}, {"k": 5, "max_bank": 5}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(reversed(wrong)))):
        OODD.from_params(wrong)

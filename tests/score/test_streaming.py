"""Fitting streams: however the images are cut into batches and ordered, every method that keeps sums learns the same.

Which methods those are is read off their state: one whose tensors do not grow with the number of images keeps no image.
"""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from offmap.core import registry
from offmap.core.detector import Detector, Fitted, Localiser, State
from offmap.core.moments import ClassMoments, Moments
from offmap.core.types import Signals
from offmap.testing import FakeEncoder
from offmap.testing.subject import rows_of

METHODS = registry.load_all("score", Detector)
COUNT, HELD = 90, 24


def signals(count: int, seed: int, *, ood: bool = False) -> Signals:
    return FakeEncoder(width=12, side=4, dtype=torch.float64).signals(count, ood=ood, generator=torch.Generator().manual_seed(seed))


def sizes(state: State) -> int:
    return sum(tensor.numel() for tensor in state.values())


def fitted(method: str, batches: list[Signals]) -> Fitted:
    return METHODS[method]().fit(batches, held_out=[signals(HELD, 5)], generator=torch.Generator().manual_seed(0))


def readable(method: str) -> bool:
    """The fake encoder gives all it reads."""
    given = signals(2, 0)
    detector = METHODS[method]()
    names = detector.needs | detector.fit_needs
    return all("*" in name or name in given for name in names)


def keeps_no_image(method: str) -> bool:
    return readable(method) and sizes(fitted(method, [signals(COUNT, 1)]).state) == sizes(fitted(method, [signals(2 * COUNT, 1)]).state)


DRAWS = {"isolation_forest", "kpca"}
"""Methods that draw images at random, for trees or for the width of a kernel, and then keep none."""

STREAMING = [method for method in METHODS if method not in DRAWS and keeps_no_image(method)]


def cuts(count: int, inner: list[int], order: Tensor) -> Iterator[Tensor]:
    edges = [0, *sorted({1 + c % (count - 1) for c in inner}), count]
    return (order[a:b] for a, b in pairwise(edges))


@pytest.mark.parametrize("method", STREAMING)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inner=st.lists(st.integers(0, 10_000), max_size=6), seed=st.integers(0, 1000))
def test_any_cut_and_any_order_gives_the_same_scores(method: str, inner: list[int], seed: int) -> None:
    whole, asked = signals(COUNT, 1), signals(16, 2, ood=True)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    batches = [rows_of(whole, at) for at in cuts(COUNT, inner, order)]
    one, many = fitted(method, [whole]), fitted(method, batches)
    scores = one.score(asked).double()
    torch.testing.assert_close(many.score(asked).double(), scores, rtol=1e-6, atol=1e-6 * float(scores.abs().max() + 1e-30))
    if isinstance(one.detector, Localiser):
        torch.testing.assert_close(many.map(asked), one.map(asked), rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=8), st.integers(0, 1000))
def test_parts_summed_apart_and_merged_in_any_tree_are_the_whole(inner: list[int], seed: int) -> None:
    whole = signals(COUNT, 1)
    rows, labels = whole["features.deep"], whole["label"]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(COUNT, generator=generator)
    plain = [Moments.of(rows[at]) for at in cuts(COUNT, inner, order)]
    classed = [ClassMoments.of(rows[at], labels[at]) for at in cuts(COUNT, inner, order)]
    while len(plain) > 1:
        at = int(torch.randint(len(plain) - 1, (), generator=generator))
        plain[at : at + 2] = [plain[at].merge(plain[at + 1])]
        classed[at : at + 2] = [classed[at].merge(classed[at + 1])]
    one, tied = Moments.of(rows), ClassMoments.of(rows, labels)
    for found, expected in (
        (plain[0].scatter, one.scatter),
        (plain[0].quartic, one.quartic),
        (classed[0].within, tied.within),
        (classed[0].means, tied.means),
        (classed[0].total, one.scatter),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_the_streaming_methods_are_found_by_their_state() -> None:
    assert {"mahalanobis", "relative_mahalanobis", "residual", "vim", "neco", "gmm", "react", "she", "energy", "gram"} <= set(STREAMING)
    assert {"knn", "lof", "combood"}.isdisjoint(STREAMING)

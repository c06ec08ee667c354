"""Nearest neighbours against scikit-learn, core-sets against the definition, samples against the uniform law."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from offmap.core.errors import SignalError
from offmap.core.neighbours import Reservoir, k_center, k_nearest


def rows(seed: int, count: int, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(1024, 16_384), (7, 3), (1, 1), (50, 11)])
def test_neighbours_equal_scikit_learn_whatever_the_chunks(query_chunk: int, bank_chunk: int) -> None:
    queries, bank = rows(1, 30), rows(2, 100)
    distance, index = k_nearest(queries, bank, 5, query_chunk=query_chunk, bank_chunk=bank_chunk)
    expected, where = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(bank.numpy()).kneighbors(queries.numpy())
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-10)
    np.testing.assert_array_equal(index.numpy(), where)


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(1024, 16_384), (7, 13)])
def test_leave_one_out_leaves_out_the_row_and_not_its_copies(query_chunk: int, bank_chunk: int) -> None:
    bank = rows(3, 40)
    bank[31] = bank[4]
    distance, index = k_nearest(bank, bank, 2, leave_one_out=True, query_chunk=query_chunk, bank_chunk=bank_chunk)
    every = torch.cdist(bank, bank, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    np.testing.assert_allclose(distance.numpy(), every.sort(dim=1).values[:, :2].numpy(), rtol=1e-10, atol=1e-15)
    assert index[4, 0] == 31
    assert float(distance[4, 0]) == 0.0


def test_float32_is_exact_near_zero_and_far_from_the_origin() -> None:
    bank = rows(4, 200).float() + 1000.0
    distance, index = k_nearest(bank, bank, 1)
    assert index[:, 0].tolist() == list(range(200))
    assert float(distance.max()) == 0.0
    near, _ = k_nearest(bank[:5] + 0.25, bank, 1)
    expected = torch.cdist(bank[:5].double() + 0.25, bank.double(), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    torch.testing.assert_close(near[:, 0].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("k", "leave"), [(0, False), (6, False), (5, True)])
def test_more_neighbours_than_there_are_is_refused(k: int, leave: bool) -> None:
    with pytest.raises(SignalError, match=f"k = {k}"):
        k_nearest(rows(5, 5), rows(5, 5), k, leave_one_out=leave)


def test_no_query_gives_no_neighbour() -> None:
    distance, index = k_nearest(rows(6, 0), rows(6, 5), 2)
    assert tuple(distance.shape) == tuple(index.shape) == (0, 2)


def test_each_row_of_a_core_set_is_the_farthest_from_those_before() -> None:
    points = rows(7, 60, 3)
    chosen = k_center(points, 12, first=5).tolist()
    assert chosen[0] == 5
    assert len(set(chosen)) == 12
    for i in range(1, 12):
        nearest = torch.cdist(points, points[chosen[:i]]).min(dim=1).values
        assert float(nearest[chosen[i]]) == pytest.approx(float(nearest.max()), rel=1e-9)


def test_a_core_set_of_copies_takes_each_index_once() -> None:
    assert sorted(k_center(torch.ones(6, 2), 6).tolist()) == list(range(6))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 70), st.lists(st.integers(0, 60), max_size=4))
def test_a_sample_does_not_depend_on_how_the_stream_is_cut(seed: int, count: int, capacity: int, cuts: list[int]) -> None:
    stream = torch.arange(float(count))[:, None]
    edges = [0, *sorted(min(c, count) for c in cuts), count]
    whole = Reservoir.empty(capacity, stream).add(stream, torch.Generator().manual_seed(seed))
    generator, cut = torch.Generator().manual_seed(seed), Reservoir.empty(capacity, stream)
    for a, b in itertools.pairwise(edges):
        cut = cut.add(stream[a:b], generator)
    assert torch.equal(whole.rows, cut.rows)
    assert len(whole.rows) == min(count, capacity)
    assert bool((whole.rows.diff(dim=0) > 0).all()), "the order of the stream is kept"


def test_a_sample_is_uniform() -> None:
    generator, stream = torch.Generator().manual_seed(8), torch.arange(20.0)[:, None]
    counts = torch.zeros(20)
    for _ in range(600):
        kept = Reservoir.empty(5, stream).add(stream[:7], generator).add(stream[7:], generator).rows
        counts[kept[:, 0].long()] += 1
    statistic = float(((counts - 150) ** 2 / 150).sum())
    assert statistic < 44, "chi-square with 19 degrees of freedom exceeds 44 once in a thousand"

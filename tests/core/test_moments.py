"""Sums that merge: the same moments however the data is cut, ordered and labelled."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offmap.core.moments import ClassMoments, Moments, quartic


def data(seed: int, count: int, width: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + offset


def naive(rows: Tensor) -> dict[str, Tensor]:
    centred = rows - rows.mean(dim=0)
    norm = (centred**2).sum(dim=1)
    outer = torch.stack([torch.outer(x, x) for x in centred]).sum(dim=0)
    return {"mean": rows.mean(dim=0), "scatter": outer, "cubic": (norm[:, None] * centred).sum(dim=0), "quartic": (norm**2).sum()}


def agree(one: Moments, expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        scale = float(value.abs().max()) + 1.0
        torch.testing.assert_close(getattr(one, name) / scale, value / scale, rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(1, 6),
    st.lists(st.integers(0, 40), max_size=5),
    st.sampled_from([0.0, 1e3]),
)
def test_any_cut_and_any_order_gives_the_same_moments(seed: int, count: int, width: int, cuts: list[int], offset: float) -> None:
    rows = data(seed, count, width, offset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    edges = [0, *sorted(min(c, count) for c in cuts), count]
    parts = [Moments.of(rows[order][a:b]) for a, b in itertools.pairwise(edges)]
    forwards, backwards = parts[0], parts[-1]
    for part in parts[1:]:
        forwards = forwards.merge(part)
    for part in parts[-2::-1]:
        backwards = part.merge(backwards)
    assert forwards.count == backwards.count == count
    agree(forwards, naive(rows))
    agree(backwards, naive(rows))


def test_a_large_offset_costs_no_digits() -> None:
    rows = data(1, 200, 5)
    plain, moved = Moments.of(rows), Moments.of(rows[:50] + 1e6).add(rows[50:] + 1e6)
    torch.testing.assert_close(moved.scatter, plain.scatter, rtol=1e-8, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 5), st.integers(1, 5))
def test_class_moments_equal_those_of_each_class(seed: int, count: int, width: int, classes: int) -> None:
    rows = data(seed, count, width)
    labels = torch.from_numpy(np.random.default_rng(seed).choice(np.array([-5, 3, 1000, 7, 12]), count) % (classes * 7))
    cut = count // 2
    sums = ClassMoments.of(rows[:cut], labels[:cut]).merge(ClassMoments.of(rows[cut:], labels[cut:]))
    assert sums.labels.tolist() == sorted(set(labels.tolist()))
    within = torch.zeros(width, width, dtype=torch.float64)
    fourth = torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(sums.labels.tolist()):
        own = naive(rows[labels == label])
        torch.testing.assert_close(sums.means[i], own["mean"], rtol=0, atol=1e-10)
        assert float(sums.counts[i]) == float((labels == label).sum())
        within, fourth = within + own["scatter"], fourth + own["quartic"]
    torch.testing.assert_close(sums.within, within, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sums.total, naive(rows)["scatter"], rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(sums.mean, rows.mean(dim=0), rtol=1e-10, atol=1e-10)
    parts = quartic(sums.residuals(rows[:cut], labels[:cut])) + quartic(sums.residuals(rows[cut:], labels[cut:]))
    torch.testing.assert_close(parts, fourth, rtol=1e-10, atol=1e-10)


def test_a_class_with_one_row_has_a_mean_and_no_scatter() -> None:
    rows = data(2, 5, 3)
    sums = ClassMoments.of(rows, torch.tensor([0, 0, 0, 0, 9]))
    torch.testing.assert_close(sums.means[1], rows[4])
    torch.testing.assert_close(sums.within, naive(rows[:4])["scatter"])


def test_an_empty_part_changes_nothing() -> None:
    rows = data(3, 6, 2)
    empty = Moments.of(rows[:0])
    agree(empty.merge(Moments.of(rows)), naive(rows))
    agree(Moments.of(rows).merge(empty), naive(rows))
    assert empty.merge(empty).count == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_short_numbers_are_summed_in_float64(dtype: torch.dtype) -> None:
    rows = data(4, 500, 3).to(dtype)
    assert Moments.of(rows).scatter.dtype == torch.float64
    agree(Moments.of(rows), naive(rows.double()))

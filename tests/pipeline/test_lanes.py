"""Several batches at once, in order."""

import threading
from collections.abc import Iterator

import pytest
import torch

from offmap.core.errors import DataError
from offmap.pipeline.lanes import in_order


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(lanes: int) -> None:
    release = [threading.Event() for _ in range(9)]
    release[-1].set()

    def slow_first(i: int) -> int:
        if lanes > 1 and i % 2 == 0:
            release[i + 1].wait(5)
        release[i].set()
        return i * i

    release.append(threading.Event())
    release[9].set()
    assert list(in_order(range(9), slow_first, lanes=lanes)) == [i * i for i in range(9)]


def test_each_lane_uses_one_core_and_this_thread_keeps_its_own() -> None:
    before = torch.get_num_threads()
    assert set(in_order(range(6), lambda _: torch.get_num_threads(), lanes=2)) == {1}
    assert torch.get_num_threads() == before


def test_items_are_pulled_no_further_than_needed() -> None:
    pulled: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            pulled.append(i)
            yield i

    results = in_order(items(), lambda i: i, lanes=2)
    assert next(results) == 0
    assert len(pulled) <= 4
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_error_comes_where_its_item_stands(lanes: int) -> None:
    def fails(i: int) -> int:
        if i == 3:
            raise DataError("the third")
        return i

    found: list[int] = []
    with pytest.raises(DataError, match="the third"):
        found.extend(in_order(range(8), fails, lanes=lanes))
    assert found == [0, 1, 2]

"""Work on several items at once, each on one core, results in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def in_order(items: Iterable[A], work: Callable[[A], B], *, lanes: int) -> Iterator[B]:
    """Results of ``work`` on each item, in the order of the items.

    A network that runs on one core a batch, several batches at once, is a third faster beside decoding processes than one
    that splits each batch over all cores: no core waits for another one that a decoder has taken.

    Args:
        items: pulled at most ``lanes`` ahead of the result that is handed out.
        work: called from several threads at once when ``lanes`` is above 1; its tensor operations then use one core each.
        lanes: number of threads; 1 = in this one, with as many cores as torch was told.
    """
    if lanes <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(lanes, thread_name_prefix="offmap-encode") as pool:
        _one_core_each(pool, lanes)
        under_way: deque[Future[B]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > lanes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _one_core_each(pool: ThreadPoolExecutor, lanes: int) -> None:
    """Tell torch in each thread of the pool to use one core; the number of this thread stays."""
    before, together = torch.get_num_threads(), threading.Barrier(lanes)

    def start() -> None:
        torch.set_num_threads(1)
        together.wait()

    for started in [pool.submit(start) for _ in range(lanes)]:
        started.result()
    torch.set_num_threads(before)

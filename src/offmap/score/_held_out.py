"""A part of the fit data kept apart, for methods that need unseen images and were given none."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from offmap.core.detector import rows
from offmap.core.types import STATIC, Signals

EVERY = 4


@dataclass(frozen=True)
class Share:
    """Every fourth row of the batches (the 4th, 8th, ...), or the others; the same at each reading.

    Args:
        batches: batches that can be read again.
        held: the fourth rows, else the rest.
    """

    batches: Iterable[Signals]
    held: bool

    def __iter__(self) -> Iterator[Signals]:
        first = 0
        for batch in self.batches:
            count = rows(batch)
            fourth = torch.arange(first, first + count) % EVERY == EVERY - 1
            index = torch.nonzero(fourth if self.held else ~fourth).flatten()
            first += count
            if len(index):
                yield {name: value if name in STATIC else value[index.to(value.device)] for name, value in batch.items()}

"""What methods share that keep in-distribution images to compare with."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.neighbours import Reservoir
from offmap.core.types import Signals


def sampled(
    batches: Iterable[Signals], rows: Callable[[Signals], Tensor], capacity: int, generator: torch.Generator
) -> Float[Tensor, "m d"]:
    """A uniform sample of the rows of all batches, at most ``capacity`` of them, in the order they came."""
    kept: Reservoir | None = None
    for batch in batches:
        part = rows(batch)
        kept = (Reservoir.empty(capacity, part) if kept is None else kept).add(part, generator)
    return kept.rows if kept is not None else torch.zeros(0, 0, dtype=torch.float64)


def chunks(rows: Float[Tensor, "n d"], bank: int) -> tuple[Tensor, ...]:
    """Rows in parts that make at most 16 million products with a bank of that many rows."""
    parts: tuple[Tensor, ...] = rows.split(max(1, 16_000_000 // max(1, bank)))
    return parts

"""Rows of vectors as batches of signals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from offmap.core.types import STATIC, Signals

SIZE = 512
"""Images in a batch."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of named vectors, in batches, to be iterated any number of times.

    Args:
        vectors: ``(N, ...)`` by name; static signals as they are.
        rows: which of the N.
        names: signals to give.
    """

    vectors: Mapping[str, Tensor]
    rows: Int[np.ndarray, " n"]
    names: frozenset[str]
    device: torch.device = field(default=torch.device("cpu"))

    def __iter__(self) -> Iterator[Signals]:
        for start in range(0, len(self.rows), SIZE):
            at = torch.from_numpy(self.rows[start : start + SIZE])
            yield {k: (v if k in STATIC else v[at]).to(self.device) for k, v in self.vectors.items() if k in self.names}


def with_alias(vectors: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """The vectors with ``features.last``, which is the deepest layer."""
    deepest = f"features.{layers[-1]}"
    return {**vectors, "features.last": vectors[deepest]} if deepest in vectors else dict(vectors)

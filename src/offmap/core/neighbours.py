"""Exact nearest neighbours in bounded memory, core-sets, and samples of a stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import SignalError

Neighbours = tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]


def k_nearest(
    queries: Float[Tensor, "n d"],
    bank: Float[Tensor, "m d"],
    k: int,
    *,
    leave_one_out: bool = False,
    query_chunk: int = 1024,
    bank_chunk: int = 16_384,
) -> Neighbours:
    """The ``k`` nearest rows of the bank: Euclidean distances ascending, and their indices.

    Found by matrix products of centred chunks in float32 (float64 if both are), merged across chunks; the distances of
    those found are then taken by differences, so that they are exact near zero as well.

    Args:
        leave_one_out: the queries are the bank itself, and a row is no neighbour of its own.
        query_chunk, bank_chunk: rows at a time; memory is about ``query_chunk * (bank_chunk + k * d)`` numbers.

    Raises:
        SignalError: the bank has fewer than ``k`` other rows.
    """
    available = len(bank) - int(leave_one_out)
    if not 1 <= k <= available:
        raise SignalError(f"k = {k} nearest neighbours asked of a bank that offers {available}: choose a smaller k or give more images")
    dtype = torch.float64 if queries.dtype == bank.dtype == torch.float64 else torch.float32
    queries = queries.to(device=bank.device, dtype=dtype)
    bank = bank.to(dtype)
    offset = bank.mean(dim=0)
    found = [
        _nearest(queries[i : i + query_chunk], bank, k, offset, bank_chunk, first=i if leave_one_out else None)
        for i in range(0, len(queries), query_chunk)
    ]
    if not found:
        return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=bank.device)
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _nearest(
    queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int, offset: Float[Tensor, " d"], chunk: int, *, first: int | None
) -> Neighbours:
    """One chunk of queries; ``first`` is the bank's index of its first row, which is then left out."""
    centred = queries - offset
    best = torch.full((len(queries), k), torch.inf, dtype=queries.dtype, device=bank.device)
    index = torch.zeros((len(queries), k), dtype=torch.int64, device=bank.device)
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk] - offset
        squared = torch.addmm(part.square().sum(dim=1), centred, part.T, alpha=-2)
        if first is not None:
            own = torch.arange(first, first + len(queries), device=bank.device) - start
            inside = (own >= 0) & (own < len(part))
            squared[inside, own[inside]] = torch.inf
        near, at = squared.topk(min(k, len(part)), dim=1, largest=False)
        best, order = torch.cat([best, near], dim=1).topk(k, dim=1, largest=False)
        index = torch.cat([index, at + start], dim=1).gather(1, order)
    return _measured(queries, bank, index)


def _measured(queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], index: Int64[Tensor, "n k"]) -> Neighbours:
    """Distances to chosen rows by differences, ascending."""
    exact = torch.stack([(queries - bank[index[:, j]]).norm(dim=1) for j in range(index.shape[1])], dim=1)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, index.gather(1, order)


def k_center(rows: Float[Tensor, "n d"], count: int, *, first: int = 0) -> Int64[Tensor, " count"]:
    """Indices of a greedy core-set: each next row is the one farthest from those chosen (Gonzalez 1985; Sener & Savarese 2018).

    Args:
        count: rows to choose, 1 <= count <= n; cost is ``count * n * d``.
        first: row to start from.
    """
    x = rows - rows.mean(dim=0)
    norm = x.square().sum(dim=1)
    distance = torch.full_like(norm, torch.inf)
    chosen = torch.empty(count, dtype=torch.int64, device=rows.device)
    newest = torch.tensor(first, device=rows.device)
    for i in range(count):
        chosen[i] = newest
        distance = torch.minimum(distance, norm + norm[newest] - 2 * (x @ x[newest]))
        distance[newest] = -torch.inf
        newest = distance.argmax()
    return chosen


@dataclass(frozen=True, eq=False)
class Reservoir:
    """A uniform sample of a stream of rows, at most ``capacity`` of them, in the order they came.

    Each row draws a key, and the smallest keys stay; so parts can be added in any grouping, and nothing but the sample is kept.

    Args:
        capacity: rows kept at most.
        rows: the sample.
        keys: one for each row, uniform in [0, 1).
    """

    capacity: int
    rows: Float[Tensor, "m d"]
    keys: Float[Tensor, " m"]

    @classmethod
    def empty(cls, capacity: int, like: Float[Tensor, "n d"]) -> "Reservoir":
        """Nothing yet, for rows of the width, type and device of ``like``."""
        return cls(capacity, like[:0], torch.zeros(0, dtype=torch.float64))

    def add(self, rows: Float[Tensor, "n d"], generator: torch.Generator) -> "Reservoir":
        """The sample of the stream with further rows."""
        keys = torch.rand(len(rows), dtype=torch.float64, generator=generator, device=generator.device)
        merged = torch.cat([self.keys, keys.cpu()])
        everything = torch.cat([self.rows, rows])
        if len(merged) <= self.capacity:
            return Reservoir(self.capacity, everything, merged)
        kept = merged.topk(self.capacity, largest=False).indices.sort().values
        return Reservoir(self.capacity, everything[kept.to(everything.device)], merged[kept])

"""Exact nearest neighbours in bounded memory, core-sets, and samples of a stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from offmap.core.errors import SignalError

Neighbours = tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]


SURE = 1e-2
"""Share of the rows' mean squared length above which a squared distance by products is right to 1e-4."""


SAMPLE = 1024
"""Rows of the bank, or a few more, whose mean is the centre."""


def k_nearest(
    queries: Float[Tensor, "n d"],
    bank: Float[Tensor, "m d"],
    k: int,
    *,
    leave_one_out: bool = False,
    exact: bool = True,
    query_chunk: int = 1024,
    bank_chunk: int = 8192,
) -> Neighbours:
    """The ``k`` nearest rows of the bank: Euclidean distances ascending, and their indices.

    Found by matrix products of centred chunks in float32 (float64 if both are), merged across chunks; the distances of
    those found are then taken by differences, so that they are exact near zero as well. The bank is read once, one chunk at a
    time, and need not fit into memory (a tensor over a mapped file).

    Args:
        leave_one_out: the queries are the bank itself, and a row is no neighbour of its own.
        exact: measure every distance; else only those of queries that have a neighbour so near that products are not right to 1e-4.
        query_chunk, bank_chunk: rows at a time; memory beside queries and result is about
            ``bank_chunk * d + query_chunk * (bank_chunk + k * d)`` numbers.

    Raises:
        SignalError: the bank has fewer than ``k`` other rows.
    """
    queries, squared, index, scale = _found(queries, bank, k, leave_one_out, query_chunk, bank_chunk)
    distances = squared.clamp_min(0).sqrt()
    near = torch.ones_like(squared[:, 0], dtype=torch.bool) if exact else squared[:, 0] <= SURE * scale
    for rows in torch.nonzero(near).flatten().split(query_chunk):
        distances[rows], index[rows] = _measured(queries[rows], bank, index[rows])
    return distances, index


def kth_distance(
    queries: Float[Tensor, "n d"],
    bank: Float[Tensor, "m d"],
    k: int,
    *,
    leave_one_out: bool = False,
    query_chunk: int = 1024,
    bank_chunk: int = 8192,
) -> Float[Tensor, " n"]:
    """Distance to the ``k``-th nearest row of the bank; as the last column of ``k_nearest``, but measures one neighbour only.

    Which row is the k-th is decided by products, right to 1e-4 of the distance; where distances are too small for that, all k are measured.
    """
    queries, squared, index, scale = _found(queries, bank, k, leave_one_out, query_chunk, bank_chunk)
    distance = torch.empty_like(squared[:, -1])
    near = torch.nonzero(squared[:, -1] <= SURE * scale).flatten()
    sure = torch.nonzero(squared[:, -1] > SURE * scale).flatten()
    for which, columns in ((near, index), (sure, index[:, -1:])):
        for rows in which.split(query_chunk):
            distance[rows] = _measured(queries[rows], bank, columns[rows])[0][:, -1]
    return distance


def _found(
    queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int, leave_one_out: bool, query_chunk: int, bank_chunk: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"], Int64[Tensor, "n k"], Float[Tensor, ""]]:
    """Queries in the working precision, squared distances and indices of the neighbours by products, and the bank's mean square.

    Each chunk of the bank is centred once, in one buffer, and meets every chunk of queries.
    """
    available = len(bank) - int(leave_one_out)
    if not 1 <= k <= available:
        raise SignalError(f"k = {k} nearest neighbours asked of a bank that offers {available}: choose a smaller k or give more images")
    dtype = torch.float64 if queries.dtype == bank.dtype == torch.float64 else torch.float32
    queries = queries.to(device=bank.device, dtype=dtype)
    starts = range(0, len(bank), bank_chunk)
    offset = bank[:: max(1, len(bank) // SAMPLE)].to(dtype).mean(dim=0)
    best = torch.full((len(queries), k), torch.inf, dtype=dtype, device=bank.device)
    index = torch.zeros((len(queries), k), dtype=torch.int64, device=bank.device)
    buffer, total = queries.new_empty(min(bank_chunk, len(bank)), bank.shape[1]), offset.new_zeros(())
    for start in starts:
        part = torch.sub(bank[start : start + bank_chunk].to(dtype), offset, out=buffer[: len(bank) - start])
        norms = torch.linalg.vector_norm(part, dim=1).square()
        total += norms.sum()
        for i in range(0, len(queries), query_chunk):
            rows = slice(i, i + query_chunk)
            squared = torch.addmm(norms, queries[rows] - offset, part.T, alpha=-2)
            if leave_one_out:
                _without_own(squared, i - start)
            near, at = squared.min(dim=1, keepdim=True) if k == 1 else squared.topk(min(k, len(part)), dim=1, largest=False)
            best[rows], order = torch.cat([best[rows], near], dim=1).topk(k, dim=1, largest=False)
            index[rows] = torch.cat([index[rows], at + start], dim=1).gather(1, order)
    return queries, best + (queries - offset).square().sum(dim=1, keepdim=True), index, total / len(bank)


def _without_own(squared: Float[Tensor, "n m"], shift: int) -> None:
    """No row is a neighbour of its own: query i is row ``i + shift`` of the chunk."""
    own = torch.arange(shift, shift + len(squared), device=squared.device)
    inside = (own >= 0) & (own < squared.shape[1])
    squared[inside, own[inside]] = torch.inf


def _measured(queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], index: Int64[Tensor, "n k"]) -> Neighbours:
    """Distances to chosen rows by differences, ascending."""
    columns = [torch.linalg.vector_norm(queries - bank[index[:, j]].to(queries.dtype), dim=1) for j in range(index.shape[1])]
    exact, order = torch.stack(columns, dim=1).sort(dim=1, stable=True)
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

"""How the images of an in-distribution set are divided: at random, with patients and copies together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from offmap.benchmark.image_set import Item
from offmap.calibrate.split import split
from offmap.core.errors import DataError

Rows = Int[np.ndarray, " _"]
Copies = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Division:
    """Rows of an in-distribution set for one seed; disjoint."""

    fit: Rows
    held_out: Rows
    test: Rows


def divided(items: Sequence[Item], shares: Sequence[float], seed: int, copies: Copies = ()) -> list[Rows]:
    """Rows of each part of about the given shares.

    Without patients: the permutation of numpy's generator for this seed, cut; then copies go to the part of the one that comes first
    in it. With patients: ``calibrate.split``.

    Raises:
        DataError: too few images or patients for the parts.
    """
    patients = [item.patient for item in items]
    if any(patients):
        return list(split(patients, shares=shares, seed=seed, copies=copies))
    order = np.random.default_rng(seed).permutation(len(items))
    ends = np.cumsum([round(share * len(items)) for share in shares[:-1]])
    part, rank = np.empty(len(items), dtype=np.int64), np.argsort(order)
    for number, rows in enumerate(np.split(order, ends)):
        part[rows] = number
    for group in filter(len, copies):
        rows = np.asarray(group, dtype=np.int64)
        part[rows] = part[rows[np.argmin(rank[rows])]]
    found = [order[part[order] == number] for number in range(len(shares))]
    if any(len(rows) == 0 for rows in found):
        raise DataError(f"{len(items)} images cannot be divided into {len(shares)} parts with the shares {list(shares)}: give more images")
    return found

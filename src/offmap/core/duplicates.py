"""Finds copies among images: saved again, resized, or flipped.

Two images are copies when their high-passed 32 x 32 thumbnails correlate. Candidates come from locality-sensitive
hashing by random hyperplanes (Charikar, STOC 2002, doi:10.1145/509907.509965), so that neither time nor memory grows
with the square of the number of images. numpy only: decode workers may call it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt16

from offmap.core.errors import ConfigError

SIZE = 32
"""Side of the thumbnail in pixels."""

THRESHOLD = 0.97
"""Correlation from which two images are copies. Seen on eight public sets: JPEG quality 50 or half size gives 0.98 and
more for images of 128 px and more, different images of one chest X-ray or head CT set stay below 0.955."""

_BLUR = 3
_WORDS = 16
_BITS = 96
"""Of 256: strangers differ in 128 +- 8 bits, copies in fewer than 40."""

_PORTION = 100_000


def fingerprint(pixels: np.ndarray) -> Float[np.ndarray, " d"]:
    """What two copies share.

    Args:
        pixels: prepared image, ``(C, H, W)`` or ``(C, D, H, W)``; channels and depth are averaged.

    Returns:
        float32 of length 1024 and norm 1 (float32 zeros for a constant image, which is a copy of nothing).

    Raises:
        ConfigError: not 3 or 4 axes, no pixel, or not finite.
    """
    if pixels.ndim not in (3, 4) or pixels.size == 0 or not np.isfinite(pixels).all():
        raise ConfigError(f"pixels of shape {pixels.shape} must be (C, H, W) or (C, D, H, W), not empty, and finite")
    plane = pixels.reshape(-1, *pixels.shape[-2:]).mean(axis=0, dtype=np.float64)
    small = _shrink(_shrink(plane).T).T
    high = small - _box(_box(small).T).T
    high -= high.mean()
    norm = float(np.linalg.norm(high))
    if norm <= 1e-6 * SIZE * max(float(np.abs(small).max()), 1e-30):
        return np.zeros(SIZE * SIZE, dtype=np.float32)
    unit: np.ndarray = (high / norm).astype(np.float32).ravel()
    return unit


def find(prints: Float[np.ndarray, "n d"], digests: Sequence[str] = (), *, threshold: float = THRESHOLD) -> list[tuple[int, ...]]:
    """Groups of copies, flips included.

    Args:
        prints: one ``fingerprint`` a row.
        digests: SHA-256 of each file; equal ones are copies whatever they show. Empty ones are no evidence.
        threshold: correlation in (0, 1] from which two images are copies; below 0.95 some pairs are missed.

    Returns:
        Groups of two or more row numbers, each sorted, in the order of their first row. Being a copy is transitive here.

    Raises:
        ConfigError: wrong shape, not finite, or a threshold out of range.
    """
    n = len(prints)
    if prints.shape[1:] != (SIZE * SIZE,) or not np.isfinite(prints).all() or len(digests) not in (0, n):
        size = f"prints of shape {prints.shape} with {len(digests)} digests"
        raise ConfigError(f"{size}: (N, {SIZE * SIZE}), finite, and N or no digests expected")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold = {threshold} must lie in (0, 1]")
    links = [*equal(digests), *_alike(prints, threshold)]
    labels = join(n, links)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if n else []
    return [tuple(int(i) for i in part) for part in parts if len(part) > 1]


def equal(keys: Iterable[str | bytes]) -> list[tuple[int, int]]:
    """Links between rows of the same key; an empty key is no evidence."""
    first: dict[str | bytes, int] = {}
    return [(first.setdefault(key, row), row) for row, key in enumerate(keys) if key and first.setdefault(key, row) != row]


def join(n: int, links: Iterable[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """Label of each row: the smallest row that links lead to."""
    parent = list(range(n))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for left, right in links:
        a, b = root(left), root(right)
        parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(n)], dtype=np.int64)


def _shrink(plane: np.ndarray) -> np.ndarray:
    """Mean over equal shares of the first axis, fractions of rows weighted (exact area average)."""
    total = np.concatenate([np.zeros((1, plane.shape[1])), np.cumsum(plane, axis=0)])
    edges = np.linspace(0, plane.shape[0], SIZE + 1)
    low = np.minimum(edges.astype(np.int64), plane.shape[0] - 1)
    at = total[low] + (edges - low)[:, None] * plane[low]
    mean: np.ndarray = np.diff(at, axis=0) * (SIZE / plane.shape[0])
    return mean


def _box(plane: np.ndarray) -> np.ndarray:
    """Running mean of 7 rows along the first axis, edges repeated."""
    padded = np.pad(plane, ((_BLUR + 1, _BLUR), (0, 0)), mode="edge").cumsum(axis=0)
    width = 2 * _BLUR + 1
    mean: np.ndarray = (padded[width:] - padded[:-width]) / width
    return mean


def _flips(prints: np.ndarray) -> Iterator[np.ndarray]:
    """As it is, left-right, upside down, both."""
    planes = prints.reshape(-1, SIZE, SIZE)
    for step_h in (1, -1):
        for step_w in (1, -1):
            yield planes[:, ::step_h, ::step_w].reshape(len(prints), -1)


def _alike(prints: np.ndarray, threshold: float) -> Iterator[tuple[int, int]]:
    keys = [row.tobytes() if row.any() else b"" for row in prints]
    same = equal(keys)
    yield from same
    rows = np.setdiff1d(np.flatnonzero([bool(key) for key in keys]), [right for _, right in same])
    if len(rows) == 0:
        return
    known = prints[rows].astype(np.float32)
    hyperplanes = np.random.default_rng(0).standard_normal((SIZE * SIZE, 16 * _WORDS)).astype(np.float32)
    centre = known.mean(axis=0)
    words = _words((known - centre) @ hyperplanes)
    for flipped in _flips(known):
        queries = _words((flipped - centre) @ hyperplanes)
        for left, right in _candidates(queries, words):
            close = np.einsum("id,id->i", flipped[left], known[right]) >= threshold
            yield from zip(rows[left[close]].tolist(), rows[right[close]].tolist(), strict=True)


def _words(projections: np.ndarray) -> UInt16[np.ndarray, "n w"]:
    """Signs packed into 16-bit words."""
    return np.ascontiguousarray(np.packbits(projections > 0, axis=1)).view(np.uint16)


def _candidates(queries: UInt16[np.ndarray, "n w"], words: UInt16[np.ndarray, "n w"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of different rows that share a word and most of their bits, in portions of bounded size."""
    ones = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1, dtype=np.uint8)
    for column in range(words.shape[1]):
        order = np.argsort(words[:, column], kind="stable")
        table = words[order, column]
        start = np.searchsorted(table, queries[:, column], side="left")
        count = np.searchsorted(table, queries[:, column], side="right") - start
        portion = np.cumsum(count) // _PORTION
        for rows in np.split(np.arange(len(count)), np.flatnonzero(np.diff(portion)) + 1):
            left = np.repeat(rows, count[rows])
            within = np.arange(len(left)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
            right = order[np.repeat(start[rows], count[rows]) + within]
            left, right = left[left != right], right[left != right]
            near = ones[queries[left] ^ words[right]].sum(axis=1, dtype=np.int64) <= _BITS
            yield left[near], right[near]

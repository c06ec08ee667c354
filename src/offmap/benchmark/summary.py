"""One line a method: means over near, far, covariate-shifted and corrupted sets, intervals, and how far below the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from offmap.benchmark.bootstrap import interval
from offmap.benchmark.results import Pair, Results

KINDS = ("near", "far", "covariate", "corruption")

Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Means:
    """Mean AUROC of a method over the pairs of a kind."""

    value: float
    spread: float
    samples: Float[np.ndarray, " b"]
    worst: tuple[float, Pair]


def summarise(results: Results, kinds: Mapping[Pair, str]) -> list[Line]:
    """The summary, best near mean first.

    For each kind of set: ``<kind>``, the mean over its pairs of the AUROC (mean over seeds); ``_lo``, ``_hi``, its 95 % interval by
    bootstrap over images, each image drawn equally often for all methods and pairs; ``_sd``, the standard deviation of that
    mean over seeds; ``_below``, how far it lies below the best method's, with the interval of that paired difference;
    ``_worst``, the lowest pair. Costs are medians over divisions.

    Args:
        results: of ``evaluate``.
        kinds: of each pair.
    """
    names = list(dict.fromkeys(row["method"] for row in results.rows if row["status"] == "ok"))
    lines: dict[str, Line] = {name: {"method": name} for name in names}
    for kind in KINDS:
        pairs = [pair for pair, its in kinds.items() if its == kind]
        means = {name: found for name in names if (found := _means(results, name, pairs)) is not None}
        if not means:
            continue
        best = max(means, key=lambda name: means[name].value)
        for name, found in means.items():
            lines[name] |= _described(kind, found, means[best])
    for name, line in lines.items():
        line |= _costs([row for row in results.rows if row["method"] == name and row["status"] == "ok"])
    return sorted(lines.values(), key=lambda line: [-line.get(kind, 0.0) for kind in KINDS])


def _means(results: Results, name: str, pairs: Sequence[Pair]) -> _Means | None:
    """Means over the pairs that the method was run on; None where it misses a pair, or a seed of one, that others have."""
    most = {pair: max((len(found) for key, found in results.values.items() if key[1] == pair), default=0) for pair in pairs}
    there = [pair for pair in pairs if most[pair]]
    if not there or any(len(results.values.get((name, pair), ())) < most[pair] for pair in there):
        return None
    value = float(np.mean([np.mean(results.values[name, pair]) for pair in there]))
    even = len({most[pair] for pair in there}) == 1
    by_seed = np.mean([results.values[name, pair] for pair in there], axis=0) if even else np.array([])
    samples = np.mean([results.samples[name, pair] for pair in there], axis=0)
    worst = min((float(np.mean(results.values[name, pair])), pair) for pair in there)
    return _Means(value, float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0, samples, worst)


def _described(kind: str, found: _Means, best: _Means) -> Line:
    low, high = interval({"auroc": found.samples})["auroc"]
    gap_low, gap_high = interval({"auroc": best.samples - found.samples})["auroc"]
    return {
        kind: found.value,
        f"{kind}_lo": low,
        f"{kind}_hi": high,
        f"{kind}_sd": found.spread,
        f"{kind}_below": best.value - found.value,
        f"{kind}_below_lo": gap_low,
        f"{kind}_below_hi": gap_high,
        f"{kind}_worst": found.worst[0],
        f"{kind}_worst_pair": " / ".join(found.worst[1]),
    }


def _costs(rows: Sequence[Mapping[str, Any]]) -> Line:
    middle = {name: float(np.median([row[name] for row in rows])) for name in ("fit_s", "score_ms_per_item", "peak_mb", "state_mb")}
    return {**middle, "passes": rows[0]["passes"]}


def not_run(results: Results) -> list[tuple[str, str]]:
    """What was not run, and why; each method, set or pair once for each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in results.rows:
        if row["status"] != "ok":
            what = row["method"] or " / ".join(filter(None, (row["id_set"], row.get("other_set", ""))))
            found.setdefault((what, row["reason"]), []).append(row["id_set"])
    every = {row["id_set"] for row in results.rows}
    out = []
    for (what, reason), sets in found.items():
        where = sorted(set(sets))
        some = f" (in {', '.join(where)})" if set(where) != every and what not in where and " / " not in what else ""
        out.append((f"{what}{some}", reason))
    return out

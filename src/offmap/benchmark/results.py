"""Trials become the tidy table: one row for each method, in-distribution set, other set and seed, with intervals and costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from offmap.benchmark import bootstrap, metrics
from offmap.benchmark.bootstrap import METRICS
from offmap.benchmark.delong import auroc_difference, auroc_interval
from offmap.benchmark.guards import Copies, Overlap, Prints, find_copies
from offmap.benchmark.run import Bench
from offmap.benchmark.trial import Trial

REPEATS = 500
"""Bootstrap resamples."""

COLUMNS = (
    *("suite", "method", "encoder", "id_set", "other_set", "kind", "seed", "n_id", "n_other"),
    *("auroc", "auroc_lo", "auroc_hi", "aupr_in", "aupr_out", "fpr95_ood_positive", "fpr95_id_positive"),
    *("fit_s", "score_ms_per_item", "passes", "peak_mb", "state_mb", "status", "reason"),
    *("auroc_delong_lo", "auroc_delong_hi", "below_best", "below_best_lo", "below_best_hi", "below_best_p"),
    *(f"{name}_{end}" for name in METRICS[1:] for end in ("lo", "hi")),
    *("head_accuracy", "tuned_on_ood"),
)
"""Columns of the tidy table. ``_lo`` and ``_hi``: 95 % interval by bootstrap over images (patients where known); for AUROC also DeLong's.
``below_best``: AUROC of the best method on the same sets and seed minus this one's, paired, with DeLong's interval and p-value."""

Row = dict[str, Any]
Scores = Float[np.ndarray, " _"]
Pair = tuple[str, str]
"""In-distribution set, other set."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Scores of one method on one pair and seed."""

    own: Scores
    other: Scores


@dataclass(eq=False)
class Results:
    """The tidy table and what summaries are made of.

    Args:
        rows: by ``COLUMNS``.
        samples: AUROC of each resample, mean over seeds, for each method and pair; the same draws for all methods.
        values: AUROC of each seed, for each method and pair.
        overlaps: images that were left out because they are copies.
    """

    rows: list[Row] = field(default_factory=list)
    samples: dict[tuple[str, Pair], Float[np.ndarray, " b"]] = field(default_factory=dict)
    values: dict[tuple[str, Pair], list[float]] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)


def evaluate(bench: Bench, *, repeats: int = REPEATS) -> Results:
    """Every metric of every trial.

    Args:
        bench: after its ``run``.
        repeats: bootstrap resamples.
    """
    out, copies = Results(), copies_of(bench)
    setup = bench.setup
    total = len(bench.own) * len(setup.seeds)
    for n, (own, seed) in enumerate((own, seed) for own in bench.own for seed in setup.seeds):
        setup.tell("evaluate", n, total)
        trials = {m.name: bench.trials[own, seed, m.name] for m in setup.methods}
        out.rows += [_not_run(bench, own, seed, name, trial) for name, trial in trials.items() if trial.status != "ok"]
        good = {name: trial for name, trial in trials.items() if trial.status == "ok"}
        test, twice = _test_rows(bench, own, seed, copies)
        out.overlaps += [twice] if len(twice.rows) else []
        for other, kind in setup.others(own).items():
            kept = _other_rows(bench, own, seed, other, copies, out)
            found = {
                name: Compared(trial.scores[own][test], trial.scores[other][kept]) for name, trial in good.items() if other in trial.scores
            }
            if min(len(test), len(kept)) < 2:
                reason = f"{len(test)} test images and {len(kept)} others: two of each are needed"
                out.rows.append({**_base(bench, "", own), "other_set": other, "kind": kind, "status": "not_run", "reason": reason})
                continue
            draws = _draws(bench, own, test, other, kept, repeats)
            for name, row in _compare(found, draws, out, (own, other)).items():
                out.rows.append(_described(bench, row, name, good[name], own, seed) | {"other_set": other, "kind": kind})
    for own in setup.suite.own:
        reason = setup.suite.absent(own) or bench.undivided.get(own, "")
        out.rows += [{**_base(bench, "", own), "status": "not_run", "reason": reason}] if reason else []
    for own in bench.own:
        for other, kind in setup.suite.others(own).items():
            reason = setup.suite.absent(other)
            if reason:
                out.rows.append({**_base(bench, "", own), "other_set": other, "kind": kind, "status": "not_run", "reason": reason})
    return out


def copies_of(bench: Bench) -> Copies:
    """Copies within and across all sets, by their fingerprints."""
    prints = {}
    for name, encoded in bench.sets.items():
        items = bench.setup.suite.items(name)
        if encoded.prints is not None:
            prints[name] = Prints(tuple(items[i].name for i in encoded.at), encoded.prints, encoded.digests)
    return find_copies(prints)


def _test_rows(bench: Bench, own: str, seed: int, copies: Copies) -> tuple[Int[np.ndarray, " n"], Overlap]:
    division, encoded = bench.divisions[own, seed], bench.sets[own]
    test = encoded.rows(division.test)
    if own not in copies.items:
        return test, Overlap(own, own, np.array([], dtype=np.int64), len(test), ())
    twice = copies.tested_twice(own, encoded.rows(np.concatenate([division.fit, division.held_out])), test)
    return np.setdiff1d(test, twice.rows, assume_unique=True), twice


def _other_rows(bench: Bench, own: str, seed: int, other: str, copies: Copies, out: Results) -> Int[np.ndarray, " m"]:
    """Rows of the other set: without copies of in-distribution images; of corrupted images those of this division's test part."""
    encoded = bench.sets[other]
    if bench.setup.suite.corruption(other) is not None:
        return np.flatnonzero(np.isin(encoded.at, bench.divisions[own, seed].test))
    every = np.arange(len(encoded.at))
    if own not in copies.items or other not in copies.items:
        return every
    shared = copies.shared(own, other)
    if len(shared.rows) and not any(o.own == own and o.other == other for o in out.overlaps):
        out.overlaps.append(shared)
    return np.setdiff1d(every, shared.rows, assume_unique=True)


def _draws(
    bench: Bench, own: str, test: Int[np.ndarray, " n"], other: str, kept: Int[np.ndarray, " m"], repeats: int
) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b m"]]:
    """How often each image is drawn: by set, so that all methods, seeds and pairs share their draws.

    A corrupted image is drawn as often as the image that it was made from.
    """
    mine, there = _drawn(bench, own, repeats), bench.sets[other]
    if bench.setup.suite.corruption(other) is not None:
        return mine[:, test], mine[:, bench.sets[own].rows(there.at[kept])]
    return mine[:, test], _drawn(bench, other, repeats)[:, kept]


def _drawn(bench: Bench, name: str, repeats: int) -> Float[np.ndarray, "b n"]:
    items, at = bench.items(name), bench.sets[name].at
    return bootstrap.draws(name, len(at), repeats=repeats, patients=[items[i].patient for i in at])


def _compare(
    found: Mapping[str, Compared], draws: tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b m"]], out: Results, pair: Pair
) -> dict[str, Row]:
    """Metrics, intervals, and the paired difference to the best method."""
    area = {name: metrics.auroc(c.own, c.other) for name, c in found.items()}
    best = max(area, key=lambda name: area[name], default="")
    rows = {}
    for name, c in found.items():
        samples = bootstrap.replicates(c.own, c.other, *draws)
        out.values.setdefault((name, pair), []).append(area[name])
        seen = len(out.values[name, pair])
        before = out.samples.get((name, pair), np.zeros(len(draws[0])))
        out.samples[name, pair] = before + (samples["auroc"] - before) / seen
        row: Row = {"n_id": len(c.own), "n_other": len(c.other), **{m: getattr(metrics, m)(c.own, c.other) for m in METRICS}}
        row["auroc_delong_lo"], row["auroc_delong_hi"] = exact = auroc_interval(c.own, c.other)
        for metric, (low, high) in bootstrap.interval(samples).items():
            row |= {f"{metric}_lo": low, f"{metric}_hi": high}
        if row["auroc_lo"] == row["auroc_hi"]:
            row["auroc_lo"], row["auroc_hi"] = exact  # a bootstrap of perfect separation knows no doubt
        gap = auroc_difference(found[best].own, found[best].other, c.own, c.other)
        rows[name] = row | {
            "below_best": gap.value,
            "below_best_lo": gap.low,
            "below_best_hi": gap.high,
            "below_best_p": gap.p_value,
        }
    return rows


def _base(bench: Bench, method: str, own: str) -> Row:
    return {"suite": bench.setup.suite.name, "method": method, "encoder": bench.setup.encoder.name, "id_set": own}


def _described(bench: Bench, row: Row, name: str, trial: Trial, own: str, seed: int) -> Row:
    head = bench.heads.get((own, seed))
    method = next(m for m in bench.setup.methods if m.name == name)
    cost = {} if trial.cost is None else {k: getattr(trial.cost, k) for k in ("fit_s", "score_ms_per_item", "peak_mb", "state_mb")}
    more = {"passes": method.detector.passes, "head_accuracy": None if head is None else head.accuracy, "tuned_on_ood": "no"}
    return {**_base(bench, name, own), "seed": seed, **row, **cost, **more, "status": "ok", "reason": ""}


def _not_run(bench: Bench, own: str, seed: int, name: str, trial: Trial) -> Row:
    return {**_base(bench, name, own), "seed": seed, "status": trial.status, "reason": trial.reason}


def kinds(bench: Bench) -> Iterator[tuple[Pair, str]]:
    """Every pair that is compared, with its kind."""
    for own in bench.own:
        for other, kind in bench.setup.others(own).items():
            yield (own, other), kind

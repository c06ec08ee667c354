"""Every method that a peer has, too: do the numbers agree, who is right where they do not, and who is faster.

    pip install --no-deps --target /tmp/peer pytorch-ood==0.4.0
    PYTHONPATH=/tmp/peer python benchmarks/peers/compare.py

Both sides get the same arrays in one process on two threads, and take turns; the least of some times counts. Ratios are given for the
clock and for processor time of all threads, which other work on the machine disturbs less. Errors are the largest
difference from numpy in float64, as a share of the standard deviation of the scores; ranks are rank correlations with it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Case, case
from pairs import PYTORCH_OOD, SCIKIT_LEARN, Pair, Score
from pytorch_ood_stub import detectors
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import Made, markdown, read_csv, version, write_csv, write_markdown

from offmap.core.detector import Fitted

ENOUGH = 4.0
"""Seconds after which a side is not timed again."""


def numbers(scores: Any) -> "np.ndarray[Any, Any]":
    """As float64."""
    return np.asarray(scores.detach() if isinstance(scores, torch.Tensor) else scores, dtype=np.float64).reshape(len(scores))


def ours(pair: Pair, given: Case) -> tuple[Callable[[], Fitted], Callable[[Fitted], Score]]:
    """How offmap fits and scores."""
    batches = given.batches if pair.labelled else [given.fit.signals()]

    def scored(fitted: Fitted) -> Score:
        signals = given.asked.signals()
        if pair.reads == "features and logits":
            return lambda: fitted.score({**signals, "logits": given.head(given.asked.features)})
        return lambda: fitted.score(signals)

    return lambda: pair.detector.fit(batches), scored


def in_turns(one: Callable[[], Any], other: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Least seconds of each, and least processor seconds of all its threads."""
    best, work, spent = [float("inf")] * 2, [float("inf")] * 2, [0.0, 0.0]
    for turn in range(repeats):
        if turn and min(spent) > ENOUGH:
            break
        for i, run in enumerate((one, other)):
            if turn and spent[i] > 3 * ENOUGH:
                continue
            start, processor = time.perf_counter(), time.process_time()
            run()
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            best[i], work[i], spent[i] = min(best[i], seconds), min(work[i], processor), spent[i] + seconds
    return best, work


def error(scores: "np.ndarray[Any, Any]", truth: "np.ndarray[Any, Any]") -> float:
    """Largest difference as a share of the deviation."""
    return float(np.max(np.abs(scores - truth)) / truth.std())


def compared(pair: Pair, given: Case, peer: Any, name: str, repeats: int) -> dict[str, object]:
    """A row of the table."""
    fit, scored = ours(pair, given)
    fitted, theirs = fit(), pair.theirs(peer, given)
    score = scored(fitted)
    mine, raw = numbers(score()), numbers(theirs())
    other = pair.turned(raw)
    fit_seconds, fit_work = in_turns(fit, lambda: pair.theirs(peer, given), min(repeats, 3))
    seconds, work = in_turns(score, theirs, repeats)
    truth = pair.truth(given) if pair.truth else None
    peer_truth = pair.turned(pair.peer_truth(given)) if pair.peer_truth else truth
    return {
        "method": pair.detector.method(),
        "peer": name,
        "rows": pair.sizes.asked,
        "fitted on": pair.sizes.count,
        "features": pair.sizes.width,
        "classes": pair.sizes.classes if pair.labelled else "",
        "rank correlation": f"{spearmanr(mine, other).statistic:.6f}",
        "largest difference": f"{error(other, mine):.1e}",
        "error of offmap": "" if truth is None else f"{error(mine, truth):.1e}",
        "error of peer": "" if peer_truth is None else f"{error(other, peer_truth):.1e}",
        "rank of offmap": "" if truth is None else f"{spearmanr(mine, truth).statistic:.6f}",
        "rank of peer": "" if peer_truth is None else f"{spearmanr(other, peer_truth).statistic:.6f}",
        "offmap_ms": f"{1000 * seconds[0]:.2f}",
        "peer_ms": f"{1000 * seconds[1]:.2f}",
        "score ratio": f"{seconds[1] / seconds[0]:.2f}",
        "score ratio, processor": f"{work[1] / work[0]:.2f}",
        "offmap_fit_ms": f"{1000 * fit_seconds[0]:.2f}",
        "peer_fit_ms": f"{1000 * fit_seconds[1]:.2f}",
        "fit ratio": f"{fit_seconds[1] / fit_seconds[0]:.2f}",
        "fit ratio, processor": f"{fit_work[1] / fit_work[0]:.2f}",
        "note": pair.note,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help="some of them, by comma; the others keep their rows in the table")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    args = parser.parse_args()
    torch.set_num_threads(2)
    made, peer = Made.now(), detectors()
    chosen = set(filter(None, args.methods.split(",")))
    names = f"pytorch-ood {version('pytorch-ood')}", f"scikit-learn {version('scikit-learn')}"
    pairs = [(pair, name) for name, group in zip(names, (PYTORCH_OOD, SCIKIT_LEARN), strict=True) for pair in group]
    rows: list[dict[str, Any]] = []
    given, sizes = None, None
    for pair, name in sorted(pairs, key=lambda p: repr(p[0].sizes)):
        if chosen and pair.detector.method() not in chosen:
            continue
        if given is None or sizes != pair.sizes:
            sizes = pair.sizes
            given = case(count=sizes.count, asked=sizes.asked, width=sizes.width, classes=sizes.classes, side=sizes.side)
        rows.append(compared(pair, given, peer, name, args.repeats))
        print({k: v for k, v in rows[-1].items() if k != "note"}, flush=True)
    done = {(row["method"], row["peer"], str(row["classes"])) for row in rows}
    rows += [row for row in read_csv(args.out / "peers.csv") if chosen and (row["method"], row["peer"], row["classes"]) not in done]
    rows.sort(key=lambda row: (str(row["peer"]), str(row["method"]), int(str(row["classes"] or 0))))
    print("\n".join(markdown(rows)))
    write_csv(args.out / "peers.csv", rows)
    write_markdown(args.out / "peers.md", "Against pytorch-ood and scikit-learn", body(rows), made)


def body(rows: list[dict[str, object]]) -> list[str]:
    """Two tables: agreement and time."""
    shared = ("method", "peer", "rows", "fitted on", "features", "classes")
    agreement = (
        "method",
        "peer",
        "rank correlation",
        "largest difference",
        "error of offmap",
        "error of peer",
        "rank of offmap",
        "rank of peer",
        "note",
    )
    times = (
        *shared,
        "offmap_ms",
        "peer_ms",
        "score ratio",
        "score ratio, processor",
        "offmap_fit_ms",
        "peer_fit_ms",
        "fit ratio, processor",
    )
    return [
        *markdown([{k: row[k] for k in times} for row in rows]),
        "",
        "Agreement, after the peer's number was brought to our unit:",
        "",
        *markdown([{k: row[k] for k in agreement} for row in rows]),
    ]


if __name__ == "__main__":
    main()

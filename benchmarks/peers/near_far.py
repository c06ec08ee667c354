"""Label-free detectors of other libraries on the features of a finished ``offmap benchmark``: same images, divisions and metrics.

offmap benchmark near-far-v1 --out results/
PYTHONPATH=/tmp/peer python benchmarks/peers/near_far.py results/

pytorch-ood (see pytorch_ood_stub.py) and scikit-learn are fitted on fit and held-out images together, since they keep none apart; ours use
the held-out ones to standardise only. Nothing is chosen on OOD images. All read the deepest layer, raw and brought to length one.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_ood_stub import detectors
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import Made, markdown, write_csv, write_markdown

from offmap.benchmark import bootstrap
from offmap.benchmark.compare import compare
from offmap.benchmark.results import Pair, Results, kinds
from offmap.benchmark.rows import with_alias
from offmap.benchmark.run import Bench
from offmap.benchmark.summary import summarise
from offmap.core.linalg import unit_norm

Scorer = Callable[[Tensor], np.ndarray]
"""Rows to scores, higher = more OOD."""

OURS = ("multilayer_mahalanobis", "mahalanobis", "mahalanobis_pp", "knn")


def theirs() -> dict[str, Callable[[Tensor], Scorer]]:
    """Each peer as a function that fits rows and gives a scorer."""
    found = {f"scikit-learn {name}": fit for name, fit in scikit_learn().items()}
    try:
        ood = detectors()
    except ImportError:
        print("pytorch-ood is not installed: only scikit-learn is compared", flush=True)
        return found

    def fitted(detector: Any, rows: Tensor) -> Scorer:
        detector.fit_features(rows, torch.zeros(len(rows), dtype=torch.long))
        return lambda asked: np.asarray(detector.predict_features(asked)).ravel()

    found |= {
        "pytorch-ood Mahalanobis": lambda rows: fitted(ood.Mahalanobis(None), rows),
        "pytorch-ood KNN, k=50": lambda rows: fitted(ood.KNN(None), rows),
        "pytorch-ood KNN, k=5": lambda rows: fitted(ood.KNN(None, k=5), rows),
        "pytorch-ood GMM": lambda rows: fitted(ood.GMM(None), rows),
    }
    return found


def scikit_learn() -> dict[str, Callable[[Tensor], Scorer]]:
    """Novelty detectors and densities of scikit-learn, on standardised rows."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import OneClassSVM

    def piped(model: Any, score: str, sign: float = -1.0) -> Callable[[Tensor], Scorer]:
        def fit(rows: Tensor) -> Scorer:
            made = make_pipeline(StandardScaler(), model).fit(rows.double().numpy())
            return lambda asked: sign * getattr(made[-1], score)(made[0].transform(asked.double().numpy()))

        return fit

    def nearest(k: int) -> Callable[[Tensor], Scorer]:
        def fit(rows: Tensor) -> Scorer:
            scaler = StandardScaler().fit(rows.double().numpy())
            made = NearestNeighbors(n_neighbors=k).fit(scaler.transform(rows.double().numpy()))
            return lambda asked: made.kneighbors(scaler.transform(asked.double().numpy()))[0][:, -1]

        return fit

    return {
        "LedoitWolf distance": piped(LedoitWolf(), "mahalanobis", 1.0),
        "PCA likelihood": piped(PCA(n_components=0.95, svd_solver="full"), "score_samples"),
        "IsolationForest": piped(IsolationForest(n_estimators=300, random_state=0), "score_samples"),
        "LocalOutlierFactor": piped(LocalOutlierFactor(n_neighbors=20, novelty=True), "score_samples"),
        "OneClassSVM": piped(OneClassSVM(nu=0.05), "score_samples"),
        "NearestNeighbors, k=5": nearest(5),
    }


def scored(bench: Bench, results: Results, name: str, fit: Callable[[Tensor], Scorer], *, unit: bool) -> None:
    """Put the AUROC of a peer into the results, as for our methods: the same rows and the same draws."""
    label = f"{name}{', length one' if unit else ''}"

    def rows_of(vectors: Mapping[str, Tensor]) -> Tensor:
        rows = with_alias(vectors, bench.setup.encoder.layers)["features.last"].float()
        return unit_norm(rows) if unit else rows

    for own, seed in [(own, seed) for own in bench.setup.own for seed in bench.setup.seeds]:
        division, formed, native = bench.divisions[own, seed], bench.formed[own], bench.sets[own]
        fit_rows = formed.rows(np.concatenate([division.fit, division.held_out]))
        with warnings.catch_warnings(action="ignore"):
            score = fit(rows_of(formed.vectors)[torch.from_numpy(fit_rows)])
        test = native.rows(division.test)
        usual = score(rows_of(native.vectors)[torch.from_numpy(test)])
        mine = bootstrap.draws(own, len(native.at), repeats=500)[:, test]
        for other in bench.setup.others(own):
            odd = score(rows_of(bench.sets[other].vectors))
            samples = bootstrap.replicates(usual, odd, mine, bootstrap.draws(other, len(odd), repeats=500))["auroc"]
            add(results, label, (own, other), usual, odd, samples)
    results.rows.append(
        {"method": label, "status": "ok", "passes": "1F"} | dict.fromkeys(("fit_s", "score_ms_per_item", "peak_mb", "state_mb"), 0.0)
    )


def add(results: Results, name: str, pair: Pair, usual: np.ndarray, odd: np.ndarray, samples: np.ndarray) -> None:
    """One more division of a pair."""
    from offmap.benchmark.metrics import auroc

    values = results.values.setdefault((name, pair), [])
    values.append(auroc(usual, odd))
    before = results.samples.get((name, pair), np.zeros_like(samples))
    results.samples[name, pair] = before + (samples - before) / len(values)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results of offmap benchmark")
    parser.add_argument("--suite", default="near-far-v1")
    parser.add_argument("--encoder", default=None)
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--only", default="", help="peers whose name begins so")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    args = parser.parse_args()
    found = compare(args.suite, out=args.folder, methods=OURS, encoder=args.encoder, seeds=args.seeds)
    results, made = Results(), Made.now()
    for key in [k for k in found.results.values if k[0] in OURS]:
        results.values[key], results.samples[key] = found.results.values[key], found.results.samples[key]
    results.rows += [row for row in found.results.rows if row["method"] in OURS and row["status"] == "ok"]
    for name, fit in ((n, f) for n, f in theirs().items() if n.startswith(args.only)):
        for unit in (False, True):
            try:
                scored(found.bench, results, name, fit, unit=unit)
                print(name, unit, flush=True)
            except Exception as error:  # a peer that cannot be fitted is left out, and said so
                print(f"{name}, length one {unit}: {type(error).__name__}: {error}", flush=True)
    table = []
    for line in summarise(results, dict(kinds(found.bench))):
        ours = line["method"] in OURS
        table.append(
            {
                "method": f"offmap {line['method']}" if ours else line["method"],
                **{key: round(line[key], 4) for key in ("near", "near_lo", "near_hi", "near_sd", "far", "far_worst") if key in line},
                "below the best": round(line["near_below"], 4),
            }
        )
    write_csv(args.out / "peers_near_far.csv", table)
    write_markdown(args.out / "peers_near_far.md", "Label-free detectors of other libraries on the same features", markdown(table), made)


if __name__ == "__main__":
    main()

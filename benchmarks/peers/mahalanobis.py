"""Mahalanobis distance against pytorch-ood 0.4.0: speed with many classes, and accuracy with fewer images than dimensions.

    pip install --no-deps --target /tmp/peer pytorch-ood==0.4.0
    PYTHONPATH=/tmp/peer python benchmarks/peers/mahalanobis.py

pytorch-ood imports torchvision, which this comparison does not need: empty modules stand in for it. Both score the same rows on the
same cores; the truth is float64, each time for the estimator of the method that is judged.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pytorch_ood_stub import detectors
from results import Made, markdown, version, write_csv, write_markdown

from offmap.core.detector import Fitted
from offmap.core.linalg import cholesky
from offmap.score.mahalanobis import Mahalanobis


def peer() -> Any:
    """pytorch-ood's detector."""
    return detectors().Mahalanobis(None)


def rows(count: int, width: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features after a ReLU, with classes, few directions of large variance and many of small, float32."""
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=generator)
    scale = torch.logspace(0, -2, width)
    return (centres[labels] + scale * torch.randn(count, width, generator=generator)).relu(), labels


def fitted(features: Tensor, labels: Tensor) -> Fitted:
    """Ours."""
    return Mahalanobis().fit([{"features.last": features, "label": labels}])


def oracle(ours: Fitted, features: Tensor, centres: Tensor) -> np.ndarray:
    """Float64 formula of our estimator: factor as fitted, distances to every class by scipy, one class at a time."""
    factor = (ours.state["factor"].double().numpy(), True)
    least = np.full(len(features), np.inf)
    for centre in centres.double().numpy():
        centred = features.double().numpy() - centre
        least = np.minimum(least, (centred * cho_solve(factor, centred.T).T).sum(axis=1))
    return least


def their_oracle(theirs: Any, features: Tensor, labels: Tensor, asked: Tensor) -> np.ndarray:
    """Float64 formula of pytorch-ood's estimator: summed scatter within classes, a ridge of 1e-6, half the squared distance."""
    z, x = features.double().numpy(), asked.double().numpy()
    classes = range(int(labels.max()) + 1)
    centres = [z[(labels == c).numpy()].mean(axis=0) for c in classes]
    scatter = sum((d := z[(labels == c).numpy()] - centres[c]).T @ d for c in classes) + 1e-6 * np.eye(z.shape[1])
    factor = cho_factor(scatter, lower=True)
    least: np.ndarray = np.min([0.5 * ((x - m) * cho_solve(factor, (x - m).T).T).sum(axis=1) for m in centres], axis=0)
    return least


def timed(score: Any, repeats: int) -> tuple[np.ndarray, float]:
    """Scores, and the least of some times in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        scores = score()
        times.append(time.perf_counter() - start)
    return scores.double().numpy(), min(times)


def speed(classes: int, width: int, count: int) -> dict[str, object]:
    """Seconds of both for the same rows."""
    generator = torch.Generator().manual_seed(0)
    features, labels = rows(max(3 * classes, 2 * width + classes), width, classes, generator)
    asked, _ = rows(count, width, classes, generator)
    ours, theirs = fitted(features, labels), peer().fit_features(features, labels)
    centres = torch.stack([features[labels == c].double().mean(dim=0) for c in range(classes)])
    scores, seconds = timed(lambda: ours.score({"features.last": asked}), 5)
    _, their_seconds = timed(lambda: theirs.predict_features(asked), 1)
    truth = oracle(ours, asked, centres)
    return {
        "classes": classes,
        "features": width,
        "rows": count,
        "offmap_s": seconds,
        "pytorch_ood_s": their_seconds,
        "ratio": their_seconds / seconds,
        "largest relative error of offmap": f"{np.max(np.abs(scores - truth) / truth):.1e}",
    }


def few_images(count: int, width: int, classes: int) -> list[dict[str, object]]:
    """Fewer images than dimensions: rank correlation with float64 of the same estimator, and negative distances."""
    generator = torch.Generator().manual_seed(1)
    features, labels = rows(count, width, classes, generator)
    asked = torch.cat([rows(500, width, classes, generator)[0], 1.1 * rows(500, width, classes, generator)[0]])
    ours, theirs = fitted(features, labels), peer().fit_features(features, labels)
    centres = torch.stack([features[labels == c].double().mean(dim=0) for c in range(classes)])
    scores, their_scores = ours.score({"features.last": asked}).double().numpy(), theirs.predict_features(asked).double().numpy()
    truths = oracle(ours, asked, centres), their_oracle(theirs, features, labels, asked)
    return [
        {
            "method": name,
            "images": count,
            "features": width,
            "classes": classes,
            "rank correlation with float64": f"{spearmanr(found, truth).statistic:.6f}",
            "negative distances": f"{int((found < 0).sum())} of {len(found)}",
        }
        for name, found, truth in (("offmap", scores, truths[0]), (f"pytorch-ood {version('pytorch-ood')}", their_scores, truths[1]))
    ]


def same_factor(width: int) -> None:
    """Refuse to judge by a factor that is not that of its covariance.

    Raises:
        SystemExit: they differ.
    """
    drawn = torch.randn(3 * width, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    covariance = drawn.T @ drawn
    if not np.allclose(cholesky(covariance).numpy(), np.linalg.cholesky(covariance.numpy())):
        raise SystemExit("the Cholesky factor is not numpy's")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 100, 1000])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    args = parser.parse_args()
    made = Made.now()
    same_factor(64)
    table = [speed(classes, args.width, args.rows) for classes in args.classes]
    print("\n".join(markdown(table)))
    accuracy = few_images(848, args.width, 3)
    print("\n".join(markdown(accuracy)))
    write_csv(args.out / "peer_mahalanobis.csv", table)
    write_csv(args.out / "peer_mahalanobis_few.csv", accuracy)
    body = [*markdown(table), "", "Fewer images than dimensions:", "", *markdown(accuracy)]
    write_markdown(args.out / "peer_mahalanobis.md", "Mahalanobis against pytorch-ood 0.4.0", body, made)


if __name__ == "__main__":
    main()

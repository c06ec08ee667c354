"""Every reduction over every choice of layers from one fit a layer: what the multi-layer detector does, taken apart.

``parts`` fits one single-layer ``multilayer_mahalanobis`` a layer and one ``knn`` on the deepest, through the public contract;
``combined`` puts their standardised scores together with the product's own reductions. ``near_far.py`` and ``file_forms.py``
check that the detector itself gives the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from features import Vectors, signals

from offmap.core.detector import Detector, Fitted
from offmap.score._reductions import Parts, Reduction, terms
from offmap.score.knn import KNN
from offmap.score.multilayer_mahalanobis import SMALLEST, MultilayerMahalanobis

CHUNK = 512
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


@dataclass(frozen=True)
class Choice:
    """A reduction over some layers, shallow to deep."""

    reduction: Reduction
    layers: tuple[str, ...]


def subsets(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The choices of layers that are compared."""
    return {"all": tuple(layers), "without the shallowest": tuple(layers[1:]), "deeper half": tuple(layers[len(layers) // 2 :])}


def fit(detector: Detector, vectors: Vectors, rows: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> Fitted:
    """A detector fitted on some rows of a set and standardised on others."""
    batches = [[signals(vectors, part[i : i + CHUNK]) for i in range(0, len(part), CHUNK)] for part in (rows, held_out)]
    return detector.fit(batches[0], held_out=batches[1], generator=torch.Generator().manual_seed(seed))


def scored(fitted: Fitted, vectors: Vectors, rows: np.ndarray | None = None) -> np.ndarray:
    """Scores ``(N,)`` of a set or some rows of it, float64."""
    given = signals(vectors, rows)
    count = len(given["features.last"])
    return np.concatenate([fitted.score({k: v[i : i + CHUNK] for k, v in given.items()}).double().numpy() for i in range(0, count, CHUNK)])


def parts(vectors: Vectors, rows: np.ndarray, held_out: np.ndarray, asked: Mapping[str, Vectors]) -> dict[str, np.ndarray]:
    """Standardised log distances ``(N, L + 1)`` of each layer, and of the fifth neighbour in the deepest, of each set asked for.

    The held-out rows come as ``""``.
    """
    layers = [name.removeprefix("features.") for name in vectors if name.startswith("features.")]
    sets = {"": {name: value[torch.from_numpy(held_out)] for name, value in vectors.items()}, **asked}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for layer in layers:
        fitted = fit(MultilayerMahalanobis(layers=(layer,), reduction="mean", maps=False), vectors, rows, held_out)
        for name, given in sets.items():
            columns[name].append(scored(fitted, given))
    near = fit(KNN(k=5), vectors, rows, held_out)
    distances = {name: np.log(np.maximum(scored(near, given), SMALLEST**0.5)) for name, given in sets.items()}
    mean, spread = distances[""].mean(), distances[""].std(ddof=1)
    return {name: np.stack([*columns[name], (distances[name] - mean) / spread], axis=1) for name in sets}


def combined(found: Mapping[str, np.ndarray], layers: Sequence[str], choice: Choice) -> dict[str, np.ndarray]:
    """Scores of each set under one choice."""
    at = [layers.index(layer) for layer in choice.layers]
    made = {
        name: terms(choice.reduction, Parts(torch.from_numpy(z[:, at]), torch.from_numpy(z[:, -1]))).numpy() for name, z in found.items()
    }
    mean, spread = made[""].mean(axis=0), made[""].std(axis=0, ddof=1)
    return {name: ((value - mean) / spread).sum(axis=1) for name, value in made.items()}

"""Every reduction over every choice of layers from one fit: what the multi-layer detector does, taken apart.

``parts`` fits the detector on all layers and reads what its reduction would combine; ``combined`` puts some of these together with the
product's own reductions. ``near_far.py`` and ``file_forms.py``
check that the detector itself gives the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from features import Vectors, signals

from offmap.core.detector import Detector, Fitted
from offmap.score._reductions import TAILS, Parts, Reduction, Tails, terms
from offmap.score.multilayer_mahalanobis import MultilayerMahalanobis

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


def parts(
    vectors: Vectors, rows: np.ndarray, held_out: np.ndarray, asked: Mapping[str, Vectors], like: MultilayerMahalanobis | None = None
) -> dict[str, Parts]:
    """Standardised log distances of each layer, and of the fifth neighbour in the deepest, of each set asked for.

    The held-out rows come as ``""``. Everything but the layers and the reduction is as in ``like``, by default the detector's defaults.
    """
    detector = replace(like or MultilayerMahalanobis(), layers=(), choose="depth", skip=0, reduction="mean_knn", maps=False)
    fitted = fit(detector, vectors, rows, held_out)
    sets = {"": signals(vectors, held_out), **{name: signals(given) for name, given in asked.items()}}
    return {name: detector.parts(fitted.state, given) for name, given in sets.items()}


def combined(found: Mapping[str, Parts], layers: Sequence[str], choice: Choice) -> dict[str, np.ndarray]:
    """Scores of each set under one choice."""
    at = [layers.index(layer) for layer in choice.layers]
    tails = Tails.of(found[""].layers[:, at]) if choice.reduction in TAILS else None
    made = {}
    for name, part in found.items():
        chosen = part.layers[:, at]
        own = None if tails is None else tails.of_unseen(chosen) if name else tails.of_held(chosen)
        made[name] = terms(choice.reduction, Parts(chosen, part.neighbour, own)).numpy()
    mean, spread = made[""].mean(axis=0), made[""].std(axis=0, ddof=1)
    return {name: ((value - mean) / spread).sum(axis=1) for name, value in made.items()}

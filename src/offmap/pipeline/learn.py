"""From in-distribution signals to a scorer: who fits, who standardises, who calibrates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from offmap.calibrate.conformal import Cross, Split
from offmap.calibrate.split import folds as make_folds
from offmap.calibrate.split import split as make_split
from offmap.calibrate.tail import Tail
from offmap.core.detector import Detector, Fitted, Localiser, missing
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.pipeline.recipe import Calibration, Recipe
from offmap.pipeline.scorer import Calibrated, Ensemble, Scorer
from offmap.pipeline.store import SignalStore

NEEDED_FOR_REJECT = 199
SMALLEST = 10
MAP_ROWS = 400


@dataclass(frozen=True)
class Parts:
    """Rows of one fit: who fits, who standardises, who calibrates (disjoint, by patient where known)."""

    fit: np.ndarray
    held_out: np.ndarray
    calibrate: np.ndarray


def choose(calibration: Calibration, n: int) -> str:
    """``split`` or ``cross`` for ``n`` in-distribution images."""
    if calibration.method != "auto":
        return calibration.method
    return "split" if int(calibration.calibrate * n) >= NEEDED_FOR_REJECT else "cross"


def divide(calibration: Calibration, groups: Sequence[str], seed: int) -> list[Parts]:
    """One division (split) or one a fold (cross), by group.

    Args:
        groups: one key an image; images of one key (patient, or copies of one another) stay together; "" = on its own.
    """
    if choose(calibration, len(groups)) == "split":
        shares = (1 - calibration.held_out - calibration.calibrate, calibration.held_out, calibration.calibrate)
        fit, held_out, calibrate = make_split(groups, shares=shares, seed=seed)
        return [Parts(fit, held_out, calibrate)]
    out = []
    for k, fold in enumerate(make_folds(groups, calibration.folds, seed=seed)):
        rest = np.setdiff1d(np.arange(len(groups)), fold)
        share = calibration.held_out / (1 - 1 / calibration.folds)
        fit, held_out = make_split([groups[i] for i in rest], shares=(1 - share, share), seed=seed + k + 1)
        out.append(Parts(rest[fit], rest[held_out], fold))
    return out


def fit_scorer(recipe: Recipe, store: SignalStore, groups: Sequence[str], *, seed: int, device: torch.device) -> tuple[Scorer, list[Parts]]:
    """Fit every part of the recipe, standardise, calibrate.

    Args:
        store: signals of all in-distribution images.
        groups: one key an image, see ``divide``.

    Raises:
        SignalError: a detector cannot be fitted on these signals (it says why).
    """
    division = divide(recipe.calibrate, groups, seed)
    fitted = {name: tuple(_fit(d, store, p, seed, device) for p in division) for name, d in recipe.parts.items()}
    scale = np.stack([np.stack([_scale(f, store, p.held_out, device) for f, p in zip(states, division, strict=True)]) for states in fitted.values()])
    ensemble = Ensemble(fitted, scale)
    held = [_statistic(ensemble, store, p.calibrate, k, device) for k, p in enumerate(division)]
    calibrated: Calibrated = Split.fit(torch.from_numpy(held[0])) if len(division) == 1 else Cross.fit([torch.from_numpy(h) for h in held])
    tail = Tail.fit(torch.from_numpy(np.concatenate(held)), seed=seed)
    maps, limits = _fit_maps(recipe, store, division[0], fitted, seed, device)
    return Scorer(ensemble, calibrated, tail, maps, limits), division


def wanted(recipe: Recipe, encoder: Encoder) -> tuple[frozenset[str], frozenset[str]]:
    """Signals that fit and scores need, and those that only maps need.

    Raises:
        ConfigError: the encoder does not provide what a part needs; the message says what would fit.
    """
    scores: set[str] = set()
    maps: set[str] = set()
    for name, detector in recipe.parts.items():
        needs = (detector.needs | detector.fit_needs) - {"label"}
        lacking = missing(needs, encoder.provides)
        if lacking:
            has = ", ".join(sorted(encoder.provides))
            raise ConfigError(f"[score.{name}] {detector.method()} needs {', '.join(lacking)}; {encoder.name} gives {has}.{_advice(lacking)}")
        uses = {u for u in detector.fit_uses if u != "label" and not missing([u], encoder.provides)}
        maps |= {u for u in uses if u.startswith("feature_map")}
        scores |= needs | {u for u in uses if not u.startswith("feature_map")}
        if isinstance(detector, Localiser) and not missing(detector.map_needs, encoder.provides):
            maps |= detector.map_needs
    return frozenset(scores), frozenset(maps - scores)


def _advice(lacking: Sequence[str]) -> str:
    if any(x in ("logits", "head.weight", "head.bias", "features.penultimate") for x in lacking):
        return " Logit methods run where an encoder has a head: give your classifier with --encoder classifier:FILE, or choose a feature method such as knn"
    return " `offmap methods` lists what each method needs"


def _fit(detector: Detector, store: SignalStore, parts: Parts, seed: int, device: torch.device, *, maps: bool = False) -> Fitted:
    needs = detector.needs | detector.fit_needs
    uses = {u for u in detector.fit_uses if not missing([u], store.names) and (maps or not u.startswith("feature_map"))}
    batches = store.batches(parts.fit, needs | uses, device=device)
    held_out = store.batches(parts.held_out, needs | uses, device=device)
    return detector.fit(batches, held_out=held_out, generator=torch.Generator().manual_seed(seed))


def _scores(fitted: Fitted, store: SignalStore, rows: np.ndarray, device: torch.device) -> np.ndarray:
    return np.concatenate([fitted.score(b).cpu().numpy() for b in store.batches(rows, fitted.detector.needs, device=device)])


def _scale(fitted: Fitted, store: SignalStore, held_out: np.ndarray, device: torch.device) -> np.ndarray:
    scores = _scores(fitted, store, held_out, device).astype(np.float64)
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    return np.array([scores.mean(), spread if spread > 0 else 1.0])


def _statistic(ensemble: Ensemble, store: SignalStore, rows: np.ndarray, k: int, device: torch.device) -> np.ndarray:
    raw = np.stack([_scores(states[k], store, rows, device) for states in ensemble.parts.values()])
    return ensemble.statistic(raw[:, None], range(k, k + 1))[0]


def _fit_maps(
    recipe: Recipe, store: SignalStore, parts: Parts, fitted: dict[str, tuple[Fitted, ...]], seed: int, device: torch.device
) -> tuple[dict[str, Fitted], dict[str, tuple[float, float]]]:
    """The first part that localises gets a state with maps, and colour limits from in-distribution maps."""
    for name, detector in recipe.parts.items():
        if not isinstance(detector, Localiser) or missing(detector.map_needs, store.names):
            continue
        few = Parts(store.has_map(parts.fit), store.has_map(parts.held_out), parts.calibrate)
        if len(few.fit) < 2 or len(few.held_out) < 1:
            continue
        state = fitted[name][0] if detector.map_needs <= detector.needs else _fit(detector, store, few, seed, device, maps=True)
        batches = store.batches(few.held_out[:MAP_ROWS], detector.map_needs, device=device)
        values = np.concatenate([state.map(b).cpu().numpy().ravel() for b in batches])
        return {name: state}, {name: (float(np.quantile(values, 0.5)), float(np.quantile(values, 0.999)))}
    return {}, {}

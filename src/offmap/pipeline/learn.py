"""From in-distribution signals to a scorer: who fits, who standardises, who calibrates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from offmap.calibrate.cascade import Cascaded
from offmap.calibrate.combine import Combine, Combined
from offmap.calibrate.conformal import Conformal
from offmap.calibrate.split import folds, split
from offmap.calibrate.tail import Tail
from offmap.core.detector import Detector, Fitted, Localiser, missing
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.signals import base_of, is_map
from offmap.core.types import Image
from offmap.pipeline.recipe import Division, Recipe
from offmap.pipeline.scorer import Ensemble, Scorer
from offmap.pipeline.store import SignalStore

SMALLEST = 10
_HEADED = {"logits", "head.weight", "head.bias", "features.penultimate", "odin.logits", "odin.features", "adascale.features"}
_HEADED |= {"tta.logits", "mc_dropout.logits"}
MAP_ROWS = 400


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows of one fit: who fits, who standardises, who calibrates; disjoint, by patient where known."""

    fit: np.ndarray
    held_out: np.ndarray
    calibrate: np.ndarray


def divide(calibration: Division, images: Sequence[Image], copies: Sequence[Sequence[int]], seed: int) -> tuple[Parts, ...]:
    """One division of the images (split) or one a fold (cross); patients and copies stay together."""
    groups, digests = [i.group for i in images], [i.digest for i in images]
    conformal = Conformal(kind=calibration.kind, folds=calibration.folds)
    if conformal.choose(int(calibration.calibrate * len(images))) == "split":
        shares = (1 - calibration.held_out - calibration.calibrate, calibration.held_out, calibration.calibrate)
        return (Parts(*split(groups, digests, shares=shares, seed=seed, copies=copies)),)
    held_out = calibration.held_out / (1 - 1 / calibration.folds)
    out = []
    for k, fold in enumerate(folds(groups, calibration.folds, digests=digests, seed=seed, copies=copies)):
        rest = np.setdiff1d(np.arange(len(images)), fold)
        place = {int(row): i for i, row in enumerate(rest)}
        inside = [[place[row] for row in rows if row in place] for rows in copies]
        some = [groups[i] for i in rest], [digests[i] for i in rest]
        fit, held = split(*some, shares=(1 - held_out, held_out), seed=seed + k + 1, copies=[rows for rows in inside if rows])
        out.append(Parts(rest[fit], rest[held], fold))
    return tuple(out)


def fit_scorer(recipe: Recipe, store: SignalStore, division: Sequence[Parts], *, seed: int, device: torch.device) -> Scorer:
    """Fit every part of the recipe, standardise, calibrate.

    Args:
        store: signals of all in-distribution images.
        division: who fits, who standardises, who calibrates; see ``divide``.

    Raises:
        ConfigError: a part needs labels and there are none.
        SignalError: a detector cannot be fitted on these signals (it says why).
    """
    for name, detector in recipe.parts.items():
        if "label" in detector.fit_needs and "label" not in store.names:
            raise ConfigError(
                f"[score.{name}] {detector.method()} is fitted with labels: give --labels with a CSV of the columns path and label, "
                "or a manifest with a column label"
            )
    fitted = {name: tuple(_fit(d, store, p, seed, device) for p in division) for name, d in recipe.parts.items()}
    combined: tuple[Combined | Cascaded, ...] = ()
    if len(fitted) > 1:
        law = recipe.cascade or Combine()
        combined = tuple(
            law.fit({name: _scores(states[k], store, p.held_out, device) for name, states in fitted.items()})
            for k, p in enumerate(division)
        )
    ensemble = Ensemble(fitted, combined)
    held = [
        ensemble.statistic(k, {name: _scores(states[k], store, p.calibrate, device) for name, states in fitted.items()})
        for k, p in enumerate(division)
    ]
    ranks = Conformal().fit(held)
    tail = Tail().fit(ranks.pooled(), generator=torch.Generator().manual_seed(seed))
    maps, limits = _fit_maps(recipe, store, division[0], fitted, seed, device)
    return Scorer(ensemble, ranks, tail, maps, limits)


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
            has, advice = ", ".join(sorted(encoder.provides)), _advice(lacking, encoder.provides)
            raise ConfigError(f"[score.{name}] {detector.method()} needs {', '.join(lacking)}; {encoder.name} gives {has}.{advice}")
        uses = {u for u in detector.fit_uses if u != "label" and not missing([u], encoder.provides)}
        maps |= {u for u in uses if is_map(u)}
        scores |= needs | {u for u in uses if not is_map(u)}
        if draws(detector, encoder.provides):
            maps |= map_needs(detector)
    encoder.ready(frozenset(scores))
    return frozenset(scores), frozenset(maps - scores)


def draws(detector: Detector, provides: Iterable[str]) -> bool:
    """Whether the detector will have a map: it localises, was asked to, and what it needs is there."""
    needs = map_needs(detector)
    learnt = detector.needs | detector.fit_needs | detector.fit_uses
    return isinstance(detector, Localiser) and needs <= learnt and not missing(needs, provides)


def map_needs(detector: Detector) -> frozenset[str]:
    """Signals of its map; empty for a detector that does not localise."""
    return detector.map_needs if isinstance(detector, Localiser) else frozenset()


_BESIDE = {"elbo.background": "background = true", "elbo.members": "members = 5", "gradcon.alignment": "gradients = true"}
"""Fields of the trainer of a VAE without which a signal is not there."""


def _advice(lacking: Sequence[str], provides: Iterable[str]) -> str:
    bases = {base_of(x) for x in lacking}
    if "mc_dropout.logits" in bases and "logits" in provides:
        return (
            " The network has no dropout part (nn.Dropout and the like with p above 0; an exported program has lost them): "
            "give the Python module itself, or use test_time_augmentation, which needs none"
        )
    if "ensemble.logits" in bases:
        return " Give several classifiers that were trained apart, from Python: encoder=[one, two, three]"
    if bases & _HEADED or any(x.startswith(("nac.", "rankfeat.")) for x in bases if "logits" not in provides):
        return " Logit methods need a head: give your classifier with --encoder classifier:FILE, or choose a feature method such as knn"
    if "reconstruction.perceptual" in bases and "reconstruction.ssim" in provides:
        return (
            " Perceptual differences are those of a network for images of two axes, and volumes have none: take another measure, such as "
            '--set score.reconstruction.measure=ssim (in the recipe: measure = "ssim")'
        )
    if any(x.startswith("mecam.") for x in bases):
        return " Add exits to the network first: `offmap add-exits` makes a file, to be named in the recipe as [encoder] exits"
    beside = [_BESIDE[x] for x in sorted(bases & set(_BESIDE))]
    if beside:
        return f' These come with a VAE of one\'s own: [encoder] spec = "train:vae" with [train] {", ".join(beside)}'
    if any(x in ("image_embedding", "text.embedding") for x in lacking):
        return ' Say in the recipe what an image might show: [encoder] text = ["a chest x-ray", ...] with an image and text model'
    return " `offmap methods` lists what each method needs"


def _fit(detector: Detector, store: SignalStore, parts: Parts, seed: int, device: torch.device, *, maps: bool = False) -> Fitted:
    needs = detector.needs | detector.fit_needs
    uses = {u for u in detector.fit_uses if not missing([u], store.names) and (maps or not is_map(u))}
    batches = store.batches(parts.fit, needs | uses, device=device)
    held_out = store.batches(parts.held_out, needs | uses, device=device)
    return detector.fit(batches, held_out=held_out, generator=torch.Generator().manual_seed(seed))


def _scores(fitted: Fitted, store: SignalStore, rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.cat([fitted.score(batch).cpu() for batch in store.batches(rows, fitted.detector.needs, device=device)])


def _fit_maps(
    recipe: Recipe, store: SignalStore, parts: Parts, fitted: Mapping[str, tuple[Fitted, ...]], seed: int, device: torch.device
) -> tuple[dict[str, Fitted], dict[str, tuple[float, ...]]]:
    """The first part that localises gets a state with maps, and colour limits from in-distribution maps."""
    for name, detector in recipe.parts.items():
        if not draws(detector, store.names):
            continue
        few = replace(parts, fit=store.has_map(parts.fit), held_out=store.has_map(parts.held_out)[:MAP_ROWS])
        if len(few.fit) < 2 or len(few.held_out) < 2:
            continue
        state = fitted[name][0] if map_needs(detector) <= detector.needs else _fit(detector, store, few, seed, device, maps=True)
        batches = store.batches(few.held_out, map_needs(detector), device=device)
        maps = [one.ravel() for batch in batches for one in state.map(batch).cpu().numpy()]
        values = np.concatenate(maps)
        limits = [float(np.quantile(values, 0.5)), float(np.quantile(values, 0.999))]
        restores = isinstance(detector, Localiser) and detector.restores
        return {name: state}, {name: (*limits, *([max(float(np.median(one)) for one in maps)] if restores else []))}
    return {}, {}

"""A gate on disk: what of it goes into the bundle, and how it is built again without trusting the bundle."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from offmap.calibrate import conformal, tail
from offmap.calibrate.cascade import Cascade, Cascaded
from offmap.calibrate.combine import Combine, Combined
from offmap.core import bundle, registry
from offmap.core.detector import Detector, Fitted
from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError, OODError
from offmap.explain.neighbours import Neighbours
from offmap.pipeline import recipe as recipes
from offmap.pipeline.card import card, is_kept
from offmap.pipeline.inputs import PathLike
from offmap.pipeline.scorer import Ensemble, Scorer
from offmap.prepare.preparation import Preparation
from offmap.represent.device import resolve_device
from offmap.represent.open import Given, rebuild
from offmap.represent.pair import Pair, joined_state

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate


def save(gate: "Gate", folder: Path) -> str:
    """Write the gate; returns its id."""
    manifest, stages, extra = _content(gate)
    return bundle.write(folder, manifest, stages, extra=extra)


def identity(gate: "Gate") -> str:
    """The id that the gate has or would have on disk."""
    manifest, stages, extra = _content(gate)
    return bundle.identity(manifest, stages, extra=extra)


def load(
    path: PathLike,
    *,
    expect: str | None = None,
    encoder: Given | None = None,
    trust_classifier: bool = False,
    device: str = "auto",
) -> "Gate":
    """Open a gate.

    Args:
        path: the gate's folder.
        expect: ``sha256:...``, refuse any other gate.
        encoder: the encoder, where the gate does not hold its weights (large ones and classifiers); of an ensemble the list
            of its members in the same order.
        trust_classifier: allow ``classifier:FILE`` to run the program in that file.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.

    Raises:
        BundleError: damaged, forged, foreign or newer; or the encoder is not the one it was fitted with.
        ConfigError: the encoder is a program file that is not trusted.
    """
    found = bundle.read(Path(path), expect=expect)
    manifest = found.manifest
    where = resolve_device(device)
    with _damage(path):
        described = manifest["stages"]["encoder"]["params"]
        weights = found.stages["encoder"] or None
    network = rebuild(described, weights, given=encoder, trust_classifier=trust_classifier, device=str(where))
    with _damage(path):
        recipe = recipes.from_json(manifest["recipe"])
        recipe = replace(recipe, parts={name: recipe.parts[name] for name in manifest["parts"]})
        preparation = Preparation.from_json(manifest["prepare"], where="prepare")
        scorer = _scorer(manifest, found.stages).to(where)
        neighbours = Neighbours.read(found) if "neighbours" in found.stages else None
        gate = _gate()(recipe, network, preparation, scorer, manifest["facts"], neighbours, where, found_id=found.id)
    _try_out(gate, path)
    return gate


def _try_out(gate: "Gate", path: PathLike) -> None:
    """Score one picture of noise, so that parts that do not fit each other are refused now and not while scoring."""
    if gate.volumes:
        return
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64), dtype=np.uint8)
    try:
        replace(gate, encoder=gate.encoder.rehearsal()).score(noise, axes="NCHW", jobs=0)
    except (OODError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{path}: the parts of this gate do not fit each other ({type(error).__name__}). Fit the gate anew") from error


def read_card(path: PathLike, *, expect: str | None = None) -> dict[str, Any]:
    """The card of a gate on disk, checked as a whole but without its encoder (which may be somewhere else).

    Raises:
        BundleError: damaged, forged, foreign or newer, or not the one that ``expect`` names.
    """
    found = bundle.read(Path(path), expect=expect)
    with _damage(path):
        return {"id": found.id, **found.manifest["card"]}


def encoder_kind(path: PathLike) -> str:
    """Kind of the encoder of a gate on disk, ``klip`` or ``diffusion``, without opening it.

    Raises:
        BundleError: damaged, forged, foreign or newer.
    """
    found = bundle.read(Path(path))
    with _damage(path):
        return str(found.manifest["stages"]["encoder"]["params"]["kind"])


@contextmanager
def _damage(path: PathLike) -> Iterator[None]:
    """Whatever is wrong with the content of a manifest is told as a damaged gate."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ConfigError) as error:
        text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__} {error}"
        raise BundleError(f"{path} is damaged or was written by another version of offmap: {text}. Fit the gate anew") from error


def _gate() -> "type[Gate]":
    from offmap.pipeline.gate import Gate

    return Gate


def _content(gate: "Gate") -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]], dict[str, bytes]]:
    scorer = gate.scorer
    stages: dict[str, dict[str, Any]] = {"encoder": {"method": "encoder", "params": gate.encoder.config()}}
    tensors: dict[str, Mapping[str, Tensor]] = {"encoder": kept_weights(gate.encoder)}
    for name, states in scorer.ensemble.parts.items():
        for k, fitted in enumerate(states):
            _add(stages, tensors, f"score.{name}.{k}", fitted)
    for name, fitted in scorer.maps.items():
        _add(stages, tensors, f"map.{name}", fitted)
    for k, combined in enumerate(scorer.ensemble.combined):
        rule = combined.cascade if isinstance(combined, Cascaded) else Combine(combined.reduce)  # type: ignore[arg-type]
        stages[f"combine.{k}"] = {"method": rule.method(), "params": rule.params()}
        tensors[f"combine.{k}"] = combined.state()
    stages["calibrate"] = {"method": "conformal", "params": {}}
    tensors["calibrate"] = scorer.ranks.state()
    stages["tail"] = {"method": "tail", "params": {}}
    tensors["tail"] = scorer.tail.state()
    extra: dict[str, bytes] = {}
    if gate.neighbours is not None:
        stages["neighbours"] = {"method": "neighbours", "params": {}}
        tensors["neighbours"] = gate.neighbours.state()
        extra = gate.neighbours.files()
    manifest = {
        "recipe": gate.recipe.to_json(),
        "prepare": gate.preparation.to_json(),
        "parts": list(scorer.ensemble.parts),
        "folds": scorer.ensemble.folds,
        "maps": {name: list(limits) for name, limits in scorer.map_limits.items()},
        "facts": dict(gate.facts),
        "card": card(gate),
        "stages": stages,
    }
    return manifest, tensors, extra


def _add(stages: dict[str, dict[str, Any]], tensors: dict[str, Mapping[str, Tensor]], stage: str, fitted: Fitted) -> None:
    stages[stage] = {"method": fitted.detector.method(), "params": fitted.detector.params()}
    tensors[stage] = fitted.state


def kept_weights(encoder: Encoder) -> Mapping[str, Tensor]:
    """Weights that a gate keeps, of each of two networks by itself: see ``card.is_kept``."""
    if isinstance(encoder, Pair):
        return joined_state(kept_weights(encoder.first), kept_weights(encoder.second))
    return encoder.state() or {} if is_kept(encoder) else {}


def _scorer(manifest: Mapping[str, Any], stages: Mapping[str, Mapping[str, Tensor]]) -> Scorer:
    folds = int(manifest["folds"])
    parts = {name: tuple(_fitted(manifest, stages, f"score.{name}.{k}") for k in range(folds)) for name in manifest["parts"]}
    maps = {name: _fitted(manifest, stages, f"map.{name}") for name in manifest["maps"]}
    limits = {name: (float(low), float(high), *map(float, rest)) for name, (low, high, *rest) in manifest["maps"].items()}
    combined = tuple(_law(manifest["stages"][f"combine.{k}"], stages[f"combine.{k}"]) for k in range(folds if len(parts) > 1 else 0))
    ranks, law = conformal.from_state(stages["calibrate"]), tail.from_state(stages["tail"])
    if len(ranks.sizes) != folds or ranks.n != law.n:
        raise BundleError(
            f"{len(ranks.sizes)} folds of {ranks.n} calibration scores do not fit {folds} folds of {law.n}. Fit the gate anew"
        )
    return Scorer(Ensemble(parts, combined), ranks, law, maps, limits)


def _law(entry: Mapping[str, Any], state: Mapping[str, Tensor]) -> Combined | Cascaded:
    if entry["method"] == "cascade":
        return Cascaded.from_state(Cascade.from_params(entry["params"]), state)
    return Combined.from_state(Combine.from_params(entry["params"]), state)


def _fitted(manifest: Mapping[str, Any], stages: Mapping[str, Mapping[str, Tensor]], stage: str) -> Fitted:
    entry = manifest["stages"][stage]
    detector = registry.load("score", entry["method"], Detector).from_params(entry["params"], where=stage)
    return Fitted(detector, MappingProxyType(dict(stages[stage])))

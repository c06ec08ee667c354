"""A cascade in a recipe: two recipes or detectors become one, the expensive one put off; and what that costs an image."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from offmap.core import registry
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.pipeline.store import SignalStore

if TYPE_CHECKING:
    from offmap.pipeline.learn import Parts
    from offmap.pipeline.scorer import Scorer

Tables = dict[str, Any]

TRIED = 16
"""Images that are timed."""


def merged(tables_of: Callable[[str], Tables], base: str, names: Sequence[str]) -> Tables:
    """Tables of a recipe whose two parts are a cascade.

    Each name is a recipe with one part, or a detector that reads the encoder of ``base``. Steps, forms, calibration and decision are
    those of the first recipe. Where the second recipe has another encoder, that becomes the gate's second network.

    Args:
        tables_of: the tables of a recipe by name or file.
        base: the recipe that detectors are put into.
        names: what runs first, and what runs where that is undecided.

    Raises:
        ConfigError: not two names, one that is neither, or a recipe with several parts.
    """
    if len(names) != 2:
        raise ConfigError(
            f"--cascade {','.join(names)}: two names are needed, as in --cascade standard,diffusion or --cascade knn,patchcore"
        )
    detectors, (first, then) = registry.names("score"), names
    tables = dict(tables_of(base if first in detectors else first))
    second = dict(tables) if then in detectors else tables_of(then)
    (own, cheap), (other, dear) = (
        (name, {"method": name}) if name in detectors else _part(given, name) for name, given in ((first, tables), (then, second))
    )
    other = f"{other}_then" if other == own else other
    if second.get("encoder") != tables.get("encoder"):
        spec = str(second.get("encoder", {}).get("spec", "builtin"))
        tables["second"] = {"spec": spec, **({"train": dict(second["train"])} if "train" in second else {})}
    return {**tables, "score": {own: cheap, other: dear}, "cascade": {"first": own, "then": other}}


def _part(tables: Mapping[str, Any], name: str) -> tuple[str, Tables]:
    """The only part of a recipe, with its method."""
    parts = tables.get("score", {})
    if len(parts) != 1:
        raise ConfigError(f"--cascade: recipe {name} has {len(parts)} parts ({', '.join(parts) or 'none'}); one is needed")
    own, table = next(iter(parts.items()))
    return str(own), {"method": own, **table}


def cost(encoder: Encoder, scorer: "Scorer", store: SignalStore, division: Sequence["Parts"], device: torch.device) -> dict[str, float]:
    """What the cascade costs on in-distribution images, for the card.

    Returns:
        ``share`` of the calibration images that need the second part; ``ms_first``, ``ms_then`` that the networks take for an image where
        they run, measured on noise on this machine; ``ms_mean`` of an in-distribution image.
    """
    sides, channels, needs, passed = encoder.input.sides, encoder.input.channels, scorer.needs, []
    for k, parts in enumerate(division):
        for batch in store.batches(parts.calibrate, needs, device=device):
            passed.append(scorer.ensemble.undecided(batch, fold=k))
    share = float(torch.cat(passed).double().mean())
    images = torch.rand(TRIED, channels, *sides, generator=torch.Generator().manual_seed(0)).to(device)
    first, then = (_milliseconds(encoder, images, some) for some in (needs - scorer.dear, scorer.dear))
    found = {"share": share, "ms_first": first, "ms_then": then, "ms_mean": first + share * then}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def _milliseconds(encoder: Encoder, images: torch.Tensor, needs: frozenset[str]) -> float:
    """An image, the better of two tries."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        for value in encoder.encode(images, needs).values():
            value.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 1000 * best / len(images)

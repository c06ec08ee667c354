"""What a recipe puts around an encoder: KLIP's measurement, images that are mixed with others."""

import torch

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, SignalError
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.store import SignalStore
from offmap.represent.klip import RESIDUAL, KlipEncoder
from offmap.represent.klip_prior import PriorKlipEncoder
from offmap.represent.proxy import with_proxies
from offmap.score.klip import KLIP


def dressed(plan: Recipe, network: Encoder, device: torch.device) -> Encoder:
    """The network with all that the recipe asks for.

    Raises:
        ConfigError: it does not fit the network, or KLIP's blocks and window do not fit its cells and windows.
    """
    if plan.klip is not None:
        network = PriorKlipEncoder(network, plan.klip, device=device)
    if isinstance(network, KlipEncoder):
        try_blocks(plan, network)
    asked: frozenset[str] = frozenset()
    return with_proxies(network, asked.union(*(d.fit_needs for d in plan.parts.values())), plan.encoder.proxies)


def try_blocks(plan: Recipe, network: KlipEncoder) -> None:
    """Refuse blocks and windows that do not fit, before an image is sampled.

    Raises:
        ConfigError: naming them, and those that fit.
    """
    for name, detector in plan.parts.items():
        if isinstance(detector, KLIP):
            try:
                detector.fit([network.blank()])
            except SignalError as error:
                raise ConfigError(f"[score.{name}] {error}") from error


def watched(network: Encoder) -> frozenset[str]:
    """Signals of in-distribution images that a gate remembers the range of, beside those that its detectors read."""
    return frozenset({RESIDUAL}) if isinstance(network, KlipEncoder) else frozenset()


def ranges(store: SignalStore) -> dict[str, list[float]]:
    """Least and largest of what is watched, for the facts of the gate."""
    if RESIDUAL not in store.names:
        return {}
    left = store.vector(RESIDUAL)
    return {"residual": [round(float(left.min()), 4), round(float(left.max()), 4)]}


def measurable(network: Encoder) -> tuple[str, ...]:
    """DICOM modalities of images that the encoder's operator can measure; empty for all."""
    if isinstance(network, KlipEncoder) and network.operator.modality:
        return (network.operator.modality,)
    return ()

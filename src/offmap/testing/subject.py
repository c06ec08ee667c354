"""What a check works on: a detector, signals for it, and words for a failure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.detector import Detector, Fitted, Localiser, select
from offmap.core.signals import base_of
from offmap.core.types import STATIC, Signals
from offmap.testing.world import World


class ContractError(AssertionError):
    """A detector does not keep the contract."""


@dataclass(frozen=True)
class Subject:
    """A detector under test.

    Args:
        detector: to be tried.
        world: where its signals come from.
        own: the world was brought by the caller, so variants of the fake encoder do not apply.
        device: further device to try.
    """

    detector: Detector
    world: World
    own: bool = False
    device: str | None = None
    seed: int = field(default=0, kw_only=True)

    def batches(self, count: int = 120, *, size: int = 32, seed: int = 1, world: World | None = None) -> list[Signals]:
        """In-distribution signals with labels, the same for the same arguments, cut into batches of ``size``."""
        whole = self.signals(count, ood=False, seed=seed, world=world)
        return [rows_of(whole, slice(i, i + size)) for i in range(0, count, size)]

    def fit(self, batches: Sequence[Signals], *, detector: Detector | None = None, seed: int = 3) -> Fitted:
        """The detector fitted without a held-out part."""
        return (detector or self.detector).fit(batches, generator=torch.Generator().manual_seed(seed))

    def fitted(self) -> Fitted:
        """The detector fitted on 120 images."""
        return self.fit(self.batches())

    def unseen(self, count: int = 24, *, ood: bool = False, seed: int = 2, world: World | None = None) -> Signals:
        """Signals for scoring, without labels."""
        whole = self.signals(count, ood=ood, seed=seed, world=world)
        return {name: value for name, value in whole.items() if name != "label"}

    def signals(self, count: int, *, ood: bool, seed: int, world: World | None = None) -> Signals:
        """Signals with labels; a signal with settings goes by the exact name that the detector asks for, in place of its base name."""
        found = dict((world or self.world).signals(count, ood=ood, generator=torch.Generator().manual_seed(seed)))
        asked = self.detector.needs | self.detector.fit_needs
        asked |= self.detector.map_needs if isinstance(self.detector, Localiser) else frozenset()
        exact = {name: base_of(name) for name in asked if base_of(name) != name and name not in found}
        renamed = {name: found[base] for name, base in exact.items() if base in found}
        return {name: value for name, value in found.items() if name not in exact.values()} | renamed


Check = Callable[[Subject], None]


def rows_of(signals: Signals, index: slice | Tensor) -> dict[str, Tensor]:
    """Some rows of a batch."""
    return {name: value if name in STATIC else value[index] for name, value in signals.items()}


def reads(signals: Signals, needs: frozenset[str]) -> tuple[str, ...]:
    """Names of the batch's signals that answer ``needs``, without the static ones."""
    return tuple(sorted({name for pattern in needs for name in select(signals, pattern) if name not in STATIC}))


def demand(condition: bool, message: str) -> None:
    """Raises:
    ContractError: the condition does not hold.
    """
    if not condition:
        raise ContractError(message)


def same(one: Float[Tensor, " *n"], other: Float[Tensor, " *n"], what: str, *, tolerance: float = 1e-4) -> None:
    """Two scores or maps of the same images must agree, to a share of their size and spread.

    Raises:
        ContractError: they do not.
    """
    demand(one.shape == other.shape, f"{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}")
    a, b = one.double().cpu(), other.double().cpu()
    scale = float(a.abs().mean() + (a.max() - a.min())) if a.numel() else 0.0
    worst = float((a - b).abs().max()) if a.numel() else 0.0
    demand(worst <= tolerance * scale + 1e-12, f"{what}: scores differ by up to {worst:.3g} at a scale of {scale:.3g}")

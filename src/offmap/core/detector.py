"""The contract of a detector, the heart of offmap.

A ``Detector`` is a frozen dataclass of hyper-parameters. Its ``fit`` gives a ``Fitted``: the detector and its learned
tensors, nothing else, so that saving, moving to a device, and sharing between threads come once for all methods.

A new method writes ``needs``, ``learn`` and ``raw_score`` (and ``raw_map`` if it localises), in one file of
``offmap/score/``. Higher score = more OOD, always.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.component import Component
from offmap.core.errors import ConfigError, SignalError
from offmap.core.signals import base_of
from offmap.core.types import STATIC, Signals

State = Mapping[str, Tensor]


class Detector(Component, ABC):
    """Turns signals into scores of shape ``(N,)``, higher = more OOD."""

    passes: ClassVar[str] = "1F"
    """Network evaluations per image: F forward, B backward. ``1F`` = nothing beyond the deployed model's own pass."""

    stream: ClassVar[bool] = False
    """The score depends on the images seen before; such a method is exempt from scoring one image as in its batch."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """Names of the signals that scoring reads; ``features.*`` means every layer."""

    @property
    def fit_needs(self) -> frozenset[str]:
        """Names of the signals that fitting reads (``label`` where labels are needed)."""
        return self.needs

    @property
    def fit_uses(self) -> frozenset[str]:
        """Names of further signals that fitting reads where the batches have them, and does without where not."""
        return frozenset()

    @abstractmethod
    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        """Learned tensors. ``batches`` may be iterated more than once; each is checked on the way."""

    @abstractmethod
    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        """Scores of one checked batch; a row's score does not depend on the other rows."""

    def contributions(self, state: State, signals: Signals) -> Mapping[str, Float[Tensor, " n"]]:
        """What each part of a detector of several says, on a scale on which they compare; empty where there are no parts."""
        return {}

    def fit(
        self, batches: Iterable[Signals], *, held_out: Iterable[Signals] | None = None, generator: torch.Generator | None = None
    ) -> "Fitted":
        """Learn from in-distribution signals.

        Args:
            batches: in-distribution signals; anything that can be iterated more than once.
            held_out: other in-distribution signals, disjoint from ``batches`` and from the calibration part, for
                methods that standardise or tune on unseen images.
            generator: source of randomness; a fresh one with seed 0 if not given.

        Raises:
            SignalError: a signal is missing, not finite (rows named), of wrong shape, or there is no row at all.
            ConfigError: ``batches`` can be iterated only once.
        """
        for given in (batches, held_out):
            if isinstance(given, Iterator):
                raise ConfigError("batches is an iterator and can be read only once: pass a list, or an object with __iter__")
        rng = generator if generator is not None else torch.Generator().manual_seed(0)
        needs, uses, who = self.fit_needs | self.needs, self.fit_uses, self.method()
        unseen = None if held_out is None else _Checked(held_out, needs, uses, who)
        state = self.learn(_Checked(batches, needs, uses, who), unseen, rng)
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise SignalError(f"{self.method()}: the learned {name!r} is not finite; are there at least two different images?")
        return Fitted(self, MappingProxyType({k: v.detach().contiguous() for k, v in state.items()}))


class Localiser(Detector):
    """A detector that also says where."""

    restores: ClassVar[bool] = False
    """The map is what a model of usual images cannot restore: of an image that it does not know at all, it points nowhere (withheld)."""

    @property
    def map_needs(self) -> frozenset[str]:
        """Names of the signals that the map reads."""
        return self.needs

    @abstractmethod
    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        """Oddness per position of the signal's own grid, higher = odder; not upsampled."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A detector with its learned tensors; cannot exist unfitted, is never changed."""

    detector: Detector
    state: State = field(repr=False)

    def score(self, signals: Signals) -> Float[Tensor, " n"]:
        """Scores of one batch, float32, higher = more OOD.

        Raises:
            SignalError: a signal is missing, not finite (rows named) or of wrong shape.
        """
        method = self.detector.method()
        check(signals, self.detector.needs, method)
        with torch.no_grad():
            scores = self.detector.raw_score(self.state, signals)
        n = rows(signals)
        if tuple(scores.shape) != (n,):
            raise SignalError(f"{method} returned shape {tuple(scores.shape)} for {n} rows, ({n},) expected")
        _finite(scores, f"score of {method}", 0)
        return scores.to(torch.float32)

    def contributions(self, signals: Signals) -> dict[str, Tensor]:
        """What each part of a detector of several says of one batch, float32; empty where there are no parts.

        Raises:
            SignalError: as ``score``.
        """
        check(signals, self.detector.needs, self.detector.method())
        with torch.no_grad():
            return {name: values.to(torch.float32) for name, values in self.detector.contributions(self.state, signals).items()}

    def map(self, signals: Signals) -> Float[Tensor, "n *s"]:
        """Oddness per position, float32, higher = odder.

        Raises:
            ConfigError: the method does not localise.
            SignalError: as ``score``.
        """
        if not isinstance(self.detector, Localiser):
            raise ConfigError(f"{self.detector.method()} has no map; `offmap methods` shows which methods localise")
        check(signals, self.detector.map_needs, self.detector.method())
        with torch.no_grad():
            return self.detector.raw_map(self.state, signals).to(torch.float32)

    def to(self, device: torch.device | str) -> "Fitted":
        """The same with its tensors on another device."""
        return Fitted(self.detector, MappingProxyType({k: v.to(device) for k, v in self.state.items()}))


def rows(signals: Signals) -> int:
    """Number of images in a batch."""
    for name, tensor in signals.items():
        if name not in STATIC:
            return int(tensor.shape[0])
    raise SignalError("the batch holds no signal with a batch axis")


def select(signals: Signals, pattern: str) -> dict[str, Tensor]:
    """Signals whose name matches ``pattern`` (``features.*``: every layer, without the alias ``features.last``)."""
    if "*" not in pattern:
        return {pattern: signals[pattern]} if pattern in signals else {}
    return {k: v for k, v in signals.items() if fnmatchcase(k, pattern) and not k.endswith(".last")}


def missing(needs: Iterable[str], provides: Iterable[str], *, exact: bool = False) -> tuple[str, ...]:
    """Those of ``needs`` that nothing in ``provides`` answers.

    Args:
        exact: ``provides`` are the signals of a batch, where a name with settings must stand as it is; what an encoder
            provides answers it by the base name.
    """
    have = tuple(provides)
    return tuple(sorted(n for n in needs if not any(fnmatchcase(h, n) for h in have) and (exact or base_of(n) not in have)))


def check(signals: Signals, needs: Iterable[str], who: str, first_row: int = 0, *, uses: Iterable[str] = ()) -> None:
    """Refuse a batch that lacks a signal, has uneven rows, or is not finite.

    Args:
        needs: names or patterns that must be there.
        uses: names or patterns that may be absent, and are checked where present.

    Raises:
        SignalError: naming the signal, its shape and the rows.
    """
    needs = tuple(needs)
    lacking = missing(needs, signals, exact=True)
    if lacking:
        raise SignalError(f"{who} needs the signals {', '.join(lacking)}; the batch has {', '.join(sorted(signals)) or 'none'}")
    n = rows(signals)
    for pattern in (*needs, *uses):
        for name, tensor in select(signals, pattern).items():
            if name in STATIC:
                continue
            if tensor.ndim == 0 or tensor.shape[0] != n:
                raise SignalError(f"{who}: {name} of shape {tuple(tensor.shape)} does not have the batch's {n} rows")
            if name.startswith("features.") and tensor.ndim != 2:
                raise SignalError(f"{who}: {name} of shape {tuple(tensor.shape)} must be (N, D)")
            _finite(tensor, f"{who}: {name}", first_row)


def _finite(tensor: Tensor, what: str, first_row: int) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    if bool(torch.isfinite(tensor.sum())):
        return  # one quick pass; a finite sum has finite terms only
    good = torch.isfinite(tensor.reshape(tensor.shape[0], -1)).all(dim=1)
    if not bool(good.all()):
        bad = (torch.nonzero(~good).flatten() + first_row).tolist()
        listed = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise SignalError(f"{what} of shape {tuple(tensor.shape)} is not finite in rows [{listed}]")


@dataclass(frozen=True)
class _Checked:
    """Batches that are checked each time they are read."""

    batches: Iterable[Signals]
    needs: frozenset[str]
    uses: frozenset[str]
    who: str

    def __iter__(self) -> Iterator[Signals]:
        first = 0
        for batch in self.batches:
            check(batch, self.needs, self.who, first, uses=self.uses)
            first += rows(batch)
            yield batch
        if first == 0:
            raise SignalError(f"{self.who}: there are no images to fit on")

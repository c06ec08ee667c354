"""Several detectors as one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from offmap.core import registry
from offmap.core.component import from_text, nearest
from offmap.core.detector import Detector, State, select
from offmap.core.errors import ConfigError, SignalError
from offmap.core.robust import centre_and_spread
from offmap.core.signals import is_map
from offmap.core.types import Signals
from offmap.score._held_out import Share

Reduce = Literal["mean", "max", "logsumexp", "fisher"]

LEAST = 4
"""Least number of held-out images."""

TAIL = 0.1
"""Share of the held-out images from which the tail beyond the largest is drawn."""


@dataclass(frozen=True, kw_only=True)
class Fusion(Detector):
    """Any detectors by name, standardised on held-out in-distribution images and reduced to one statistic.

    ``mean``, ``max``, ``logsumexp``: of ``z_j = (s_j - median) / (1.4826 MAD)``, standardised once more; the number is in
    deviations above the median of unseen in-distribution images. ``fisher``: ``T = -2 sum ln p_j``, with ``p_j`` the share of
    held-out images that part j finds at least as odd; T is then ranked among the T of the held-out images themselves. The
    number is ``-ln p`` in nats, >= 0: about 0.7 for a typical image, 3 where one usual image in twenty is as odd. Ranking
    T, instead of looking it up in the chi squared law, makes p valid however strongly the parts depend on each other.
    Between held-out values p is interpolated upwards, beyond the largest it falls exponentially with the mean excess of the upper
    tenth, so that far images do not tie; both are the project's own.

    ``parts`` says how much each detector contributes. Fitting and scoring cost what the parts cost together; the state is theirs and a
    few numbers for each held-out image (``fisher``) or part. Without ``held_out``, every fourth image is kept apart.

    Fails when most of the parts are blind to a shift: with ``mean`` and ``fisher`` they dilute the one that sees it, with
    ``max`` each adds its own false alarms. Parts that look at the same thing count it twice.

    Args:
        methods: names of two or more detectors, each with its defaults.
        reduce: ``mean``, ``max``, ``logsumexp`` or ``fisher``.
        settings: changes of the parts' defaults, such as ``knn.k=10``.
    """

    methods: tuple[str, ...] = ("multilayer_mahalanobis", "knn", "residual")
    reduce: Reduce = "mean"
    settings: tuple[str, ...] = ()

    reference: ClassVar[str] = (
        "Fisher, Statistical Methods for Research Workers, 1925 (the statistic); Magesh et al., Principled Out-of-Distribution Detection "
        "via Multiple Testing, JMLR 24, 2023, arXiv 2206.09522 (several scores of one network as tests)"
    )

    def __post_init__(self) -> None:
        if self.reduce not in get_args(Reduce):
            raise ConfigError(f"fusion: reduce = {self.reduce!r} must be one of {', '.join(get_args(Reduce))}")
        if len(self.methods) < 2 or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"fusion: methods = {list(self.methods)} must name two or more different detectors")
        self._detectors()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(d.needs for d in self._detectors().values()))

    @property
    def fit_needs(self) -> frozenset[str]:
        return frozenset().union(*(d.fit_needs for d in self._detectors().values()))

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset().union(*(_uses(d) for d in self._detectors().values()))

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        fit = Share(batches, held=False) if held_out is None else batches
        unseen = Share(batches, held=True) if held_out is None else held_out
        state: dict[str, Tensor] = {}
        for name, part in self._detectors().items():
            read = part.needs | part.fit_needs | _uses(part)
            fitted = part.fit(_Only(fit, read), held_out=_Only(unseen, read), generator=generator)
            state |= {f"part.{name}.{key}": value for key, value in fitted.state.items()}
        scores = [self._scores(state, batch) for batch in unseen]
        if sum(map(len, scores)) < LEAST:
            raise SignalError(
                f"fusion has {sum(map(len, scores))} held-out images and needs at least {LEAST}: "
                f"give more in held_out, or none and at least {4 * LEAST} images to fit on"
            )
        held = torch.cat(scores)
        if self.reduce == "fisher":
            return {**state, **_law("parts", held), **_law("statistic", 2 * _surprise(_law("parts", held), "parts", held).sum(1, True))}
        laws = torch.tensor([centre_and_spread(column.float()) for column in held.T], dtype=torch.float64)
        state |= {"parts.centre": laws[:, 0], "parts.spread": laws[:, 1]}
        reduced = self._reduced(torch.stack(list(self._standard(state, held).values()), dim=1))
        centre, spread = centre_and_spread(reduced.float())
        return {**state, "statistic.centre": reduced.new_tensor(centre), "statistic.spread": reduced.new_tensor(spread)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        parts = torch.stack(list(self.parts(state, signals).values()), dim=1)
        if self.reduce == "fisher":
            return _surprise(state, "statistic", 2 * parts.sum(dim=1, keepdim=True))[:, 0]
        return (self._reduced(parts) - state["statistic.centre"]) / state["statistic.spread"]

    def parts(self, state: State, signals: Signals) -> dict[str, Float64[Tensor, " n"]]:
        """What each detector contributes to a score: its ``z``, or ``-ln p`` for ``fisher``.

        Args:
            state: as learned.
            signals: of the images.
        """
        return self._standard(state, self._scores(state, signals))

    def contributions(self, state: State, signals: Signals) -> Mapping[str, Float[Tensor, " n"]]:
        return self.parts(state, signals)

    def _standard(self, state: State, scores: Float64[Tensor, "n p"]) -> dict[str, Float64[Tensor, " n"]]:
        fisher = self.reduce == "fisher"
        columns = _surprise(state, "parts", scores) if fisher else (scores - state["parts.centre"]) / state["parts.spread"]
        return dict(zip(self.methods, columns.T, strict=True))

    def _reduced(self, columns: Float64[Tensor, "n p"]) -> Float64[Tensor, " n"]:
        if self.reduce == "logsumexp":
            return torch.logsumexp(columns, dim=1)
        return columns.mean(dim=1) if self.reduce == "mean" else columns.amax(dim=1)

    def _scores(self, state: State, signals: Signals) -> Float64[Tensor, "n p"]:
        columns = []
        for name, part in self._detectors().items():
            prefix = f"part.{name}."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            columns.append(part.raw_score(own, signals).double())
        return torch.stack(columns, dim=1)

    def _detectors(self) -> Mapping[str, Detector]:
        return _built(self.methods, self.settings)


@cache
def _built(methods: tuple[str, ...], settings: tuple[str, ...]) -> Mapping[str, Detector]:
    """The parts in their order.

    Raises:
        ConfigError: an unknown method or setting, a fusion inside a fusion, or a detector that remembers the stream.
    """
    changes: dict[str, dict[str, object]] = {name: {} for name in methods}
    classes = {name: registry.load("score", name, Detector) for name in methods}
    for name, cls in classes.items():
        if issubclass(cls, Fusion) or cls.stream:
            raise ConfigError(f"fusion: {name} cannot be a part: a fusion has no fusions and no detectors that remember the stream")
    for text in settings:
        key, sign, value = text.partition("=")
        name, dot, field = key.strip().partition(".")
        if not (sign and dot) or name not in classes:
            advice = nearest(name, list(classes))
            raise ConfigError(f"fusion: settings: {text!r} must look like METHOD.FIELD=VALUE with one of the methods{advice}")
        changes[name][field] = from_text(classes[name], field, value.strip())
    return MappingProxyType({name: cls.from_params(changes[name], where=f"fusion: {name}") for name, cls in classes.items()})


def _uses(part: Detector) -> frozenset[str]:
    """What a part's fit may use; without maps, as a fusion has none."""
    return frozenset(name for name in part.fit_uses if not is_map(name))


@dataclass(frozen=True)
class _Only:
    """Batches with the signals that one part reads."""

    batches: Iterable[Signals]
    read: frozenset[str]

    def __iter__(self) -> Iterator[Signals]:
        for batch in self.batches:
            found: dict[str, Tensor] = {}
            for pattern in self.read:
                found |= select(batch, pattern)
            yield {name: value for name, value in batch.items() if name in found}


def _law(name: str, held: Float64[Tensor, "m p"]) -> dict[str, Tensor]:
    """Sorted held-out values of each column, and the mean excess of the upper tenth (two at least) over its least."""
    held = held.sort(dim=0).values
    upper = max(2, round(TAIL * len(held)))
    excess = (held[-upper:] - held[-upper]).sum(dim=0) / (upper - 1)
    spread = held.std(dim=0)
    return {f"{name}.held": held, f"{name}.excess": torch.maximum(excess, 1e-3 * torch.where(spread > 0, spread, 1.0))}


def _surprise(law: Mapping[str, Tensor], name: str, values: Float64[Tensor, "n p"]) -> Float64[Tensor, "n p"]:
    """``-ln p``, >= 0: p = (1 + #{held-out >= x}) / (m + 1) at the m held-out values, linear between, exponential beyond the largest."""
    held, excess = law[f"{name}.held"].T.contiguous(), law[f"{name}.excess"]
    count = held.shape[1]
    x = values.T.contiguous()
    right = torch.searchsorted(held, x).clamp(1, count - 1)
    low, high = held.gather(1, right - 1), held.gather(1, right)
    share = ((x - low) / (high - low).clamp_min(1e-300)).clamp(0.0, 1.0)
    p = (count + 2 - right - share) / (count + 1)
    return -p.log().T + (values - held[:, -1]).clamp_min(0) / excess

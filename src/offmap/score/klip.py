"""How much the measurement changes the belief of a diffusion prior, block by block and in a window of noise levels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from offmap.core.detector import Localiser, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.core.updates import UpdateSums, block_sums

Units = Literal["divergence", "relative"]
SIGNALS = {"divergence": "klip.map", "relative": "klip.relative.map"}
FOREGROUND = "klip.foreground"


@dataclass(frozen=True, kw_only=True)
class KLIP(Localiser):
    """KLIP: the largest block of ``1/2 int E |g(t) grad log p_t(y|x)|^2 dt`` between two noise levels, >= 0.

    Over all blocks and levels this is the Kullback-Leibler divergence between posterior ``p(x|y)`` and prior ``p(x)``: how far the
    measurement drags a sample away from what the prior knows. Discrete: ``sum_t mean_s |dx_ts|^2 / (2 g_t^2 dt_t)``, dx the
    change of sample s by the data in step t; squared first, then averaged over samples. In nats where the sampler's guidance is the
    exact or moment-matched likelihood score, in units of its own otherwise; always for one operator, noise level and image size.

    ``units="relative"`` is the authors' code: ``mean over t and s of |dx|^2 / g^2``, which is proportional to the formula on an even
    grid of times only. Derived for this project: the calibrated form, its value for Gaussian priors and linear operators, and that the
    sum over blocks of any size is the whole. Default block and window follow the authors' CHAOS run (32 of 512 pixels, steps 65 to 85 of
    100, level of single images).

    Needs a diffusion model, an operator and a sampler (``represent.klip``), about ``steps x samples`` passes an image; this score
    itself costs next to nothing, its window and blocks can be changed after sampling, and nothing is learned but the grid.

    Fails when odd parts are small beside the usual data term: every image has a floor, larger where there is more to see, so that
    ranking all images of a data set is harder than finding the odd block of one. Block and window are not universal: what is best for
    tumours is not best for stars. The largest of many blocks grows with their number: calibrate for each image size.

    Args:
        window: from and to, shares of the sampler's steps, 0 the highest noise; half-open.
        cells: side of a block in cells of the signal.
        units: ``divergence`` or ``relative``.
        reduction: of the blocks to one number: ``max``, ``p95`` (95th percentile) or ``sum``.
        foreground: only blocks that touch the body count; others are 0 in the map.
    """

    window: tuple[float, ...] = (0.65, 0.85)
    cells: int = 2
    units: Units = "divergence"
    reduction: Literal["max", "p95", "sum"] = "max"
    foreground: bool = True

    passes: ClassVar[str] = "800F"
    reference: ClassVar[str] = (
        "Kheirandish, Hong & Fridovich-Keil, KLIP, CVPR 2026, arXiv 2605.31596, eq. 12; its units, Gaussian closed forms and time rule are "
        "derived here"
    )

    def __post_init__(self) -> None:
        if len(self.window) != 2 or not 0 <= self.window[0] < self.window[1] <= 1:
            raise ConfigError(f"klip: window = {list(self.window)} must be two shares of the steps, 0 <= from < to <= 1")
        if self.cells < 1:
            raise ConfigError(f"klip: cells = {self.cells} must be at least 1")
        for key, known in (("units", tuple(SIGNALS)), ("reduction", ("max", "p95", "sum"))):
            if getattr(self, key) not in known:
                raise ConfigError(f"klip: {key} = {getattr(self, key)!r} must be one of {', '.join(known)}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SIGNALS[self.units], *((FOREGROUND,) if self.foreground else ())})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        grids = {tuple(self._windows(batch).shape[1:]) for batch in batches}
        if len(grids) != 1:
            raise SignalError(f"klip: batches have {SIGNALS[self.units]} of different grids {sorted(grids)}")
        for batch in batches:
            self._blocks(batch)
        return {"grid": torch.tensor(grids.pop())}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        blocks, body = self._checked(state, signals)
        flat = torch.where(body, blocks, torch.nan if self.reduction == "p95" else 0.0).flatten(1)
        if self.reduction == "p95":
            return flat.nanquantile(0.95, dim=1)
        return flat.amax(dim=1) if self.reduction == "max" else flat.sum(dim=1)

    def raw_map(self, state: State, signals: Signals) -> Float[Tensor, "n *s"]:
        blocks, body = self._checked(state, signals)
        return blocks * body

    def _checked(self, state: State, signals: Signals) -> tuple[Float64[Tensor, "n *b"], Bool[Tensor, "n *b"]]:
        fitted, have = state["grid"].tolist(), list(self._windows(signals).shape[1:])
        if have != fitted:
            raise SignalError(f"klip: {SIGNALS[self.units]} has the grid {have} (windows, cells), {fitted} when it was fitted")
        return self._blocks(signals)

    def _windows(self, signals: Signals) -> Float64[Tensor, "n k *c"]:
        maps = signals[SIGNALS[self.units]]
        if maps.ndim < 3:
            raise SignalError(f"klip: {SIGNALS[self.units]} of shape {tuple(maps.shape)} must be (N, K, *cells)")
        return maps.double()

    def _blocks(self, signals: Signals) -> tuple[Float64[Tensor, "n *b"], Bool[Tensor, "n *b"]]:
        """Blocks of the window, and which of them touch the body."""
        maps = self._windows(signals)
        start, stop = chosen(self.window, maps.shape[1])
        part = maps[:, start:stop]
        blocks = block_sums(part.sum(dim=1) if self.units == "divergence" else part.mean(dim=1), self.cells)
        if not self.foreground:
            return blocks, torch.ones_like(blocks, dtype=torch.bool)
        given = signals[FOREGROUND]
        if given.shape[1:] != maps.shape[2:]:
            raise SignalError(f"klip: {FOREGROUND} of shape {tuple(given.shape)} does not have the cells {tuple(maps.shape[2:])}")
        body = block_sums((given > 0).double(), self.cells) > 0
        empty = ~body.flatten(1).any(dim=1)
        if bool(empty.any()):
            raise SignalError(
                f"klip: the foreground of rows {empty.nonzero().flatten().tolist()} is empty: there is no block to score; "
                "look at the reconstruction, or use foreground = false"
            )
        return blocks, body


def chosen(window: Sequence[float], count: int) -> tuple[int, int]:
    """Which of ``count`` windows lie between two shares of the steps.

    Raises:
        SignalError: an end falls inside a window.
    """
    ends = [share * count for share in window]
    if any(abs(end - round(end)) > 1e-6 for end in ends):
        raise SignalError(
            f"klip: window = {list(window)} cuts one of the signal's {count} windows; its ends must be multiples of 1/{count}"
        )
    return round(ends[0]), round(ends[1])


def klip_map(
    updates: Float[Tensor, "t s n c *p"],
    g: Float[Tensor, " t"],
    dt: Float[Tensor, " t"],
    *,
    block: int,
    window: tuple[int, int] | None = None,
    units: Units = "divergence",
) -> Float64[Tensor, "n *b"]:
    """KLIP of raw updates of any sampler: T steps from the highest noise, S samples, N images.

    Args:
        updates: change of x by the data in each step.
        g: diffusion coefficient of each step.
        dt: length of each step in time; ``g^2 dt`` is ``sigma_i^2 - sigma_(i+1)^2`` in variance-exploding form, and
            ``1 - abar_t / abar_prev`` in variance-preserving form.
        block: pixels on each side of a block.
        window: first step and the one after the last; all when None.
        units: as of ``KLIP``.

    Raises:
        ConfigError: an impossible window, or ``g^2 dt`` not above 0.
        SignalError: values that are not finite, or blocks that do not fit.
    """
    first, last = (0, len(updates)) if window is None else window
    if not 0 <= first < last <= len(updates):
        raise ConfigError(f"window = {(first, last)} must be 0 <= from < to <= {len(updates)} steps")
    sums = UpdateSums(last - first, 1, block)
    for i in range(first, last):
        sums = sums.add(i - first, updates[i], g=float(g[i]), dt=float(dt[i]))
    return sums.maps(relative=units == "relative")[:, 0]

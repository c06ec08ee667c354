"""Histograms of activations and of perturbed class projections, against their in-distribution mean."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from offmap.core.detector import Detector, State
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.types import Signals
from offmap.score._head import HEAD, PENULTIMATE, head_of
from offmap.score._layer import rows_of

FLOOR = 0.01
"""Probability spread evenly over all bins of a histogram, so that no bin is empty and the divergence stays finite."""

CHUNK = 512
"""Images at a time: bounds the memory of their projections."""

Values = Callable[[Float64[Tensor, "n d"]], Float64[Tensor, "n m"]]


@dataclass(frozen=True, kw_only=True)
class WeiPerKLD(Detector):
    """WeiPer+KLD, ``weight * D(h) + D(W' h) - trust * MSP(W' h)``: do an image's activations spread as those of usual images do.

    ``W'`` holds r perturbed copies of the head: each row ``w_k + perturbation |w_k| g / |g|`` with Gaussian g. D takes the m numbers
    of one image (its D activations, or its r K projections) as one sample, counts them into a histogram, and compares it with the
    mean histogram of in-distribution images: ``KL(mean || image) + KL(image || mean)``, in nats. MSP is the largest softmax
    probability of ``W' h + b``, averaged over the copies. Numbers outside the in-distribution range fall into the outer bins.

    Perturbation, histograms, divergence and MSP are the paper's; ours are both directions of KL, a moving average and 1 % spread
    evenly in place of its smoothing, bins over the range seen, and the defaults, since its settings were not at hand.

    Fitting takes two passes, and costs as scoring does: ``(D + r K)`` numbers an image to count, ``r K D`` to project, r K at most
    ``projections`` (or K, if that is more). The state is ``projections * D`` numbers in float32 for ``W'`` and two histograms.

    Fails where all activations change places and keep their values: a histogram does not know which activation is which. With few
    activations or classes a histogram of one image is coarse. The labels' head matters: random heads give random projections.

    Args:
        weight: of the divergence of the activations, >= 0.
        trust: of the perturbed MSP, >= 0.
        perturbation: length of the noise as a share of the length of the class weight, >= 0.
        projections: number of perturbed class weights; copies of the head are ``projections / K``, at least one.
        bins: of each histogram, at least 2.
        smooth: bins that the moving average spans, odd; 1 for none.
    """

    weight: float = 1.0
    trust: float = 0.25
    perturbation: float = 2.0
    projections: int = 300
    bins: int = 100
    smooth: int = 5

    reference: ClassVar[str] = (
        "Granz et al., WeiPer: OOD Detection using Weight Perturbations of Class Projections, NeurIPS 2024, arXiv 2405.17164"
    )

    def __post_init__(self) -> None:
        for name, low in (("weight", 0), ("trust", 0), ("perturbation", 0), ("projections", 1), ("bins", 2), ("smooth", 1)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"weiper_kld: {name} = {getattr(self, name)} must be at least {low}")
        if self.smooth % 2 == 0 or self.smooth > self.bins:
            raise ConfigError(f"weiper_kld: smooth = {self.smooth} must be odd and at most bins = {self.bins}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PENULTIMATE})

    @property
    def fit_needs(self) -> frozenset[str]:
        return self.needs | HEAD

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        first = next(iter(batches))
        weight, bias = head_of(first, rows_of(first, PENULTIMATE, "weiper_kld").shape[1], "weiper_kld")
        state = {"weight": self._perturbed(weight, generator).float(), "bias": bias}
        for name, values in self._samples(state).items():
            low, high = self._range(batches, values, name)
            total, count = torch.zeros(self.bins, dtype=torch.float64, device=low.device), 0
            for batch in batches:
                rows = rows_of(batch, PENULTIMATE, "weiper_kld", weight.shape[1])
                total, count = total + self._histograms(values(rows), low, high).sum(dim=0), count + len(rows)
            state |= {f"{name}.low": low, f"{name}.high": high, f"{name}.mean": total / count}
        return state

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        rows = rows_of(signals, PENULTIMATE, "weiper_kld", state["weight"].shape[1])
        return torch.cat([self._scores(state, part) for part in rows.split(CHUNK)])

    def _scores(self, state: State, rows: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        samples = self._samples(state)
        projected = samples["projections"](rows)
        copies = projected.unflatten(1, (-1, len(state["bias"]))) + state["bias"]
        trust: Tensor = (copies.amax(dim=2) - copies.logsumexp(dim=2)).exp().mean(dim=1)
        divergences = [self._divergence(state, name, values) for name, values in (("activations", rows), ("projections", projected))]
        return self.weight * divergences[0] + divergences[1] - self.trust * trust

    def _samples(self, state: State) -> dict[str, Values]:
        """The two samples of numbers that an image gives."""
        weight = state["weight"]
        return {"activations": lambda rows: rows, "projections": lambda rows: (rows.float() @ weight.T).double()}

    def _perturbed(self, weight: Float64[Tensor, "k d"], generator: torch.Generator) -> Float64[Tensor, "m d"]:
        """Copies of the head with noise, one under the other."""
        copies: Tensor = weight.repeat(max(1, self.projections // len(weight)), 1)
        noise = torch.randn(copies.shape, dtype=torch.float64, generator=generator, device=generator.device).to(weight.device)
        noisy: Tensor = copies + self.perturbation * copies.norm(dim=1, keepdim=True) * unit_norm(noise)
        return noisy

    def _range(self, batches: Iterable[Signals], values: Values, name: str) -> tuple[Tensor, Tensor]:
        ends = [torch.aminmax(values(rows_of(batch, PENULTIMATE, "weiper_kld"))) for batch in batches]
        low, high = torch.stack([e.min for e in ends]).min(), torch.stack([e.max for e in ends]).max()
        if not bool(high > low):
            raise SignalError(f"weiper_kld: the {name} of all images are {float(low):g}; there is nothing to compare")
        return low, high

    def _histograms(self, values: Float64[Tensor, "n m"], low: Tensor, high: Tensor) -> Float64[Tensor, "n b"]:
        """Smoothed shares of the bins, each row of sum one, none zero."""
        index = ((values - low) / (high - low) * self.bins).clamp(0, self.bins - 1).long()
        counts = values.new_zeros(len(values), self.bins).scatter_add_(1, index, torch.ones_like(values))
        if self.smooth > 1:
            side = self.smooth // 2
            counts = functional.avg_pool1d(counts[:, None], self.smooth, stride=1, padding=side, count_include_pad=False)[:, 0]
        shares = counts / counts.sum(dim=1, keepdim=True)
        return (1 - FLOOR) * shares + FLOOR / self.bins

    def _divergence(self, state: State, name: str, values: Float64[Tensor, "n m"]) -> Float64[Tensor, " n"]:
        """KL in both directions."""
        mean = state[f"{name}.mean"]
        image = self._histograms(values, state[f"{name}.low"], state[f"{name}.high"])
        return ((image - mean) * (image.log() - mean.log())).sum(dim=1)
